"""Every rule: its coefficients are its recursion, and what is recorded of it makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from belay_cli.cli import run
from belay_cli.rules import (
    METHODS,
    Belay,
    Bema,
    Best,
    Coefficients,
    Ema,
    Polynomial,
    PostHoc,
    Power,
    Rule,
    Uniform,
    Wsm,
    recorded,
)

TICKS = st.lists(st.integers(1, 400), max_size=9).map(lambda gaps: np.cumsum([7, *gaps]).tolist())


def rules_for(count: int) -> Iterator[Rule]:
    """One of each kind, for so many checkpoints."""
    some = max(1, count // 2)
    numbers = np.random.default_rng(count).normal(size=count)
    yield from (Ema(half_life=50.0), Ema(half_life=50.0, debias=True), Belay(half_life=50.0))
    yield from (Uniform(), Uniform(some), Uniform(1))
    yield from (Power(), Power(0.02), Power(0.28))
    yield from (Polynomial(), Polynomial(0.0), Polynomial(17.5))
    yield from (Wsm(), Wsm(None, "cosine"), Wsm(some, "1-sqrt"))
    yield from (Bema(), Bema(lag=1.0, bias_power=0.0), Bema(ema_power=0.9, min_ema_multiplier=0.2))
    for library in ("diffusers", "timm", "ema-pytorch"):
        yield Ema(decay=0.99, warmup=library)
        yield Ema(half_life=300.0, warmup=library, warmup_power=0.75, inv_gamma=3.0, min_decay=0.1, update_after=20)
    yield Best(some, "loss", tuple(numbers.tolist()), "min")
    yield Coefficients(tuple((numbers / numbers.sum()).tolist()))
    yield PostHoc(
        0.15, tuple(0.05 + 0.05 * (i % 2) for i in range(count)), tuple(100.0 * (i + 1) for i in range(count))
    )


@settings(max_examples=30, deadline=None)
@given(TICKS, st.sampled_from(["step", "checkpoint"]))
def test_coefficients_equal_the_recursion(ticks: list[int], unit: str) -> None:
    ticks = ticks if unit == "step" else list(range(len(ticks)))
    for asked in rules_for(len(ticks)):
        rule = asked.resolve(ticks, unit)
        c = rule.coefficients(ticks)
        assert c.shape == (len(ticks),), rule
        assert np.max(np.abs(c - rule.replay(ticks, list(np.eye(len(ticks)))))) < 1e-11, rule
        assert abs(float(c.sum()) - 1) < 1e-11, rule


@settings(max_examples=20, deadline=None)
@given(TICKS, st.sampled_from(["step", "checkpoint"]))
def test_a_record_makes_the_rule_again(ticks: list[int], unit: str) -> None:
    ticks = ticks if unit == "step" else list(range(len(ticks)))
    for asked in rules_for(len(ticks)):
        rule = asked.resolve(ticks, unit)
        again = recorded(rule.method, json.loads(json.dumps(rule.parameters())))
        assert again.parameters() == rule.parameters(), rule
        assert again.coefficients(ticks).tobytes() == rule.coefficients(ticks).tobytes(), rule
        assert again.sentence(ticks, unit), rule


def test_all_methods_are_among_them() -> None:
    assert {type(rule) for rule in rules_for(4)} == set(METHODS.values())


SERIES = (100, 200, 250, 400, 900)


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, step in enumerate(SERIES):
        weights = np.random.default_rng(number).normal(size=(40, 3)).astype(np.float32)
        save_file({"w": weights}, tmp_path / f"step-{step}.safetensors", {"format": "pt"})
    return tmp_path


def words(rule: Rule) -> list[str]:
    return ["-m", rule.method, *rule.arguments()]


@pytest.mark.parametrize("asked", list(rules_for(len(SERIES))), ids=lambda rule: str(rule)[:40])
@pytest.mark.parametrize("unit", ["step", "checkpoint"])
def test_an_output_verifies_and_its_command_makes_the_same_bytes(
    asked: Rule, unit: str, series: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = list(SERIES) if unit == "step" else list(range(len(SERIES)))
    if isinstance(asked, PostHoc):
        asked = PostHoc(asked.sigma_rel, asked.widths, tuple(map(float, SERIES)))
    typed = [*words(asked.resolve(ticks, unit)), "--unit", unit]
    assert run(["average", ".", *typed, "-o", "../one.safetensors", "--overwrite", "-q"]) == 0, capsys.readouterr().err
    assert run(["verify", "../one.safetensors", "--checkpoints", "."]) == 0, capsys.readouterr().err
    header = Path("../one.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    command = json.loads(header[8 : 8 + length])["__metadata__"]["belay.command"]
    program, average, *arguments = shlex.split(command)
    assert (program, average) == ("belay", "average")
    assert run(["average", "-o", "../two.safetensors", "--overwrite", "-q", *arguments]) == 0
    assert Path("../two.safetensors").read_bytes() == header


def exponents(widths: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Algorithm 2 of the EDM2 paper."""
    return np.array([np.roots([1, 7, 16 - t, 12 - t]).real.max() for t in np.asarray(widths) ** -2.0])


