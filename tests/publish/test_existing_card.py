"""A card that is there already: our section is renewed, and everything of theirs stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from belay_cli.errors import CheckpointError
from belay_cli.publish.card import BEGIN, END
from belay_cli.rules import Belay
from tests.publish.cards import ACCURACY, LLAMA, body, card, data, document, from_hub, json_values

THEIRS = """\
---
# my comment
license: "mit"   # quoted
tags:
- mine   # first
- 'belay'
language: [en]
---
# Mine

Text with trailing space \n
- list"""


def test_everything_of_an_existing_card_stays() -> None:
    text = card(document(), existing=THEIRS, config=LLAMA)
    top = (
        "---\n# my comment\nlicense: \"mit\"   # quoted\ntags:\n- mine   # first\n- 'belay'\n- ema\n"
        "- weight-averaging\nlanguage: [en]\nlibrary_name: transformers\n---\n"
    )
    assert text.startswith(top + body(THEIRS) + f"\n\n{BEGIN}\n")
    assert text.endswith(END + "\n")


def test_only_the_section_is_renewed() -> None:
    text = card(document(), existing=THEIRS)
    edited = text.replace(END, END + "\n\nMore of mine.").replace("# Mine", "# Mine too")
    renewed = card(document(Belay()), existing=edited)
    assert renewed.split(BEGIN)[0] == edited.split(BEGIN)[0]
    assert renewed.split(END)[1] == edited.split(END)[1] == "\n\nMore of mine.\n"
    assert "BELAY" in renewed and "BELAY" not in edited


def test_the_users_own_values_win() -> None:
    existing = "---\nbase_model: me/mine\nlicense: llama3\nlibrary_name:\npipeline_tag: translation\n---\n"
    source = "---\nlicense: other\nlicense_name: x\n---\n"
    found = data(card(from_hub(document()), existing=existing, source_card=source, config=LLAMA))
    assert found == {
        "base_model": "me/mine",
        "license": "llama3",
        "library_name": "transformers",
        "pipeline_tag": "translation",
        "tags": ["belay", "ema", "weight-averaging"],
    }


def test_crlf_stays_crlf() -> None:
    existing = THEIRS.replace("\n", "\r\n")
    text = card(document(), existing=existing)
    assert "\n" not in text.replace("\r\n", "")
    assert text.replace("\r\n", "\n") == card(document(), existing=THEIRS)
    assert card(document(), existing=text) == text


@pytest.mark.parametrize("existing", ["", "# Mine\n", "\ufeff# Mine", "text", "\r\n", "---\n---\n", "a\n---\nb\n---\n"])
def test_a_card_without_front_matter_gets_one(existing: str) -> None:
    text = card(document(), existing=existing)
    assert data(text.removeprefix("\ufeff"))["tags"] == ["belay", "ema", "weight-averaging"]
    assert existing.removeprefix("\ufeff") in text
    assert text.startswith("\ufeff") == existing.startswith("\ufeff")
    assert card(document(), existing=text) == text


@pytest.mark.parametrize("block", ["tags: [a", "- a\n- b", "just text", "a: b: c", "x: !!float a", "x: !!int ''", "*x"])
@pytest.mark.parametrize("where", ["existing", "source_card"])
def test_broken_front_matter_names_the_file_and_the_mend(block: str, where: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        card(document(), **{where: f"---\n{block}\n---\n# Mine\n"})
    assert caught.value.file == ("README.md" if where == "existing" else "README.md beside the checkpoints")
    assert "between the two --- lines" in (caught.value.hint or "")


def test_where_yaml_broke() -> None:
    with pytest.raises(CheckpointError, match=r"^README\.md: the front matter is not YAML at line 3$"):
        card(document(), existing="---\na: 1\nb: [\n---\n")


@pytest.mark.parametrize("body", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_marks_that_are_not_one_pair(body: str) -> None:
    with pytest.raises(CheckpointError, match="the marks of belay's section are not one pair"):
        card(document(), existing=f"# Mine\n{body}\n")


def test_lines_of_dashes_with_nothing_between_are_no_front_matter() -> None:
    text = card(document(), existing="---\r\n---")
    assert "\r\n---\r\n---\r\n---\r\n\r\n<!-- belay:begin" in text


def test_a_mark_in_running_text_is_no_mark() -> None:
    assert f"the mark {BEGIN} is\n" in card(document(), existing=f"the mark {BEGIN} is\n")


@pytest.mark.parametrize(
    "block, expected",
    [
        ("{}", ["belay", "ema", "weight-averaging"]),
        ("# only a comment", ["belay", "ema", "weight-averaging"]),
        ("{tags: [a, b], license: mit}", ["a", "b", "belay", "ema", "weight-averaging"]),
        ("tags: [a, b]  # note", ["a", "b", "belay", "ema", "weight-averaging"]),
        ("tags: a", ["a", "belay", "ema", "weight-averaging"]),
        ("tags:\nlicense: mit", ["belay", "ema", "weight-averaging"]),
        ("tags:\n    -   a\n    -   |\n        b\nx: 1", ["a", "b\n", "belay", "ema", "weight-averaging"]),
        ("y: &t [a]\ntags: *t", ["a", "belay", "ema", "weight-averaging"]),
        ("tags:\n- a: b", [{"a": "b"}, "belay", "ema", "weight-averaging"]),
        ("last: |+\n  keep\n\n", ["belay", "ema", "weight-averaging"]),
        ("x: 1\n...", ["belay", "ema", "weight-averaging"]),
        ("x: 1\n...\n", ["belay", "ema", "weight-averaging"]),
    ],
)
def test_every_way_to_write_yaml_keeps_its_values(block: str, expected: list[Any]) -> None:
    text = card(document(), existing=f"---\n{block}\n---\n")
    before, after = yaml.safe_load(block) or {}, yaml.safe_load(text.split("\n---\n")[0])
    assert after["tags"] == expected
    assert {**after, "tags": 0} == {**before, "tags": 0}
    assert card(document(), existing=text) == text


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
front = st.dictionaries(words, json_values, max_size=4) | st.fixed_dictionaries({"tags": st.lists(words, max_size=3)})
bodies = st.lists(words | st.sampled_from([BEGIN, END, "---", "```", "", "| a |"]), max_size=6)


@st.composite
def existing_cards(draw: Callable[..., Any]) -> str:
    lines = draw(bodies)
    if draw(st.booleans()):
        block = yaml.safe_dump(draw(front), allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans()))
        lines = ["---", *block.splitlines(), *draw(st.sampled_from([[], ["# note"], [""]])), "---", *lines]
    end: str = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + str(draw(st.sampled_from(["", "\n", "\r\n"])))


OURS = re.compile(r"(?<![^\r\n])[ \t]*<!-- belay:begin -->[ \t]*(?=[\r\n])[\s\S]*<!-- belay:end -->[ \t]*(?![^\r\n])")


def halves(text: str) -> tuple[str, str]:
    """The YAML of a card and what follows it."""
    match = re.match(r"\s*---(?:\r\n|\n)([\s\S]*?)(?:\r\n|\n)---[ \t]*(?:\r\n|\n|\Z)", text)
    return (match[1], text[match.end() :]) if match else ("", text)


@given(existing_cards(), st.sampled_from([None, ACCURACY]))
def test_twice_is_once_and_their_text_stays(existing: str, results: list[Any] | None) -> None:
    try:
        text = card(document(), existing=existing, eval_results=results, config=LLAMA)
    except CheckpointError:
        assume(False)
    assert card(document(), existing=text, eval_results=results, config=LLAMA) == text
    (their_yaml, theirs), (our_yaml, ours) = halves(existing), halves(text)
    around, [before, after] = OURS.split(theirs), OURS.split(ours)
    if len(around) == 2:
        assert before == around[0] and after == (around[1] or after) and not after[len(around[1]) :].strip("\r\n")
    else:
        assert before.startswith(theirs) and not before[len(theirs) :].strip("\r\n") and after in ("\n", "\r\n")
    values = yaml.safe_load(our_yaml)
    for key, value in (yaml.safe_load(their_yaml) or {}).items():
        assert values[key] == value or (key == "tags" and values[key][: len(value)] == value)
