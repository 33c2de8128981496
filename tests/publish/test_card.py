"""The card: what it says of every kind of average."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from belay_cli.errors import CheckpointError
from belay_cli.publish.card import END
from belay_cli.rules import Belay, Ema, summarize
from tests.publish.cards import LLAMA, SMALL, card, data, document, from_hub, small


def test_a_front_matter_that_unfolds() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    bomb = "\n".join(lines)
    with pytest.raises(CheckpointError, match="the front matter unfolds to more than any card says"):
        card(document(), existing=f"---\n{bomb}\n---\n")


def test_a_body_of_many_empty_lines() -> None:
    text = card(document(), existing="\n" * 200_000 + "x")
    assert text.endswith(END + "\n")


def test_a_small_card() -> None:
    assert small() == SMALL


def test_the_sentence_of_the_lag_is_that_of_the_summary() -> None:
    doc = document(ticks=tuple(range(100, 2001, 100)))
    c = Ema(half_life="100").resolve(range(100, 2001, 100), "step").coefficients(range(100, 2001, 100))
    summary = summarize(c, range(100, 2001, 100))
    expected = f"lags {summary.mean_lag:.0f} steps behind the last checkpoint; its effective number of "
    assert expected + f"checkpoints is {summary.effective_checkpoints:.1f}, if" in card(doc)


def test_huggingface_hub_reads_it_and_writes_the_same() -> None:
    text = small()
    assert str(ModelCard(text)) == text
    assert data(str(ModelCard(text))) == data(text)
    assert ModelCardData(**data(text)).to_dict() == data(text)  # type: ignore[no-untyped-call]
    assert ModelCard(text).data["eval_results"][0].metric_value == 0.959


@pytest.mark.parametrize(
    "options, text",
    [
        (
            Ema(debias=True),
            "an exponential moving average (EMA); half-life 100 steps = 1.0 checkpoints, debiased · decay ",
        ),
        (
            Ema(damping_ratio=0.5, half_life=50),
            "an exponential moving average (EMA) with inertia, a damped oscillator; "
            "half-life 50 steps = 0.5 checkpoints, "
            "inertia 0.9",
        ),
        (
            Belay(half_life=50),
            "BELAY, in which a damped spring draws the average to the model and the model to the average; "
            "half-life 50 steps = 0.5 checkpoints, feedback 1, curvature 1 · decay 0.98623 a step.",
        ),
    ],
)
def test_each_method_in_words(options: Any, text: str) -> None:
    shown = card(document(options))
    assert text in shown
    assert ("(https://arxiv.org/abs/2310.13854); the discretization is belay's own." in shown) == (
        not getattr(options, "debias", False)
    )


def test_one_checkpoint() -> None:
    shown = card(document(ticks=(5,)))
    assert "# Average of 1 checkpoint\n" in shown
    assert "an average of 1 checkpoint of one training run, step 5:" in shown
    assert "| 5 | `checkpoint-5` | 100.0% |" in shown


def test_checkpoint_unit_has_no_steps() -> None:
    shown = card(document(ticks=(0, 1), unit="checkpoint", names=["a.safetensors", "b.safetensors"]))
    assert "| checkpoint | weight |\n| :--- | ---: |\n| `a.safetensors` | 99.3% |" in shown
    assert "of one training run: an exp" in shown


def test_text_bars_without_a_picture_have_a_negative_weight_too() -> None:
    shown = small(picture=None)
    assert "![" not in shown
    assert f"\n```\n100   35.9%  {'█' * 40}\n200   35.9%  {'█' * 40}\n300   28.1%  {'█' * 31}\n```\n" in shown
    ticks = range(100, 3001, 100)
    assert re.search(r"\n1700 +-\d\.\d%  ░+\n", card(document(Ema(damping_ratio=0.3, half_life=150), ticks)))


@pytest.mark.parametrize("method", ["ema", "belay"])
@pytest.mark.parametrize("count", [41, 300, 1000])
def test_many_checkpoints_share_rows_that_cover_each_once(method: str, count: int) -> None:
    ticks = range(10, 10 * count + 1, 10)
    options = {"ema": Ema, "belay": Belay}[method](half_life="5%")
    rows = re.findall(r"^\| (\d+)(?: … (\d+))? \| .* \| (-?[\d.]+)% \|$", card(document(options, ticks)), re.M)
    covered = [tick for first, last, _ in rows for tick in range(int(first), int(last or first) + 1, 10)]
    assert covered == list(ticks)
    assert len(rows) <= 42
    assert sum(float(weight) for *_, weight in rows) == pytest.approx(100, abs=0.05 * len(rows))
    assert f"`belay.json` lists all {count}." in card(document(options, ticks))


def test_a_heavy_checkpoint_among_light_ones_has_its_own_row() -> None:
    doc = document(ticks=range(60))
    for i, entry in enumerate(doc["series"]):
        entry["coefficient"] = 0.41 if i == 31 else 0.01
    assert "| 30 | `checkpoint-30` | 1.0% |\n| 31 | `checkpoint-31` | 41.0% |\n| 32 … 34 |" in card(doc)


def test_forty_checkpoints_have_a_row_each() -> None:
    assert card(document(ticks=range(40))).count("| `checkpoint-") == 40


def test_a_long_command_shows_its_ends() -> None:
    shown = card(document(ticks=range(1000)))
    assert re.search(r" checkpoint-0\s(\\\n +)?checkpoint-1 … checkpoint-999\n```\n", shown)
    assert len(shown) < 12_000


def test_revisions_are_shown_when_they_are_commits() -> None:
    shown = card(from_hub(document()))
    assert "| 100 | `checkpoint-100` | `0123456789ab` | 35.9% |" in shown
    doc = document()
    doc["series"][0]["revision"] = "<b>main</b>"
    assert "revision" not in card(doc)


def test_policies_are_said() -> None:
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
def test_how_to_load_it(config: dict[str, Any], copies: list[str], lines: list[str]) -> None:
    shown = card(document(copies=copies), config=config, repo_id="acme/run-ema").splitlines()
    for line in lines:
        assert line in shown
    python = "\n".join(shown[shown.index("```python") + 1 :]).split("\n```")[0]
    compile(python, "card", "exec")
