from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from belay_cli.errors import BelayError, CheckpointError, UsageError
from belay_cli.publish import card, front_matter, read_eval_results
from belay_cli.publish.card import BEGIN, END
from belay_cli.publish.hub_rules import LICENSES, PIPELINE_TAGS
from belay_cli.publish.markdown import block
from belay_cli.rules import RuleOptions, resolve_rule, summarize

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "transformers_version": "4.50.0"}
ACCURACY = [EvalResult("other", "unknown", "Unknown", "accuracy", 0.959)]


def document(options=None, ticks=(100, 200, 300), unit="step", names=None, **changes):
    """belay.json of an average of these ticks."""
    rule = resolve_rule(options or RuleOptions(half_life="100"), ticks, unit)
    names = names or [f"checkpoint-{tick}" for tick in ticks]
    series = [
        {"name": n, "step": t, "tick": t, "coefficient": c, "bytes": 1, "fingerprint": "0" * 64}
        for n, t, c in zip(names, ticks, rule.coefficients(ticks).tolist(), strict=True)
    ]
    return {
        "schema": 1,
        "version": "0.1.0",
        "rule": {**rule.describe(), "a": rule.dynamics.a},
        "series": series,
        "policies": {"average": [], "last": [], "drop": []},
        "command": shlex.join(["belay", "average", *rule.arguments(), *names]),
        "copies": ["config.json"],
        "dtype": "same",
        "accumulation": "float64",
        "versions": {"torch": "2.13.0", "safetensors": "0.8.0"},
        "digests": {"w": "0" * 64},
        **changes,
    }


def from_hub(doc, repo="acme/run"):
    for entry in doc["series"]:
        entry |= {"repo": repo, "revision": "0123456789abcdef" * 2 + "01234567"}
    return doc


def body(text):
    return text.split("\n---\n", 1)[1]


def data(text):
    return ModelCard(text).data.to_dict()


SMALL = """\
---
license: mit
library_name: transformers
base_model: acme/run
base_model_relation: merge
tags:
- belay
- ema
- weight-averaging
model-index:
- name: run-ema
  results:
  - task:
      type: text-generation
    dataset:
      name: Unknown
      type: unknown
    metrics:
    - type: accuracy
      value: 0.959
---

# run-ema

<!-- belay:begin -->
## Averaged weights

These weights are an average of 3 checkpoints of one training run, steps 100 to 300: an exponential moving average \
(EMA); half-life 100 steps. They were computed after training, from the saved checkpoints: every averaged tensor is \
the sum of the checkpoints' tensors, each times its weight below.

![The weight of every checkpoint in the average](coefficients.png)

The average lags 108 steps behind the last checkpoint; it is as good as 3.0 checkpoints averaged equally.

### Checkpoints

| step | checkpoint | weight |
| ---: | :--- | ---: |
| 100 | `checkpoint-100` | 35.9% |
| 200 | `checkpoint-200` | 35.9% |
| 300 | `checkpoint-300` | 28.1% |

### Loading

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("acme/run-ema")
```

### Evaluation

| task | dataset | metric | value |
| :--- | :--- | :--- | ---: |
| `text-generation` | not stated | `accuracy` | 0.959 |

### How it was made

```sh
belay average --method ema --unit step --half-life 100.0 checkpoint-100 \\
    checkpoint-200 checkpoint-300
```

By belay `0.1.0` with torch `2.13.0`; sums in float64, rounded once to the dtype of the output. `belay.json` records \
all of it.

### How to check it

```sh
pip install belay-cli
hf download acme/run-ema --local-dir run-ema
belay verify run-ema --checkpoints RUN
```

`RUN` is the directory of the checkpoints above. `belay verify` checks the SHA-256 of every tensor, derives the \
weights from the rule again, and recomputes the values from the checkpoints by the recursion.
<!-- belay:end -->
"""


def small(**options):
    doc = document()
    for entry in doc["series"]:
        entry["repo"] = "acme/run"
    given_options = {
        "config": LLAMA,
        "source_card": "---\nlicense: mit\n---\n# Run\n",
        "repo_id": "acme/run-ema",
        "picture": "coefficients.png",
        "eval_results": ACCURACY,
    }
    return card(doc, **{**given_options, **options})