@given(st.floats(0.01, 0.288))
def test_the_exponent_has_the_width(width: float) -> None:
    from belay_cli.rules.power_options import exponent_of_width

    gamma = exponent_of_width(width)
    assert ((gamma + 1) / (gamma + 3)) ** 0.5 / (gamma + 2) == pytest.approx(width, rel=1e-13)
    assert gamma == pytest.approx(exponents(np.array([width]))[0], rel=1e-9)


@given(TICKS, st.floats(0.02, 0.28))
def test_power_coefficients_are_the_profile_integrated(ticks: list[int], width: float) -> None:
    power = exponents(np.array([width]))[0] + 1
    ends = np.array([0, *ticks]) / ticks[-1]
    expected = ends[1:] ** power - ends[:-1] ** power
    assert np.max(np.abs(Power(width).resolve(ticks, "step").coefficients(ticks) - expected)) < 1e-10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.floats(0.03, 0.25), st.booleans())
def test_posthoc_coefficients_are_those_of_the_paper(gaps: list[int], width: float, two: bool) -> None:
    stored = (0.05, 0.1) if two else (0.1,)
    times, widths = np.repeat(np.cumsum(gaps) * 10.0, len(stored)), np.tile(stored, len(gaps))
    g, target, end = exponents(widths), exponents(np.array([width]))[0], times.max()

    def product(t: Any, a: Any, u: Any, b: Any) -> Any:  # equation 151
        return (a + 1) * (b + 1) * (t / u) ** np.where(t < u, b, -a) / ((a + b + 1) * np.maximum(t, u))

    x = np.linalg.solve(product(times[:, None], g[:, None], times, g), product(times, g, end, target))
    rule = PostHoc(width, tuple(widths.tolist()), tuple(times.tolist()))
    assert np.max(np.abs(rule.coefficients(list(range(len(times)))) - x / x.sum())) < 1e-10


@pytest.mark.parametrize("width", [0.02, 0.07, 0.15, 0.25])
def test_posthoc_reconstructs_the_power_ema_of_a_run(width: float) -> None:
    """Power EMAs of two widths, stored every 20 of 400 steps of a random walk, give that of another width."""
    random = np.random.default_rng(1)
    path = np.cumsum(random.normal(size=(400, 200)), axis=0)
    every = list(range(20, 401, 20))
    stored = [
        Power(w).resolve(range(1, t + 1), "step").coefficients(range(1, t + 1)) @ path[:t]
        for t in every
        for w in (0.05, 0.1)
    ]
    times = tuple(float(t) for t in every for _ in range(2))
    c = PostHoc(width, (0.05, 0.1) * len(every), times).coefficients(list(range(len(times))))
    whole = range(1, 401)
    wanted = Power(width).resolve(whole, "step").coefficients(whole) @ path
    nearest = min(np.linalg.norm(one - wanted) for one in stored)
    assert np.linalg.norm(c @ np.array(stored) - wanted) < 0.2 * nearest


def test_wsm_is_the_run_with_a_rate_that_falls() -> None:
    random = np.random.default_rng(3)
    steps = random.normal(size=(120, 4))
    path = np.vstack([np.zeros(4), np.cumsum(steps, axis=0)])
    ticks = list(range(121))
    u = (np.arange(120) + 0.5) / 120
    for shape, f in (("linear", 1 - u), ("cosine", (1 + np.cos(np.pi * u)) / 2), ("1-sqrt", 1 - np.sqrt(u))):
        decayed = (f[:, None] * steps).sum(axis=0)
        assert Wsm(None, shape).coefficients(ticks) @ path == pytest.approx(decayed, abs=1e-12)  # type: ignore[arg-type]
