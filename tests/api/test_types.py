"""The API through the eyes of a strict type checker: right calls pass, every wrong call is found."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from belay_cli.api.keywords import PlanKeywords, SelectionKeywords, SeriesKeywords
from belay_cli.checkpoints import Selection
from belay_cli.checkpoints.selection import SeriesOptions
from belay_cli.planning import PlanOptions, Policies

RIGHT = """
from collections.abc import Iterator
from pathlib import Path

import torch

import belay_cli
from belay_cli import Belay, Ema, Rule, average, averages, inspect, plan, push, verify

one = average("run", "out", method="belay", dtype="bfloat16", last=["head.*"])
lag: float = one.summary.mean_lag
weights: list[float] = [checkpoint.coefficient for checkpoint in one.checkpoints]
two = average([Path("a"), Path("b")], rules=[Ema(half_life="5%"), "belay"], outputs=["x", "y"], progress=True)
seconds: list[float | None] = [report.seconds for report in two]
planned: str = plan("run", method=Belay(half_life="10%", feedback=2.0), unit="checkpoint").output
found: Iterator[tuple[Rule, dict[str, torch.Tensor]]] = averages("run", ["ema"], at_once=2, every=2)
good: bool = inspect("run", order="given").ok and verify("out", checkpoints="run", sample=0.1).verified
url: str = push("out", "me/model", private=True, dry_run=True).url
name: str = belay_cli.__version__
"""

WRONG = """
from belay_cli import Belay, Ema, average, averages, inspect, plan, push, verify

average("run", "out", half_lfe="10%")  # an option that there is not
average("run", "out", half_life="10%")  # an option of the rule
average("run", "out", dtype="float31")
average("run", "out", unit="steps")
average("run", "out", threads="two")
average("run", method=3)
average("run", "out", rules=["ema"], outputs=["a"])
average("run", rules=["ema"])
average(run="run")
Ema(feedback=2.0)
Belay(half_life=[1])
average("run", "out").summary["mean_lag"]
average("run", rules=["ema"], outputs=["a"]).seconds
plan("run").text_of_it
averages("run", "ema", at_once="two")
inspect("run", overwrite=True)
verify("out", checkpoint="run")
push("out")
push("out", "me/model", private="yes")
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy --strict says of both scripts, in one run."""
    folder = tmp_path_factory.mktemp("types")
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (folder / name).write_text(text)
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(folder / "cache")]
    done = subprocess.run(
        [*command, "--follow-imports=silent", str(folder / "right.py"), str(folder / "wrong.py")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return {name: "".join(re.findall(rf".*{name}:.*\n", done.stdout)) for name in ("right.py", "wrong.py")}


def test_right_calls_pass(checked: dict[str, str]) -> None:
    assert checked["right.py"] == ""


def test_every_wrong_call_is_found(checked: dict[str, str]) -> None:
    found = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", checked["wrong.py"])}
    calls = {number for number, line in enumerate(WRONG.splitlines(), 1) if "(" in line}
    assert found == calls


@pytest.mark.parametrize(
    ("keywords", "groups"),
    [
        (SeriesKeywords, [SeriesOptions]),
        (SelectionKeywords, [Selection]),
        (PlanKeywords, [Selection, Policies, PlanOptions]),
    ],
)
def test_keywords_are_the_fields_of_the_groups(keywords: Any, groups: list[Any]) -> None:
    wanted: dict[str, Any] = {}
    for group in groups:
        hints = get_type_hints(group)
        wanted |= {field.name: hints[field.name] for field in fields(group) if field.name != "policies"}
    found = get_type_hints(keywords)
    assert set(found) == set(wanted)
    for name, hint in wanted.items():
        if get_origin(hint) is tuple:  # of globs: one text, or several
            assert str in get_args(found[name])
        else:
            assert found[name] == hint, name