def test_a_front_matter_that_unfolds():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    bomb = "\n".join(lines)
    with pytest.raises(CheckpointError, match="the front matter unfolds to more than any card says"):
        card(document(), existing=f"---\n{bomb}\n---\n")


def test_a_body_of_many_empty_lines():
    text = card(document(), existing="\n" * 200_000 + "x")
    assert text.endswith(END + "\n")


def test_a_small_card():
    assert small() == SMALL


def test_the_sentence_of_the_lag_is_that_of_the_summary():
    doc = document(ticks=tuple(range(100, 2001, 100)))
    c = resolve_rule(RuleOptions(half_life="100"), range(100, 2001, 100), "step").coefficients(range(100, 2001, 100))
    summary = summarize(c, range(100, 2001, 100))
    expected = f"lags {summary.mean_lag:.0f} steps behind the last checkpoint; it is as good as "
    assert expected + f"{summary.effective_checkpoints:.1f} checkpoints" in card(doc)


def test_huggingface_hub_reads_it_and_writes_the_same():
    text = small()
    assert str(ModelCard(text)) == text
    assert data(str(ModelCard(text))) == data(text)
    assert ModelCardData(**data(text)).to_dict() == data(text)
    assert ModelCard(text).data.eval_results[0].metric_value == 0.959


@pytest.mark.parametrize(
    "options, text",
    [
        (RuleOptions(debias=True), "a debiased exponential moving average (EMA); half-life 100 steps."),
        (
            RuleOptions(damping_ratio=0.5, half_life=50),
            "an exponential moving average (EMA) with inertia, a damped oscillator; half-life 50 steps, inertia 0.9",
        ),
        (
            RuleOptions(method="belay", half_life=50),
            "BELAY, in which a damped spring draws the average to the model and the model to the average; "
            "half-life 50 steps, feedback 1, curvature 1.",
        ),
    ],
)
def test_each_method_in_words(options, text):
    shown = card(document(options))
    assert text in shown
    assert ("(https://arxiv.org/abs/2310.13854); the discretization is belay's own." in shown) == (not options.debias)


def test_one_checkpoint():
    shown = card(document(ticks=(5,)))
    assert "# Average of 1 checkpoint\n" in shown
    assert "an average of 1 checkpoint of one training run, step 5:" in shown
    assert "| 5 | `checkpoint-5` | 100.0% |" in shown


def test_checkpoint_unit_has_no_steps():
    shown = card(document(ticks=(0, 1), unit="checkpoint", names=["a.safetensors", "b.safetensors"]))
    assert "| checkpoint | weight |\n| :--- | ---: |\n| `a.safetensors` | 99.3% |" in shown
    assert "of one training run: an exp" in shown


def test_text_bars_without_a_picture_have_a_negative_weight_too():
    shown = small(picture=None)
    assert "![" not in shown
    assert f"\n```\n100   35.9%  {'█' * 40}\n200   35.9%  {'█' * 40}\n300   28.1%  {'█' * 31}\n```\n" in shown
    ticks = range(100, 3001, 100)
    assert re.search(r"\n1700 +-\d\.\d%  ░+\n", card(document(RuleOptions(damping_ratio=0.3, half_life=150), ticks)))


@pytest.mark.parametrize("method", ["ema", "belay"])
@pytest.mark.parametrize("count", [41, 300, 1000])
def test_many_checkpoints_share_rows_that_cover_each_once(method, count):
    ticks = range(10, 10 * count + 1, 10)
    options = RuleOptions(method=method, half_life="5%")
    rows = re.findall(r"^\| (\d+)(?: … (\d+))? \| .* \| (-?[\d.]+)% \|$", card(document(options, ticks)), re.M)
    covered = [tick for first, last, _ in rows for tick in range(int(first), int(last or first) + 1, 10)]
    assert covered == list(ticks)
    assert len(rows) <= 42
    assert sum(float(weight) for *_, weight in rows) == pytest.approx(100, abs=0.05 * len(rows))
    assert f"`belay.json` lists all {count}." in card(document(options, ticks))


