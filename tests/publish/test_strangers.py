"""Names, results and records that come from others change nothing of the structure of a card."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from belay_cli.errors import CheckpointError, UsageError
from belay_cli.publish.card import BEGIN, END
from tests.publish.cards import body, card, data, document, small

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "`code` ``more`` ```",
    "```\n# Heading",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example www.evil.example me@evil.example @someone #1",
    f"{END}\n# Free",
    BEGIN,
    "-->",
    "$$\\frac{1}{2}$$ \\\\(x\\\\)",
    "\\",
    "\\`",
    "line\nbreak\r\nand \u2028 more",
    "\u202egnp.exe\u200b",
    "\x00\x1b[31m",
    "\ud800",
    "",
    "   ",
    "| --- |",
    "&lt;b&gt; &#60;",
    "*a* _b_ ~~c~~",
    "x" * 10_000,
    "'; rm -rf ~ #",
]
HEADINGS = ["Average of 1 checkpoint", "Averaged weights", "Checkpoints", "Loading", "How it was made"]


def structure(text: str) -> list[Any]:
    """The tokens of a card's Markdown, and of their inlines."""
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(body(text))
    return [one for token in tokens for one in (token, *(token.children or []))]


def harmless(text: str) -> None:
    tokens = structure(text)
    kinds = [token.type for token in tokens]
    headings = [tokens[i + 1].content for i, kind in enumerate(kinds) if kind == "heading_open"]
    assert headings == [*HEADINGS, "How to check it"]
    assert [t.content.strip() for t in tokens if t.type in ("html_block", "html_inline")] == [BEGIN, END]
    assert not {"link_open", "image", "em_open", "strong_open", "s_open"} & set(kinds)
    assert kinds.count("table_open") == 1 and kinds.count("tr_open") == 2 and kinds.count("td_open") == 3
    assert kinds.count("fence") == 4
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)
    assert "$$" not in text and "\\\\(" not in text  # formulas, which some pages read before they read Markdown
    text.encode()


