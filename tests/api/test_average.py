"""The typed calls: options and outputs that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from belay_cli import Ema, UsageError, average
from tests.conftest import make_run


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"colour": "red"}, "colour is no option", None),
        ({"max_shardsize": "1GB"}, "max_shardsize is no option", "did you mean max_shard_size?"),
        ({"half_life": "10%"}, "half_life is an option of the rule", "method=Ema(half_life=…), for method 'ema'"),
        ({"feedback": 2}, "feedback is an option of the rule", "method=Belay(feedback=…), for method 'belay'"),
        ({"dtype": "int8"}, "--dtype int8 is unknown", "one of: same, float64, float32, bfloat16, float16"),
        ({"threads": "2"}, "--threads takes a whole number, not '2'", None),
        ({"every": True}, "--every takes a whole number, not True", None),
        ({"overwrite": "no"}, "--overwrite takes True or False, not 'no'", None),
        ({"from_step": 500.5}, "--from-step takes a whole number, not 500.5", None),
        ({"device": 3}, "--device takes text, not 3", None),
        ({"last": 3}, "a glob of tensor names is a text, or several are a list, not 3", None),
        ({"chunk": 0}, "chunk must be 1 or more, not 0", None),
        ({"method": Ema}, "Ema is the class of a rule", "write Ema()"),
        ({"rules": "ema", "outputs": ["a"]}, "rules is a list of rules, not one: ['ema']", None),
        ({"rules": ["ema"], "outputs": "a"}, "outputs is a list of paths, one for each rule, not 'a'", None),
        (
            {"method": "emma"},
            "--method emma is unknown",
            "did you mean ema? one of: ema, belay, uniform, power, posthoc, polynomial, wsm, bema, best, coefficients",
        ),
    ],
)
def test_wrong_options_are_usage_errors(
    tmp_path: Path, options: dict[str, Any], message: str, hint: str | None
) -> None:
    given: dict[str, Any] = {**({} if "rules" in options else {"output": "out"}), **options}
    with pytest.raises(UsageError) as caught:
        average(make_run(tmp_path / "run"), **given)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_outputs_and_rules_come_together(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for wrong in (
        {"outputs": ["a"]},
        {"rules": [Ema()]},
        {"output": "a", "rules": [Ema()], "outputs": ["b"]},
        {"method": "belay", "rules": [Ema()], "outputs": ["b"]},
    ):
        with pytest.raises(UsageError, match="give one method and output, or as many outputs as rules"):
            average(run, **wrong)
    assert average(run, "one").output == "one"
    assert [report.output for report in average(run, rules=["ema", "belay"], outputs=["a", "b"])] == ["a", "b"]