def test_a_heavy_checkpoint_among_light_ones_has_its_own_row():
    doc = document(ticks=range(60))
    for i, entry in enumerate(doc["series"]):
        entry["coefficient"] = 0.41 if i == 31 else 0.01
    assert "| 30 | `checkpoint-30` | 1.0% |\n| 31 | `checkpoint-31` | 41.0% |\n| 32 … 34 |" in card(doc)


def test_forty_checkpoints_have_a_row_each():
    assert card(document(ticks=range(40))).count("| `checkpoint-") == 40


def test_a_long_command_shows_its_ends():
    shown = card(document(ticks=range(1000)))
    assert re.search(r" checkpoint-0\s(\\\n +)?checkpoint-1 … checkpoint-999\n```\n", shown)
    assert len(shown) < 12_000


def test_revisions_are_shown_when_they_are_commits():
    shown = card(from_hub(document()))
    assert "| 100 | `checkpoint-100` | `0123456789ab` | 35.9% |" in shown
    doc = document()
    doc["series"][0]["revision"] = "<b>main</b>"
    assert "revision" not in card(doc)


def test_policies_are_said():
    shown = card(document(policies={"average": [], "last": ["lm_head*"], "drop": ["a|b"]}))
    assert "Tensors that match `lm_head*` are those of the last checkpoint. Tensors that match `a\\x7cb` are" in shown


@pytest.mark.parametrize(
    "config, copies, lines",
    [
        (LLAMA, ["tokenizer_config.json"], ["from transformers import AutoModelForCausalLM, AutoTokenizer"]),
        ({**LLAMA, "architectures": ["GPT2LMHeadModel"]}, [], ["from transformers import AutoModelForCausalLM"]),
        ({**LLAMA, "architectures": ["BertForMaskedLM"]}, [], ["from transformers import AutoModelForMaskedLM"]),
        ({**LLAMA, "architectures": ["BertModel"]}, [], ["from transformers import AutoModel"]),
        (
            {**LLAMA, "architectures": ["T5ForConditionalGeneration"]},
            [],
            ["from transformers import T5ForConditionalGeneration"],
        ),
        (
            {**LLAMA, "auto_map": {"AutoModelForCausalLM": "m.X"}},
            [],
            ['model = AutoModelForCausalLM.from_pretrained("acme/run-ema", trust_remote_code=True)'],
        ),
        ({"_class_name": "UNet2DModel"}, [], ['model = UNet2DModel.from_pretrained("acme/run-ema")']),
        ({}, ["adapter_config.json"], ["from peft import AutoPeftModel"]),
        ({"peft_type": "LORA", "task_type": "CAUSAL_LM"}, [], ["from peft import AutoPeftModelForCausalLM"]),
        ({**LLAMA, "architectures": ['x"; import os']}, [], ["from safetensors.torch import load_file"]),
        ({"model_type": "llama"}, [], ["from safetensors.torch import load_file"]),
        ({}, [], ['for file in Path(snapshot_download("acme/run-ema")).glob("*.safetensors"):']),
    ],
)
def test_how_to_load_it(config, copies, lines):
    shown = card(document(copies=copies), config=config, repo_id="acme/run-ema").splitlines()
    for line in lines:
        assert line in shown
    python = "\n".join(shown[shown.index("```python") + 1 :]).split("\n```")[0]
    compile(python, "card", "exec")


# --- the front matter ---


def test_the_base_model_is_the_run_then_what_its_card_says_then_what_its_config_says():
    doc, source, config = document(), {"base_model": "acme/base"}, {"_name_or_path": "acme/start"}
    assert front_matter(from_hub(document()), source, config)["base_model"] == "acme/run"
    assert front_matter(doc, source, config)["base_model"] == "acme/base"
    assert front_matter(doc, {}, config) | {"tags": 0} == {
        "base_model": "acme/start",
        "base_model_relation": "merge",
        "tags": 0,
    }


@pytest.mark.parametrize(
    "path", ["/data/run", "./run", "run", "out/checkpoint-500", "runs/llama", "a/b/c", "~/x", "C:\\x", 3, None, ""]
)
def test_a_path_is_no_base_model_and_nothing_is_invented(path):
    assert front_matter(document(), {}, {"_name_or_path": path}) == {"tags": ["belay", "ema", "weight-averaging"]}