def of_a_stranger(name: str) -> dict[str, Any]:
    policies = {"average": [], "last": [name], "drop": [name]}
    return document(
        ticks=(7,),
        names=[name],
        policies=policies,
        version=name,
        copies=[name],
        versions={"torch": name},
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_nothing_of_the_structure(name: str) -> None:
    text = card(of_a_stranger(name))
    harmless(text)
    assert card(of_a_stranger(name), existing=text) == text


@given(st.text(max_size=40) | st.text("`|<>$\\\n!-()[]*_~ab", max_size=40))
def test_no_name_changes_the_structure(name: str) -> None:
    harmless(card(of_a_stranger(name)))


@given(st.text(max_size=40))
def test_front_matter_survives_any_names_in_the_record(name: str) -> None:
    doc = of_a_stranger(name)
    doc["series"][0] |= {"repo": name, "revision": name}
    text = card(doc)
    assert str(ModelCard(text)) == text
    assert data(text)["tags"] == ["belay", "ema", "weight-averaging"]


def test_names_are_shown_with_escapes() -> None:
    text = card(document(names=["a|b", "`c`", "d\ne"]))
    assert "| 100 | `a\\x7cb` | 35.9% |\n| 200 | `\\x60c\\x60` | 35.9% |\n| 300 | `d\\ne` | 28.1% |" in text


def test_hostile_results_and_pictures() -> None:
    results = [EvalResult(END, "<b>", "x|y", "$$", f"`{BEGIN}")]
    text = small(eval_results=results, picture="a b](x)<.png")
    assert text.count(BEGIN) == text.count(END) == 2  # once each as YAML's text, which is no mark: it is not a line
    assert "![The weight of every checkpoint in the average](a%20b%5D%28x%29%3C.png)" in text
    assert small(eval_results=results, picture="a b](x)<.png", existing=text) == text


@pytest.mark.parametrize("repo", ["a/b/c", "a b", 'x"; import os', "", "../x", "a/b.git", "ä/b"])
def test_an_impossible_repository(repo: str) -> None:
    with pytest.raises(UsageError) as caught:
        card(document(), repo_id=repo)
    assert caught.value.hint == "write ORG/NAME"


def test_a_title_is_a_title() -> None:
    assert "\n# run_ema\n" in card(document(), repo_id="acme/run_ema")
    assert "\n# \\_run\\_\n" in card(document(), repo_id="acme/_run_")


def damaged(change: Callable[..., Any]) -> dict[str, Any]:
    doc = document()
    change(doc)
    return doc


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.pop("rule"), "'rule' is missing"),
        (lambda d: d.update(series=[]), "its ticks do not rise"),
        (lambda d: d.update(series="abc"), "it is none that belay writes"),
        (lambda d: d.update(policies=[]), "it is none that belay writes"),
        (lambda d: d["rule"].update(method="<b>"), "its rule '<b>' is not one of this version of belay"),
        (lambda d: d["rule"].update(unit="<b>"), "its unit is '<b>'"),
        (lambda d: d["rule"].update(half_life=float("inf")), "its parameters are no numbers that can be"),
        (lambda d: d["rule"].update(half_life="x"), "it is none that belay writes"),
        (lambda d: d["series"][0].update(coefficient=float("nan")), "its coefficients are no numbers that can be"),
        (lambda d: d["series"][0].update(coefficient=2.0), "its coefficients sum to 2.6405748, not to 1"),
        (lambda d: d["series"][0].update(tick=200), "its ticks do not rise"),
        (lambda d: d["series"][2].update(tick=2**80), "a step, a tick or a size in it is no number that can be"),
        (lambda d: d["series"][0].update(tick=float("inf")), "a step, a tick or a size in it is no number that can be"),
        (lambda d: d["series"].append(3), "it is none that belay writes"),
        (lambda d: d.update(command="belay 'average"), "No closing quotation"),
        (lambda d: d.update(command=d["command"].replace("ema", "belay")), "its command is that of another average"),
        (lambda d: d["series"][1].update(name="other"), "its command is that of another average"),
        (lambda d: d["rule"].update(decay=0.5), "its parameters contradict each other"),
        (lambda d: d["rule"].update(half_life=7.0), "its parameters contradict each other"),
        (lambda d: d["rule"].update(half_life=0.0), "its parameters contradict each other"),
        (lambda d: d["rule"].update(half_life=-d["rule"]["half_life"]), "its parameters contradict each other"),
        (lambda d: d["rule"].update(inertia=0.5, damping_ratio=3.0), "its parameters contradict each other"),
        (lambda d: d["rule"].update(more=1), "its parameters contradict each other"),
        (lambda d: d["rule"].update(debias=""), "its parameters are no numbers that can be"),
        (lambda d: d["rule"].update(feedback=1.0), "its parameters are not those of its method"),
        (lambda d: d["rule"].update(damping_ratio=3.0), "its parameters are not those of its method"),
        (lambda d: d.update(lora="weird"), "its lora is 'weird'"),
        (lambda d: d.update(accumulation="float16"), "its accumulation is 'float16'"),
        (lambda d: d["policies"].update(last="abc"), "it is none that belay writes"),
        (lambda d: d["series"][0].update(step=100.9), "a step, a tick or a size in it is no number that can be"),
        (lambda d: d["series"][0].update(bytes=-1), "a step, a tick or a size in it is no number that can be"),
    ],
)
def test_a_damaged_record(change: Callable[..., Any], what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        card(damaged(change))
    assert str(caught.value) == f"belay.json: has a damaged record of how it was made: {what}"
    assert caught.value.hint == "make it again from its checkpoints"


def test_importing_costs_nothing_of_the_hub() -> None:
    heavy = "{'yaml', 'huggingface_hub', 'matplotlib', 'torch'}"
    program = f"import sys, belay_cli.publish; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
