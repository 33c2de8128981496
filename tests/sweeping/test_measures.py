"""What evaluations write, and which number of it is the score."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from belay_cli.errors import UsageError
from belay_cli.sweeping.measures import Key, Measured, NoResult, read_measures
from belay_cli.sweeping.metric import Judge, Part, Score, mean_of, part_of

# As lm-evaluation-harness writes it.
HARNESS: dict[str, Any] = {
    "results": {
        "arc": {
            "alias": "arc",
            "acc,none": 0.4,
            "acc_stderr,none": 0.02,
            "acc_norm,none": 0.5,
            "acc_norm_stderr,none": "N/A",
        },
        "wiki": {"alias": "wiki", "sample_len": 256, "bits_per_byte,none": 1.25, "bits_per_byte_stderr,none": "N/A"},
    },
    "higher_is_better": {"arc": {"acc": True, "acc_norm": True}, "wiki": {"bits_per_byte": False}},
}
# As lighteval writes it: bare NaN, the direction in the configuration of the task.
LIGHTEVAL = (
    '{"results": {"gsm8k|0": {"em": 0.25, "em_stderr": NaN}, "all": {"em": 0.25, "em_stderr": NaN}}, '
    '"config_tasks": {"gsm8k|0": {"metric": [{"metric_name": "em", "higher_is_better": true}]}}}'
)  # fmt: skip


def wrote(tmp_path: Path, stdout: str = "", **files: str) -> tuple[Path, Path]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    (tmp_path / "stdout").write_text(stdout)
    for number, (name, text) in enumerate(files.items()):
        path = out / "some__model" / f"results_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(number, number))
    return out, tmp_path / "stdout"


def test_the_harness(tmp_path: Path) -> None:
    found = read_measures(*wrote(tmp_path, "9\n", a=json.dumps(HARNESS)))
    assert found == {
        Key("arc", "acc,none"): Measured(0.4, 0.02, True),
        Key("arc", "acc_norm,none"): Measured(0.5, None, True),
        Key("wiki", "bits_per_byte,none"): Measured(1.25, None, False),
    }


def test_the_newest_file_counts(tmp_path: Path) -> None:
    older = json.dumps({"results": {"t": {"acc,none": 0.1}}})
    newer = json.dumps({"results": {"t": {"acc,none": 0.2}}})
    assert read_measures(*wrote(tmp_path, z=older, a=newer))[Key("t", "acc,none")].value == 0.2


def test_lighteval(tmp_path: Path) -> None:
    found = read_measures(*wrote(tmp_path, a=LIGHTEVAL))
    assert found[Key("gsm8k|0", "em")] == Measured(0.25, None, True)
    assert found[Key("all", "em")] == Measured(0.25, None, None)


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ("loading\n0.5\n\n", {Key("", ""): Measured(0.5, None, None)}),
        ('{"loss": 0.25, "loss_stderr": 0.1, "n": true}', {Key("", "loss"): Measured(0.25, 0.1, None)}),
        ('{"task": {"f1": 3}}\n', {Key("task", "f1"): Measured(3.0, None, None)}),
        (
            'done\n{\n  "m.safetensors": {\n    "loss": 2\n  }\n}\n',
            {Key("m.safetensors", "loss"): Measured(2, None, None)},
        ),
    ],
)
def test_the_end_of_stdout(stdout: str, expected: dict[Key, Measured], tmp_path: Path) -> None:
    assert read_measures(*wrote(tmp_path, stdout)) == expected


@pytest.mark.parametrize(
    ("stdout", "files", "message"),
    [
        ("", {}, "printed nothing, and wrote no results_*.json below its {out}"),
        ("0.5\nall done\n", {}, "printed a last line that is neither JSON nor a number: 'all done'"),
        ("{}", {}, "printed a last line without a number"),
        ("[1]", {}, "printed a last line that is neither JSON nor a number: '[1]'"),
        ("0.5", {"a": '{"results": {"arc": {"acc,no'}, "results_a.json is not valid JSON"),
        ("0.5", {"a": "[]"}, "results_a.json holds no results"),
        ("0.5", {"a": '{"results": {"arc": {"alias": "arc"}}}'}, "results_a.json holds no numbers"),
    ],
)
def test_what_is_no_result(stdout: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(NoResult) as caught:
        read_measures(*wrote(tmp_path, stdout, **files))
    assert str(caught.value) == message


# ---- the score

MEASURES = {
    Key("arc", "acc,none"): Measured(0.4, 0.03, True),
    Key("arc", "acc,strict"): Measured(0.3, 0.03, True),
    Key("boolq", "acc,none"): Measured(0.8, 0.04, True),
    Key("wiki", "bits,none"): Measured(1.5, None, False),
    Key("bad", "acc"): Measured(math.nan, None, True),
}


def test_the_words_of_a_metric() -> None:
    assert part_of(["gsm8k|0", "em"]) == Part("gsm8k|0", "em")
    assert part_of(["arc", "acc,none", "0.5"]) == Part("arc", "acc,none", 0.5)
    assert part_of(["loss"]) == Part(None, "loss")
    assert part_of(["loss", "-2"]) == Part(None, "loss", -2.0)
    for said in (["a", "b", "c"], ["a", "0"], ["2", "a", "nan"], [""]):
        with pytest.raises(UsageError, match="is no metric"):
            part_of(said)


@pytest.mark.parametrize(
    ("parts", "score"),
    [
        ((Part("arc", "acc,none"),), Score(0.4, 0.03)),
        ((Part("boolq", "acc"),), Score(0.8, 0.04)),
        ((Part(None, "bits"),), Score(1.5, None)),
        ((Part("wiki", "bits", -2),), Score(-1.5, None)),  # higher is better: the weight turns the end
        ((Part("arc", "acc,none"), Part("wiki", "bits", -3)), Score((0.4 - 4.5) / 4, None)),
        ((Part("arc", "acc,none"), Part("boolq", "acc")), Score(0.6, 0.025)),
        ((Part("arc", "acc,none", 3), Part("boolq", "acc")), Score(0.5, math.hypot(0.09, 0.04) / 4)),
        ((Part("arc", "acc,none"), Part("wiki", "bits", -1)), Score(-0.55, None)),
    ],
)
def test_scores(parts: tuple[Part, ...], score: Score) -> None:
    found = Judge(parts).score(MEASURES)
    assert found.value == pytest.approx(score.value)
    assert found.error == (None if score.error is None else pytest.approx(score.error))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (Judge(), "which metric is meant is not known"),
        (Judge((Part("arc", "acc"),)), "--metric arc acc may be one of several"),
        (Judge((Part("arc", "f1"),)), "the evaluation has no arc f1"),
        (
            Judge((Part("arc", "acc,none"), Part("wiki", "bits"))),
            "of arc acc,none + wiki bits one is better higher, and another lower",
        ),
        (Judge((Part("wiki", "bits"),), True), "--maximize, but the results say that lower is better for wiki bits"),
    ],
)
def test_what_only_a_person_knows(judge: Judge, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        judge.score(MEASURES)
    assert caught.value.message == message


def test_a_direction_that_nobody_states_is_asked_for() -> None:
    plain = {Key("", "loss"): Measured(1.0, None, None)}
    with pytest.raises(UsageError) as caught:
        Judge().score(plain)
    assert caught.value.message == "whether a high loss is good is not known"
    assert Judge(higher=False).score(plain) == Score(1.0, None)


def test_nan_is_no_score() -> None:
    with pytest.raises(NoResult, match="gave nan for bad acc"):
        Judge((Part("bad", "acc"),)).score(MEASURES)


def test_what_is_no_score_settles_nothing() -> None:
    judge = Judge(higher=False)
    with pytest.raises(NoResult, match="gave nan for loss"):
        judge.score({Key("", "loss"): Measured(math.nan, None, None)})
    assert judge.score({Key("", ""): Measured(0.5, None, None)}) == Score(0.5, None)
    with pytest.raises(NoResult, match="has no score"):
        judge.score({Key("", "loss"): Measured(math.nan, None, None)})


def test_what_is_missing_later_is_a_failure_of_that_candidate() -> None:
    judge = Judge((Part("boolq", "acc"),))
    judge.score(MEASURES)
    with pytest.raises(NoResult, match="has no boolq acc"):
        judge.score({Key("arc", "acc"): Measured(1.0, None, True)})


def test_repeats_have_a_spread() -> None:
    assert mean_of([Score(1.0, None)]) == Score(1.0, None)
    assert mean_of([Score(1.0, None), Score(3.0, None)]) == Score(2.0, 1.0)
    assert mean_of([Score(1.0, 5.0), Score(3.0, 5.0)]) == Score(2.0, 5.0)