def test_several_runs_and_the_repository_itself():
    doc = from_hub(document())
    doc["series"][0]["repo"] = "acme/other"
    assert front_matter(doc, {}, {})["base_model"] == ["acme/other", "acme/run"]
    assert front_matter(doc, {}, {}, repo_id="acme/run")["base_model"] == "acme/other"
    assert "base_model_relation" not in front_matter(from_hub(document()), {}, {}, repo_id="acme/run")


def test_an_average_of_adapters_is_an_adapter():
    config = {"peft_type": "LORA"}
    assert front_matter(document(), {"base_model": "acme/base"}, config)["base_model_relation"] == "adapter"
    assert front_matter(from_hub(document()), {}, config)["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    "source, expected",
    [
        ({"license": "mit"}, {"license": "mit"}),
        ({"license": "Apache 2.0"}, {"license": "apache-2.0"}),
        ({"license": ["mit", "apache-2.0"]}, {"license": ["mit", "apache-2.0"]}),
        ({"license": "My Own!"}, {"license": "other", "license_name": "my-own"}),
        (
            {"license": "other", "license_name": "Coqui", "license_link": "https://coqui.ai/cpml"},
            {"license": "other", "license_name": "coqui", "license_link": "https://coqui.ai/cpml"},
        ),
        ({"license": "other", "license_link": "javascript:alert(1)"}, {"license": "other"}),
        ({"license": "mit", "license_link": "LICENSE"}, {"license": "mit"}),
        ({"license": 3}, {}),
        ({"language": "en"}, {"language": "en"}),
        ({"language": ["en", False, "English"]}, {"language": ["en", "no"]}),
        ({"language": "English"}, {}),
        ({"pipeline_tag": "text-generation"}, {"pipeline_tag": "text-generation"}),
        ({"pipeline_tag": "telepathy"}, {}),
        ({"datasets": "imdb"}, {"datasets": ["imdb"]}),
        ({"datasets": ["acme/text", None, "a b", "x/y/z"]}, {"datasets": ["acme/text"]}),
        ({"metrics": ["accuracy", 3]}, {"metrics": ["accuracy"]}),
        ({"library_name": "timm"}, {"library_name": "timm"}),
        ({"widget": [{"text": "x"}], "thumbnail": "x", "extra_gated_prompt": "x"}, {}),
    ],
)
def test_what_is_inherited_obeys_the_rules_of_the_hub(source, expected):
    found = front_matter(document(), source, {})
    assert found.pop("tags") == ["belay", "ema", "weight-averaging"]
    assert found == expected


def test_tags_are_merged():
    assert front_matter(document(), {"tags": ["ema", "trl", "trl", 3, "a\nb"]}, {})["tags"] == [
        "ema",
        "trl",
        "belay",
        "weight-averaging",
    ]


def test_the_lists_of_the_hub_hold_what_a_model_card_has_most():
    assert {"mit", "apache-2.0", "llama3.1", "gemma", "other"} <= LICENSES
    assert {"text-generation", "image-classification", "feature-extraction"} <= PIPELINE_TAGS
    assert all(re.fullmatch(r"[a-z0-9.+-]+", word) for word in LICENSES | PIPELINE_TAGS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    ["license", "license_name", "license_link", "language", "tags", "datasets", "metrics", "base_model", "library_name"]
)


@given(st.dictionaries(keys, json_values | st.lists(st.text(max_size=30), max_size=4)), st.text(max_size=20))
def test_any_source_card_gives_front_matter_that_survives(source, metric):
    results = [EvalResult("other", "unknown", "Unknown", metric, 1.5)]
    found = front_matter(document(), source, {}, results)
    text = card(document(), source_card=f"---\n{yaml.safe_dump(source)}---\n", eval_results=results)
    assert data(text) == found
    assert str(ModelCard(text)) == text
    assert ("base_model" in found) == ("base_model_relation" in found)


# --- a card that is there ---

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


