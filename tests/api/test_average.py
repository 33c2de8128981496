"""The typed calls: options and outputs that do not go together."""

from __future__ import annotations

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
        (
            {"method": "emma"},
            "--method emma is unknown",
            "did you mean ema? one of: ema, belay",
        ),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, options, message, hint):
    with pytest.raises(UsageError) as caught:
        average(make_run(tmp_path / "run"), "out", **options)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_outputs_and_rules_come_together(tmp_path):
    run = make_run(tmp_path / "run")
    for wrong in ({"outputs": ["a"]}, {"rules": [Ema()]}, {"output": "a", "rules": [Ema()], "outputs": ["b"]}):
        with pytest.raises(UsageError, match="give one output, or as many outputs as rules"):
            average(run, **wrong)
    assert average(run, "one").output == "one"
    assert [report.output for report in average(run, rules=["ema", "belay"], outputs=["a", "b"])] == ["a", "b"]
