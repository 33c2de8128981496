"""docs/rules.md: the figures of its table are those of the sample run, and its closed forms hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from belay_cli.rules import METHODS, Belay, Ema, Polynomial, Power, Uniform, Wsm, summarize
from tests.conftest import Ran

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
SAMPLE = ROOT / "sample_checkpoints/run"
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `-m .*", PAGE, re.MULTILINE)]
FIGURES = [(row[0].strip("`"), row[-2], row[-1]) for row in ROWS]

Command = Callable[..., Ran]


@pytest.mark.parametrize(("options", "lag", "effective"), [row for row in FIGURES if row[1]])
def test_the_figures_are_those_of_the_sample_run(options: str, lag: str, effective: str, belay: Command) -> None:
    ran = belay("plan", SAMPLE, *shlex.split(options), "--json")
    summary = ran.json["summary"]
    assert (f"{summary['mean_lag']:.0f}", f"{summary['effective_checkpoints']:.2f}") == (lag, effective)


@pytest.mark.parametrize("options", [row[0] for row in FIGURES if not row[1]])
def test_what_has_no_figures_needs_to_be_told_more(options: str, belay: Command) -> None:
    ran = belay("plan", SAMPLE, *shlex.split(options), "--json")
    assert ran.code == 2
    assert "takes" in ran.json["error"]["message"]


def test_every_method_has_a_row() -> None:
    assert {shlex.split(options)[1] for options, _, _ in FIGURES} == set(METHODS)


def test_the_lag_in_closed_form() -> None:
    ticks = list(range(0, 40_100, 100))  # equal distances, and long against every memory below
    span = ticks[-1]

    def lag(rule: Ema | Belay | Uniform | Power | Polynomial | Wsm) -> float:
        resolved = rule.resolve(ticks, "step")
        return summarize(resolved.coefficients(ticks), ticks).mean_lag

    d = 2 ** (-1 / 500)
    assert lag(Ema(half_life=500.0)) == pytest.approx(d / (1 - d), rel=1e-9)
    assert lag(Belay(half_life=500.0, feedback=3.0, curvature=2.0)) == pytest.approx((d + 3 / 2) / (1 - d), rel=1e-6)
    assert lag(Uniform()) == pytest.approx(span / 2)
    assert lag(Uniform(21)) == pytest.approx(1000)
    power = Power(0.1).resolve(ticks, "step")
    gamma = power.parameters()["gamma"]
    assert isinstance(gamma, float)
    assert lag(Power(0.1)) == pytest.approx(span / (gamma + 2) - 50, rel=1e-4)
    assert lag(Polynomial(3.0)) == pytest.approx((len(ticks) - 1) / 5 * 100)
    assert lag(Wsm()) == pytest.approx(span / 2)
    assert lag(Wsm(21, "cosine")) == pytest.approx(1000)
    assert lag(Wsm(None, "1-sqrt")) == pytest.approx(2 / 3 * span, rel=1e-3)
