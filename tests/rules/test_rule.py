"""What a person asks for, and what it comes to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from belay_cli.errors import UsageError
from belay_cli.rules import Belay, Ema, Rule, asked, recorded
from belay_cli.rules.damping import damping_ratio, inertia_for_damping_ratio
from belay_cli.rules.half_life import a_from_half_life, half_life_from_a, parse_half_life

TICKS = list(range(100, 1300, 100))


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("10%", "step", 110.0),
        ("2000steps", "step", 2000.0),
        ("1step", "step", 1.0),
        ("3checkpoints", "step", 300.0),
        ("1 checkpoint", "step", 100.0),
        ("250", "step", 250.0),
        (1e3, "step", 1000.0),
        ("0.5", "checkpoint", 0.5),
        ("10 percent", "step", 110.0),
        ("3 ckpts", "step", 300.0),
        ("2e3 iterations", "step", 2000.0),
        ("1_000", "step", 1000.0),
    ],
)
def test_half_lives_as_people_write_them(text: Any, unit: str, expected: float) -> None:
    assert parse_half_life(text, TICKS, unit) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("text", ["", "abc", "0", "-5", "0%", "nan", "inf", "1.2.3", "10 per cent", "5k"])
def test_what_is_no_half_life(text: str) -> None:
    with pytest.raises(UsageError, match="is not a positive half-life"):
        Ema(half_life=text)


def test_steps_need_steps() -> None:
    with pytest.raises(UsageError, match="needs the step of every checkpoint"):
        parse_half_life("20steps", [0, 1, 2], "checkpoint")


def test_default_half_life_is_five_percent_but_at_least_the_spacing() -> None:
    assert Ema().resolve(TICKS, "step").parameters()["half_life"] == 100
    assert Ema().resolve(list(range(0, 10001, 10)), "step").parameters()["half_life"] == 500


@given(st.floats(0.2, 1e12))
def test_half_life_and_decay_are_inverse(half_life: float) -> None:
    assert half_life_from_a(a_from_half_life(half_life)) == pytest.approx(half_life, rel=1e-12)


def test_belay_defaults_to_equal_partners_without_inertia() -> None:
    d = Belay().resolve(TICKS, "step").dynamics
    assert (d.feedback, d.curvature, d.inertia) == (1, 1, 0)
    zero = Belay(feedback=0.0).resolve(TICKS, "step")
    ema = Ema().resolve(TICKS, "step")
    assert zero.coefficients(TICKS) == pytest.approx(ema.coefficients(TICKS), abs=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sma"}, "--method sma is unknown"),
        ({"feedback": 1.0}, "--method ema takes no --feedback"),
        ({"feedback": 0.0}, "--method ema takes no --feedback"),
        (
            {"method": "belay", "feedback": 0.0, "curvature": 10.0},
            "--curvature 10 has no meaning without feedback: nothing leaves the recorded path",
        ),
        ({"method": "belay", "debias": True}, "--method belay takes no --debias"),
        ({"decay": 0.9, "half_life": "10%"}, "--half-life and --decay say the same thing twice"),
        ({"inertia": 0.1, "damping_ratio": 1.0}, "--inertia and --damping-ratio say the same thing twice"),
        ({"decay": 1.0}, "--decay must lie in [0, 1), not 1"),
        ({"decay": -0.1}, "--decay must lie in [0, 1), not -0.1"),
        ({"decay": math.nan}, "--decay must lie in [0, 1), not nan"),
        ({"debias": True, "inertia": 0.5}, "--debias is defined for the EMA without inertia"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(options.pop("method", "ema"), options)
    assert caught.value.message == message


@given(st.floats(1e-6, 0.999), st.floats(0.02, 8))
def test_damping_ratio_is_solved_for_inertia(a: float, ratio: float) -> None:
    inertia = inertia_for_damping_ratio(a, ratio)
    if inertia > 1e-300:
        # ln μ of a μ near 1 has few digits left, so ζ has too
        assert damping_ratio(a, inertia) == pytest.approx(ratio, rel=max(1e-9, 1e-15 / (1 - inertia)))


@given(st.floats(1e-4, 0.999))
def test_critical_damping_is_where_the_eigenvalues_meet(a: float) -> None:
    critical = ((1 - a) / (1 + a)) ** 2
    assert inertia_for_damping_ratio(a, 1.0) == pytest.approx(critical, rel=1e-6)


@pytest.mark.parametrize(("ratio", "overshoots"), [(0.5, True), (0.9, True), (1.5, False), (4.0, False)])
def test_only_underdamped_rules_have_negative_lobes(ratio: float, overshoots: bool) -> None:
    c = Ema(half_life=20, damping_ratio=ratio).resolve(range(2000), "step").coefficients(range(2000))
    assert bool(np.min(c) < -1e-6) is overshoots


def test_an_extreme_damping_ratio_is_the_plain_ema() -> None:
    assert inertia_for_damping_ratio(0.1, 1e6) == 0.0


@pytest.mark.parametrize("ratio", [0, -1, math.inf, math.nan])
def test_damping_ratios_that_are_none(ratio: float) -> None:
    with pytest.raises(UsageError, match="must be a positive number"):
        inertia_for_damping_ratio(0.1, ratio)


def test_decay_zero_is_always_underdamped() -> None:
    assert 0 < inertia_for_damping_ratio(1.0, 0.5) < 1
    with pytest.raises(UsageError, match="every inertia is underdamped"):
        inertia_for_damping_ratio(1.0, 1.0)


def test_the_damping_ratio_is_reported_only_where_it_means_something() -> None:
    assert Ema().resolve(TICKS, "step").parameters()["damping_ratio"] is None
    assert Ema(damping_ratio=0.7).resolve(TICKS, "step").parameters()["damping_ratio"] == pytest.approx(0.7)
    assert Belay(inertia=0.2).resolve(TICKS, "step").parameters()["damping_ratio"] is None


@pytest.mark.parametrize(
    "options",
    [
        Ema(),
        Ema(decay=0.93),
        Ema(half_life="7%", damping_ratio=0.6),
        Ema(debias=True),
        Belay(half_life="3checkpoints", feedback=0.3, curvature=2, inertia=0.1),
    ],
)
def test_the_canonical_arguments_give_the_same_rule_again(options: Any) -> None:
    rule = options.resolve(TICKS, "step")
    words = iter(rule.arguments())
    again: dict[str, Any] = {}
    for word in words:
        name = word[2:].replace("-", "_")
        if name == "debias":
            again[name] = True
        elif name != "unit":
            value = next(words)
            again[name] = value if name in ("method", "half_life") else float(value)
        else:
            next(words)
    same = asked(rule.method, again).resolve(TICKS, "step")
    assert same.coefficients(TICKS).tobytes() == rule.coefficients(TICKS).tobytes()


HALF_LIVES = st.floats(-3, 12).map(lambda exponent: 10.0**exponent)
DECAYS = st.floats(0, 1, exclude_max=True)
EMAS = st.one_of(
    st.builds(Ema, half_life=HALF_LIVES, debias=st.booleans()),
    st.builds(Ema, decay=DECAYS, inertia=st.floats(0, 0.999)),
    st.builds(Ema, half_life=HALF_LIVES, damping_ratio=st.floats(0.01, 100)),
)
FEEDBACKS, INERTIAS = st.floats(1e-6, 10), st.floats(0, 0.9)
BELAYS = st.one_of(
    st.builds(Belay, half_life=HALF_LIVES, feedback=FEEDBACKS, curvature=st.floats(0, 10), inertia=INERTIAS),
    st.builds(Belay, half_life=HALF_LIVES, feedback=st.just(0.0), inertia=INERTIAS),
)


@given(st.one_of(EMAS, BELAYS))
def test_what_is_recorded_is_the_same_rule_again(asked_for: Rule) -> None:
    try:
        rule = asked_for.resolve(TICKS, "step")
    except UsageError:
        reject()  # unstable, or a damping ratio that no inertia has
    parameters = json.loads(json.dumps(rule.parameters()))
    again = recorded(rule.method, parameters)
    assert again.parameters() == rule.parameters()
    assert again.coefficients(TICKS).tobytes() == rule.coefficients(TICKS).tobytes()
