"""Evaluation results: the forms that are read, and how they come into a card that has others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard

from belay_cli.errors import BelayError, CheckpointError
from belay_cli.publish.results import read_eval_results
from tests.publish.cards import ACCURACY, LLAMA, card, data, document, front_matter, small


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_bare_metrics(tmp_path: Path) -> None:
    assert read_eval_results(written(tmp_path, {"accuracy": 0.959, "loss": 1})) == [
        EvalResult("other", "unknown", "Unknown", "accuracy", 0.959),
        EvalResult("other", "unknown", "Unknown", "loss", 1),
    ]


def test_bare_metrics_have_the_task_of_the_model_where_it_is_known() -> None:
    for source, config, task in (
        ({}, {}, "other"),
        ({}, LLAMA, "text-generation"),
        ({"pipeline_tag": "translation"}, LLAMA, "translation"),
    ):
        index = front_matter(document(), source, config, ACCURACY)["model-index"]
        assert index[0]["results"][0]["task"] == {"type": task}
        assert index[0]["name"] == "belay-average"


def test_lm_evaluation_harness(tmp_path: Path) -> None:
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


def test_fields_of_the_hub(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
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
def test_results_that_are_none(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BelayError) as caught:
        read_eval_results(path)
    assert (caught.value.message, caught.value.file) == (message, str(path))
    assert 'write {"accuracy": 0.96}' in (caught.value.hint or "")


def test_a_file_of_results_that_is_absent_or_far_too_large(tmp_path: Path) -> None:
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


def test_our_results_are_renewed_and_theirs_stay() -> None:
    first = card(document(), existing=THEIR_RESULTS, config=LLAMA, eval_results=ACCURACY)
    better = [EvalResult("other", "unknown", "Unknown", "accuracy", 0.97)]
    second = card(document(), existing=first, config=LLAMA, eval_results=better)
    values = [[r.metric_value for r in ModelCard(t).data["eval_results"]] for t in (first, second)]
    assert values == [[0.5, 0.959], [0.5, 0.97]]
    assert ModelCard(second).data["model_name"] == "mine"
    third = card(document(), existing=second, config=LLAMA)
    assert data(third)["model-index"] == data(THEIR_RESULTS)["model-index"]
    assert "### Evaluation" not in third


def test_results_that_are_gone_leave_no_key_behind() -> None:
    first = card(document(), existing="---\na: 1\n---\n", eval_results=ACCURACY)
    assert "model-index" in data(first)
    assert card(document(), existing=first) == card(document(), existing="---\na: 1\n---\n")


def test_a_result_of_theirs_for_the_same_measurement_stays() -> None:
    ours = [EvalResult("text-generation", "acme/text", "Text", "accuracy", 0.9)]
    text = card(document(), existing=THEIR_RESULTS, eval_results=ours)
    assert [r.metric_value for r in ModelCard(text).data["eval_results"]] == [0.5]
    assert "# my name" in text
    assert card(document(), existing=text, eval_results=ours) == text


def test_their_results_stay_in_their_places_when_ours_are_the_same() -> None:
    existing = THEIR_RESULTS.replace("value: 0.5\n", "value: 0.5\n    - type: loss\n      value: 2\n")
    ours = [EvalResult("text-generation", "acme/text", "Text", "accuracy", 0.5)]
    text = card(document(), existing=existing, eval_results=ours)
    assert "| `accuracy` | 0.5 |" in text
    assert card(document(), existing=text, eval_results=ours) == text


@pytest.mark.parametrize("index", ["3", "[{name: a, results: []}, {name: b, results: []}]", "[{name: a}]"])
def test_a_model_index_that_is_not_of_one_model(index: str) -> None:
    existing = f"---\nmodel-index: {index}\n---\n"
    assert f"model-index: {index}\n" in card(document(), existing=existing)
    with pytest.raises(CheckpointError, match="the model-index of its front matter is not that of one model"):
        card(document(), existing=existing, eval_results=ACCURACY)