def test_everything_of_an_existing_card_stays():
    text = card(document(), existing=THEIRS, config=LLAMA)
    top = (
        "---\n# my comment\nlicense: \"mit\"   # quoted\ntags:\n- mine   # first\n- 'belay'\n- ema\n"
        "- weight-averaging\nlanguage: [en]\nlibrary_name: transformers\n---\n"
    )
    assert text.startswith(top + body(THEIRS) + f"\n\n{BEGIN}\n")
    assert text.endswith(END + "\n")


def test_only_the_section_is_renewed():
    text = card(document(), existing=THEIRS)
    edited = text.replace(END, END + "\n\nMore of mine.").replace("# Mine", "# Mine too")
    renewed = card(document(RuleOptions(method="belay")), existing=edited)
    assert renewed.split(BEGIN)[0] == edited.split(BEGIN)[0]
    assert renewed.split(END)[1] == edited.split(END)[1] == "\n\nMore of mine.\n"
    assert "BELAY" in renewed and "BELAY" not in edited


def test_the_users_own_values_win():
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


def test_crlf_stays_crlf():
    existing = THEIRS.replace("\n", "\r\n")
    text = card(document(), existing=existing)
    assert "\n" not in text.replace("\r\n", "")
    assert text.replace("\r\n", "\n") == card(document(), existing=THEIRS)
    assert card(document(), existing=text) == text


@pytest.mark.parametrize("existing", ["", "# Mine\n", "\ufeff# Mine", "text", "\r\n", "---\n---\n", "a\n---\nb\n---\n"])
def test_a_card_without_front_matter_gets_one(existing):
    text = card(document(), existing=existing)
    assert data(text.removeprefix("\ufeff"))["tags"] == ["belay", "ema", "weight-averaging"]
    assert existing.removeprefix("\ufeff") in text
    assert text.startswith("\ufeff") == existing.startswith("\ufeff")
    assert card(document(), existing=text) == text


@pytest.mark.parametrize("block", ["tags: [a", "- a\n- b", "just text", "a: b: c", "x: !!float a", "x: !!int ''", "*x"])
@pytest.mark.parametrize("where", ["existing", "source_card"])
def test_broken_front_matter_names_the_file_and_the_mend(block, where):
    with pytest.raises(CheckpointError) as caught:
        card(document(), **{where: f"---\n{block}\n---\n# Mine\n"})
    assert caught.value.file == ("README.md" if where == "existing" else "README.md beside the checkpoints")
    assert "between the two --- lines" in caught.value.hint


def test_where_yaml_broke():
    with pytest.raises(CheckpointError, match=r"^README\.md: the front matter is not YAML at line 3$"):
        card(document(), existing="---\na: 1\nb: [\n---\n")


@pytest.mark.parametrize("body", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_marks_that_are_not_one_pair(body):
    with pytest.raises(CheckpointError, match="the marks of belay's section are not one pair"):
        card(document(), existing=f"# Mine\n{body}\n")


def test_lines_of_dashes_with_nothing_between_are_no_front_matter():
    text = card(document(), existing="---\r\n---")
    assert "\r\n---\r\n---\r\n---\r\n\r\n<!-- belay:begin" in text


def test_a_mark_in_running_text_is_no_mark():
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
def test_every_way_to_write_yaml_keeps_its_values(block, expected):
    text = card(document(), existing=f"---\n{block}\n---\n")
    before, after = yaml.safe_load(block) or {}, yaml.safe_load(text.split("\n---\n")[0])
    assert after["tags"] == expected
    assert {**after, "tags": 0} == {**before, "tags": 0}
    assert card(document(), existing=text) == text


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
front = st.dictionaries(words, json_values, max_size=4) | st.fixed_dictionaries({"tags": st.lists(words, max_size=3)})
bodies = st.lists(words | st.sampled_from([BEGIN, END, "---", "```", "", "| a |"]), max_size=6)


@st.composite
def existing_cards(draw):
    lines = draw(bodies)
    if draw(st.booleans()):
        block = yaml.safe_dump(draw(front), allow_unicode=draw(st.booleans()), default_flow_style=draw(st.booleans()))
        lines = ["---", *block.splitlines(), *draw(st.sampled_from([[], ["# note"], [""]])), "---", *lines]
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n", "\r\n"]))


OURS = re.compile(r"(?<![^\r\n])[ \t]*<!-- belay:begin -->[ \t]*(?=[\r\n])[\s\S]*<!-- belay:end -->[ \t]*(?![^\r\n])")


def halves(text):
    """The YAML of a card and what follows it."""
    match = re.match(r"\s*---(?:\r\n|\n)([\s\S]*?)(?:\r\n|\n)---[ \t]*(?:\r\n|\n|\Z)", text)
    return (match[1], text[match.end() :]) if match else ("", text)


@given(existing_cards(), st.sampled_from([None, ACCURACY]))
def test_twice_is_once_and_their_text_stays(existing, results):
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


# --- evaluation results ---


def written(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_bare_metrics(tmp_path):
    assert read_eval_results(written(tmp_path, {"accuracy": 0.959, "loss": 1})) == [
        EvalResult("other", "unknown", "Unknown", "accuracy", 0.959),
        EvalResult("other", "unknown", "Unknown", "loss", 1),
    ]


def test_bare_metrics_have_the_task_of_the_model_where_it_is_known():
    for source, config, task in (
        ({}, {}, "other"),
        ({}, LLAMA, "text-generation"),
        ({"pipeline_tag": "translation"}, LLAMA, "translation"),
    ):
        index = front_matter(document(), source, config, ACCURACY)["model-index"]
        assert index[0]["results"][0]["task"] == {"type": task}
        assert index[0]["name"] == "belay-average"


def test_lm_evaluation_harness(tmp_path):
    content = {
        "results": {
            "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.25},
            "gsm8k": {"exact_match,strict-match": 0.125, "exact_match_stderr,strict-match": "N/A", "sample_len": 9},
            "old": {"acc": 0.75, "acc_stderr": 0.1},
        },
        "versions": {"arc_easy": 1.0},
    }
    results = read_eval_results(written(tmp_path, content))
    assert [(r.dataset_name, r.metric_type, r.metric_name, r.metric_value) for r in results] == [
        ("arc_easy", "acc", None, 0.5),
        ("arc_easy", "acc_norm", None, 0.25),
        ("gsm8k", "exact_match", "exact_match (strict-match)", 0.125),
        ("old", "acc", None, 0.75),
    ]
    assert {r.task_type for r in results} == {"text-generation"}
    text = small(eval_results=results)
    assert "| `text-generation` | `gsm8k` | `exact_match (strict-match)` | 0.125 |" in text
    assert data(str(ModelCard(text))) == data(text)


def test_fields_of_the_hub(tmp_path):
    fields = {
        "task_type": "text-generation",
        "dataset_type": "acme/text",
        "dataset_name": "Text",
        "dataset_config": "en",
        "dataset_split": "test",
        "metric_type": "wer",
        "metric_value": "20.0 ± 1.2",
        "metric_args": {"order": 4},
    }
    results = read_eval_results(written(tmp_path, [fields]))
    assert results == [EvalResult(**fields)]
    text = small(eval_results=results)
    assert "| `text-generation` | `Text`, `en`, `test` | `wer` | `20.0 ± 1.2` |" in text
    assert data(text)["model-index"][0]["results"][0]["metrics"] == [
        {"type": "wer", "value": "20.0 ± 1.2", "args": {"order": 4}}
    ]


GOOD = {"task_type": "a", "dataset_type": "b", "dataset_name": "c", "metric_type": "d", "metric_value": 1}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        (b"\xff".decode("latin1"), "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": NaN}', "holds NaN, which is no result"),
        ('{"a": -Infinity}', "holds -Infinity, which is no result"),
        ('{"a": 1e999}', "'a' is not finite"),
        ({"a": 10**400}, "'a' is not finite"),
        ({"a": True}, "'a' is not a number"),
        ({"a": "0.5"}, "'a' is not a number"),
        ({"a": {"b": 1}}, "'a' is not a number"),
        ({"": 1}, "has a metric without a name"),
        ({}, "holds no results"),
        ([], "holds no results"),
        ({"results": {}}, "holds no results"),
        ({"results": {"t": 1}}, "'t' has no metrics"),
        ({"results": {"t": {"acc,none": None}}}, "'t: acc,none' is not a number"),
        ("3", "is neither an object nor a list"),
        ([3], "is a list of something else than objects"),
        ([{**GOOD, "metric_value": None}], "'metric_value' is not a number"),
        ([{**GOOD, "dataset_name": None}], "has a result whose 'dataset_name' is not text"),
        ([{**GOOD, "metric_config": {"scale": 5}}], "has a result whose 'metric_config' is not text"),
        ([{**GOOD, "dataset_args": "x"}], "has a result whose 'dataset_args' is not an object"),
        ([{**GOOD, "verified": True}], "has a result with 'verified', which is not for you to set"),
        ([{**GOOD, "colour": "x"}], "has a result with 'colour', which is not for you to set"),
        ([{k: v for k, v in GOOD.items() if k != "task_type"}], "has a result without 'task_type'"),
        ([{**GOOD, "source_name": "x"}], "If `source_name` is provided, `source_url` must also be provided."),
    ],
)
def test_results_that_are_none(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(BelayError) as caught:
        read_eval_results(path)
    assert (caught.value.message, caught.value.file) == (message, str(path))
    assert 'write {"accuracy": 0.96}' in caught.value.hint


def test_a_file_of_results_that_is_absent_or_far_too_large(tmp_path):
    with pytest.raises(BelayError, match="cannot be read: No such file"):
        read_eval_results(tmp_path / "absent.json")
    path = written(tmp_path, '{"a": 1' + " " * 10_000_000 + "}")
    with pytest.raises(BelayError, match=r"is larger than 10\.0 MB"):
        read_eval_results(path)


THEIR_RESULTS = """\
---
model-index:
- name: mine   # my name
  results:
  - task: {type: text-generation}
    dataset: {type: acme/text, name: Text}
    metrics:
    - type: accuracy
      value: 0.5
---
"""


def test_our_results_are_renewed_and_theirs_stay():
    first = card(document(), existing=THEIR_RESULTS, config=LLAMA, eval_results=ACCURACY)
    better = [EvalResult("other", "unknown", "Unknown", "accuracy", 0.97)]
    second = card(document(), existing=first, config=LLAMA, eval_results=better)
    values = [[r.metric_value for r in ModelCard(t).data.eval_results] for t in (first, second)]
    assert values == [[0.5, 0.959], [0.5, 0.97]]
    assert ModelCard(second).data.model_name == "mine"
    third = card(document(), existing=second, config=LLAMA)
    assert data(third)["model-index"] == data(THEIR_RESULTS)["model-index"]
    assert "### Evaluation" not in third


def test_results_that_are_gone_leave_no_key_behind():
    first = card(document(), existing="---\na: 1\n---\n", eval_results=ACCURACY)
    assert "model-index" in data(first)
    assert card(document(), existing=first) == card(document(), existing="---\na: 1\n---\n")


def test_a_result_of_theirs_for_the_same_measurement_stays():
    ours = [EvalResult("text-generation", "acme/text", "Text", "accuracy", 0.9)]
    text = card(document(), existing=THEIR_RESULTS, eval_results=ours)
    assert [r.metric_value for r in ModelCard(text).data.eval_results] == [0.5]
    assert "# my name" in text
    assert card(document(), existing=text, eval_results=ours) == text


def test_their_results_stay_in_their_places_when_ours_are_the_same():
    existing = THEIR_RESULTS.replace("value: 0.5\n", "value: 0.5\n    - type: loss\n      value: 2\n")
    ours = [EvalResult("text-generation", "acme/text", "Text", "accuracy", 0.5)]
    text = card(document(), existing=existing, eval_results=ours)
    assert "| `accuracy` | 0.5 |" in text
    assert card(document(), existing=text, eval_results=ours) == text


@pytest.mark.parametrize("index", ["3", "[{name: a, results: []}, {name: b, results: []}]", "[{name: a}]"])
def test_a_model_index_that_is_not_of_one_model(index):
    existing = f"---\nmodel-index: {index}\n---\n"
    assert f"model-index: {index}\n" in card(document(), existing=existing)
    with pytest.raises(CheckpointError, match="the model-index of its front matter is not that of one model"):
        card(document(), existing=existing, eval_results=ACCURACY)


# --- what comes from others ---

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


def structure(text):
    """The tokens of a card's Markdown, and of their inlines."""
    tokens = MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(body(text))
    return [one for token in tokens for one in (token, *(token.children or []))]


def harmless(text):
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


def of_a_stranger(name):
    command = shlex.join(["belay", "average", "--method", "ema", name])
    policies = {"average": [], "last": [name], "drop": [name]}
    return document(
        ticks=(7,),
        names=[name],
        command=command,
        policies=policies,
        version=name,
        copies=[name],
        versions={"torch": name},
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_nothing_of_the_structure(name):
    text = card(of_a_stranger(name))
    harmless(text)
    assert card(of_a_stranger(name), existing=text) == text


@given(st.text(max_size=40) | st.text("`|<>$\\\n!-()[]*_~ab", max_size=40))
def test_no_name_changes_the_structure(name):
    harmless(card(of_a_stranger(name)))


@given(st.text(max_size=40))
def test_front_matter_survives_any_names_in_the_record(name):
    doc = of_a_stranger(name)
    doc["series"][0] |= {"repo": name, "revision": name}
    text = card(doc)
    assert str(ModelCard(text)) == text
    assert data(text)["tags"] == ["belay", "ema", "weight-averaging"]


def test_names_are_shown_with_escapes():
    text = card(document(names=["a|b", "`c`", "d\ne"]))
    assert "| 100 | `a\\x7cb` | 35.9% |\n| 200 | `\\x60c\\x60` | 35.9% |\n| 300 | `d\\ne` | 28.1% |" in text


def test_a_fence_is_longer_than_any_in_the_block():
    assert block(["a", "````"], "sh") == ["`````sh", "a", "````", "`````"]


def test_hostile_results_and_pictures():
    results = [EvalResult(END, "<b>", "x|y", "$$", f"`{BEGIN}")]
    text = small(eval_results=results, picture="a b](x)<.png")
    assert text.count(BEGIN) == text.count(END) == 2  # once each as YAML's text, which is no mark: it is not a line
    assert "![The weight of every checkpoint in the average](a%20b%5D%28x%29%3C.png)" in text
    assert small(eval_results=results, picture="a b](x)<.png", existing=text) == text


def test_a_command_that_no_shell_reads_is_shown_as_it_is():
    assert "\n```sh\nbelay 'average\n```\n" in card(document(command="belay 'average"))


@pytest.mark.parametrize("repo", ["a/b/c", "a b", 'x"; import os', "", "../x", "a/b.git", "ä/b"])
def test_an_impossible_repository(repo):
    with pytest.raises(UsageError) as caught:
        card(document(), repo_id=repo)
    assert caught.value.hint == "write ORG/NAME"


def test_a_title_is_a_title():
    assert "\n# run_ema\n" in card(document(), repo_id="acme/run_ema")
    assert "\n# \\_run\\_\n" in card(document(), repo_id="acme/_run_")


def damaged(change):
    doc = document()
    change(doc)
    return doc


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("rule"),
        lambda d: d.update(series=[]),
        lambda d: d.update(series="abc"),
        lambda d: d.update(policies=[]),
        lambda d: d["rule"].update(method="<b>"),
        lambda d: d["rule"].update(unit="<b>"),
        lambda d: d["rule"].update(half_life=float("inf")),
        lambda d: d["rule"].update(half_life="x"),
        lambda d: d["series"][0].update(coefficient=float("nan")),
        lambda d: d["series"][0].update(coefficient=2.0),
        lambda d: d["series"][0].update(tick=200),
        lambda d: d["series"][2].update(tick=2**80),
        lambda d: d["series"][0].update(tick=float("inf")),
        lambda d: d["series"].append(3),
    ],
)
def test_a_damaged_record(change):
    with pytest.raises(CheckpointError) as caught:
        card(damaged(change))
    assert str(caught.value) == "belay.json: is damaged, or not from belay"


def test_importing_costs_nothing_of_the_hub():
    heavy = "{'yaml', 'huggingface_hub', 'matplotlib', 'torch'}"
    program = f"import sys, belay_cli.publish; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
