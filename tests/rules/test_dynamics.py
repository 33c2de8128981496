"""The coefficients against the recursion, against numbers computed elsewhere, and against physics."""

from __future__ import annotations

import decimal
import json
import math
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from belay_cli.errors import UsageError
from belay_cli.rules.debiased import debiased_ema_coefficients
from belay_cli.rules.dynamics import (
    Dynamics,
    check_stable,
    dynamics_coefficients,
    spectral_radius,
)
from belay_cli.rules.half_life import a_from_half_life
from belay_cli.rules.recursion import replay_intervals
from belay_cli.rules.summary import summarize
from tests.rules.literal import debiased_ema_weights, replay_ticks, replay_weights
from tests.rules.vectors import make

VECTORS = json.loads((Path(__file__).parent / "vectors/dynamics.json").read_text())["cases"]


def coefficients_of(case: dict[str, Any]) -> npt.NDArray[Any]:
    a = 1 - case["decay"]
    if case["debias"]:
        return debiased_ema_coefficients(a, case["ticks"])
    return dynamics_coefficients(Dynamics(a, case["inertia"], case["feedback"], case["curvature"]), case["ticks"])


@pytest.mark.parametrize("case", VECTORS, ids=range(len(VECTORS)))
def test_vectors_of_the_exact_recursion(case: dict[str, Any]) -> None:
    c = coefficients_of(case)
    assert np.max(np.abs(c - case["coefficients"])) < 1e-12
    summary = summarize(c, case["ticks"])
    assert summary.sum == pytest.approx(1, abs=1e-12)
    assert summary.mean_lag == pytest.approx(case["mean_lag"], abs=1e-10)
    assert summary.effective_checkpoints == pytest.approx(case["effective_checkpoints"], abs=1e-10)


def test_there_are_vectors() -> None:
    assert len(VECTORS) == 60


@pytest.mark.parametrize("case", VECTORS, ids=range(len(VECTORS)))
def test_vectors_can_be_made_anew(case: dict[str, Any]) -> None:
    assert make.agree(case, make.made(case))


ticks = st.lists(st.integers(1, 60), max_size=9).map(lambda gaps: [0, *np.cumsum(gaps).tolist()])
long_ticks = st.lists(st.integers(1, 3000), min_size=1, max_size=4).map(lambda gaps: [0, *np.cumsum(gaps).tolist()])
small_a = st.floats(1e-9, 1).map(float)


def in_long_double(dynamics: Dynamics, ticks: list[int]) -> npt.NDArray[Any]:
    return replay_weights(dynamics, ticks, np.eye(len(ticks), dtype=np.longdouble))


@given(ticks, small_a, st.floats(0, 0.99), st.floats(0, 4), st.floats(0, 4))
def test_coefficients_equal_the_recursion(
    ticks: list[int], a: float, inertia: float, feedback: float, curvature: float
) -> None:
    dynamics = Dynamics(a, inertia, feedback, curvature)
    assume(spectral_radius(dynamics) <= 1)
    c = dynamics_coefficients(dynamics, ticks)
    assert np.max(np.abs(c - in_long_double(dynamics, ticks))) < 1e-12
    assert abs(c.sum() - 1) < 1e-12


@settings(max_examples=15, deadline=None)
@given(long_ticks, st.floats(-9, -1).map(lambda e: 10**e), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 1.0]))
def test_coefficients_equal_the_recursion_over_long_gaps(
    ticks: list[int], a: float, inertia: float, feedback: float
) -> None:
    dynamics = Dynamics(a, inertia, feedback, feedback)
    c = dynamics_coefficients(dynamics, ticks)
    assert np.max(np.abs(c - in_long_double(dynamics, ticks))) < 1e-12


@given(ticks, small_a)
def test_debiased_coefficients_equal_the_recursion(ticks: list[int], a: float) -> None:
    c = debiased_ema_coefficients(a, ticks)
    expected = debiased_ema_weights(a, ticks, np.eye(len(ticks), dtype=np.longdouble))
    assert np.max(np.abs(c - expected)) < 1e-12


@given(ticks, small_a, st.floats(0, 0.99), st.floats(0, 4), st.floats(0, 4), st.booleans())
@example([0, 1, 2, 3, 12], 1.0, 0.0, 0.0, 4.0, False)
def test_the_recursion_by_intervals_is_the_recursion(
    ticks: list[int], a: float, inertia: float, feedback: float, curvature: float, debias: bool
) -> None:
    weights = np.random.default_rng(0).normal(size=(len(ticks), 3))
    if debias:
        by_intervals = replay_intervals(Dynamics(a), ticks, iter(weights), debias=True)
        expected = debiased_ema_weights(a, ticks, weights)
    else:
        dynamics = Dynamics(a, inertia, feedback, curvature)
        assume(spectral_radius(dynamics) <= 1)
        by_intervals = replay_intervals(dynamics, ticks, iter(weights))
        expected = replay_weights(dynamics, ticks, weights)
    lost = 1e-15 / min(1.0, a * (ticks[-1] + 1)) if debias else 0.0  # by dividing by a tiny sum
    assert np.max(np.abs(by_intervals - expected)) < 1e-11 + lost


@pytest.mark.parametrize("n", [4096, 4097, 8193, 20_000, 50_001])
@pytest.mark.parametrize("dynamics", [Dynamics(1e-5), Dynamics(1e-3, 0.9, 1.0, 1.0), Dynamics(0.3, 0.2, 0.5, 0.1)])
def test_intervals_of_many_ticks_are_the_recursion(n: int, dynamics: Dynamics) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 4))
    ticks = [0, n, 2 * n + 1]
    expected = replay_weights(dynamics, ticks, weights.astype(np.longdouble))
    assert np.max(np.abs(replay_intervals(dynamics, ticks, iter(weights)) - expected)) < 1e-13


@pytest.mark.parametrize("spacing", [10**4, 10**6 + 1, 10**9, 10**12 + 7])
@pytest.mark.parametrize("share", [0.01, 0.4, 5.0])
def test_debiased_coefficients_of_steps_that_count_tokens(spacing: int, share: float) -> None:
    # In closed form, with 60 digits: over n ticks e ← dⁿ·e + (1 − dⁿ − s)·w + s·w', s = 1 − d·(1 − dⁿ)/(a·n).
    with decimal.localcontext(decimal.Context(prec=60)):
        a = Decimal(-math.expm1(-math.log(2) / (share * spacing)))
        d, e = 1 - a, [a, Decimal(0), Decimal(0), Decimal(0)]
        for j in range(1, 4):
            dn = d**spacing
            s = 1 - d * (1 - dn) / (a * spacing)
            e = [dn * x for x in e]
            e[j - 1] += 1 - dn - s
            e[j] += s
        total = 1 - d ** (3 * spacing + 1)
        expected = [float(x / total) for x in e]
    ticks = [spacing * j for j in range(4)]
    found = debiased_ema_coefficients(float(a), ticks)
    assert np.max(np.abs(found - expected)) < 1e-14
    by_recursion = replay_intervals(Dynamics(float(a)), ticks, list(np.eye(4)), debias=True)
    assert np.max(np.abs(by_recursion - expected)) < 1e-13


@pytest.mark.parametrize("half_life", [1e3, 1e7, 1e9])
def test_closed_form_over_millions_of_ticks(half_life: float) -> None:
    # e after n ticks on a line from w to w', started at e_0: d^n e_0 + (1 − k − d^n) w + k w',
    # k = 1 − d (1 − d^n) / (a n)
    ticks = [0, 1_000_000, 3_000_000]
    a = a_from_half_life(half_life)
    expected = np.array([1.0, 0.0, 0.0])
    for j in (1, 2):
        n = ticks[j] - ticks[j - 1]
        forgotten = -np.expm1(n * np.log1p(-a))
        expected *= 1 - forgotten
        k = 1 - (1 - a) * forgotten / (a * n)
        expected[j - 1] += forgotten - k
        expected[j] += k
    assert np.max(np.abs(dynamics_coefficients(Dynamics(a), ticks) - expected)) < 1e-9


def test_textbook_ema_in_checkpoint_unit() -> None:
    c = dynamics_coefficients(Dynamics(0.25), [0, 1, 2, 3])
    assert c == pytest.approx([0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25], abs=1e-15)


def test_decay_zero_is_the_last_checkpoint() -> None:
    assert dynamics_coefficients(Dynamics(1.0), [0, 1, 5]).tolist() == [0, 0, 1]


def test_one_checkpoint_is_itself() -> None:
    assert dynamics_coefficients(Dynamics(0.1, 0.5), [700]).tolist() == [1]
    assert debiased_ema_coefficients(0.1, [700]).tolist() == [1]


@pytest.mark.parametrize("inertia", [0.0, 0.3, 0.9])
def test_mean_lag_is_the_same_at_every_inertia(inertia: float) -> None:
    decay, ticks = 0.98, list(range(0, 4001, 10))
    c = dynamics_coefficients(Dynamics(1 - decay, inertia), ticks)
    assert summarize(c, ticks).mean_lag == pytest.approx(decay / (1 - decay), rel=1e-9)


@pytest.mark.parametrize(("feedback", "curvature"), [(1.0, 1.0), (1.0, 3.0), (0.5, 1.0)])
def test_feedback_lengthens_the_lag(feedback: float, curvature: float) -> None:
    decay, ticks = 0.98, list(range(0, 12001, 10))
    c = dynamics_coefficients(Dynamics(1 - decay, 0, feedback, curvature), ticks)
    expected = (decay + feedback / curvature) / (1 - decay)
    assert summarize(c, ticks).mean_lag == pytest.approx(expected, rel=1e-6)


def test_without_curvature_weight_stays_on_the_first_checkpoint() -> None:
    decay, feedback, ticks = 0.9, 1.5, list(range(2000))
    c = dynamics_coefficients(Dynamics(1 - decay, 0, feedback, 0), ticks)
    assert c[0] == pytest.approx(feedback / (1 + feedback), abs=1e-9)


class Quadratic:
    """SGD on λ/2 |w|² with the same additive noise for a plain run and for a BELAY run."""

    def __init__(self, rate: float, hessian: float, steps: int, size: int = 5) -> None:
        self.rate, self.hessian, self.steps = rate, hessian, steps
        random = np.random.default_rng(7)
        self.start = random.normal(size=size)
        self.noise = random.normal(size=(steps, size))

    def gradient(self, weights: npt.NDArray[Any], step: int) -> Any:
        return self.hessian * weights + self.noise[step]

    def plain(self) -> npt.NDArray[Any]:
        path = [self.start]
        for step in range(self.steps):
            path.append(path[-1] - self.rate * self.gradient(path[-1], step))
        return np.array(path)

    def belay(self, a: float, feedback: float, inertia: float) -> npt.NDArray[Any]:
        x = e = self.start
        v = np.zeros_like(e)
        path = [e]
        for step in range(self.steps):
            stepped = x - self.rate * self.gradient(x, step)
            x = (stepped + feedback * a * e) / (1 + feedback * a)
            v = inertia * v + (1 - inertia) * a * (x - e)
            e = e + v
            path.append(e)
        return np.array(path)


@pytest.mark.parametrize("inertia", [0.0, 0.4])
@pytest.mark.parametrize("feedback", [0.5, 1.0, 2.0])
def test_replay_of_a_plain_run_is_the_belay_run_that_was_never_made(feedback: float, inertia: float) -> None:
    run, a = Quadratic(rate=0.1, hessian=0.7, steps=200), 0.05
    dynamics = Dynamics(a, inertia, feedback, curvature=run.rate * run.hessian / a)
    plain, expected = run.plain(), run.belay(a, feedback, inertia)
    replayed = np.array(list(replay_ticks(dynamics, range(run.steps + 1), plain)))
    assert np.max(np.abs(replayed - expected)) < 1e-12
    for last in (1, 17, run.steps):  # and the same by coefficients
        c = dynamics_coefficients(dynamics, range(last + 1))
        assert np.max(np.abs(c @ plain[: last + 1] - expected[last])) < 1e-12


def test_sparse_checkpoints_are_the_linear_path_between_them() -> None:
    run, every = Quadratic(rate=0.1, hessian=0.7, steps=200), 20
    dynamics = Dynamics(0.05, 0.2, 1.0, 1.4)
    kept = run.plain()[::every]
    straight = np.concatenate(
        [kept[:1]] + [a + (b - a) * np.arange(1, every + 1)[:, None] / every for a, b in pairwise(kept)]
    )
    dense = dynamics_coefficients(dynamics, range(len(straight))) @ straight
    sparse = dynamics_coefficients(dynamics, range(0, run.steps + 1, every)) @ kept
    assert np.max(np.abs(dense - sparse)) < 1e-12


def test_unstable_dynamics_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="unstable: a disturbance grows by 1.44") as caught:
        check_stable(Dynamics(0.9, 0, 1, 5))
    assert caught.value.hint == "lengthen --half-life, or lower --curvature"


@given(small_a, st.floats(0, 0.99), st.floats(0, 100), st.floats(0, 2))
def test_no_feedback_and_no_inertia_is_too_much(a: float, inertia: float, feedback: float, kappa: float) -> None:
    check_stable(Dynamics(a, inertia, feedback, curvature=kappa / a))


@given(st.floats(0.01, 1), st.floats(0.01, 4))
def test_the_spring_at_the_new_point_widens_the_stable_range(a: float, feedback: float) -> None:
    # Of κ in a replay, of h = ηλ for SGD of rate η on a quadratic of Hessian λI: the disturbance that grows flips sign.
    widest = 2 + 2 * feedback * a / (2 - a)
    assert spectral_radius(Dynamics(a, 0, feedback, curvature=0.999 * widest / a)) < 1
    assert spectral_radius(Dynamics(a, 0, feedback, curvature=1.001 * widest / a)) > 1


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_spring_at_the_old_point_would_narrow_it(a: float, beta: float) -> None:
    def radius(h: float) -> float:
        x = np.array([1 - h - beta, beta])  # x' = x − h x + β (e − x), of (x, e)
        return float(np.max(np.abs(np.linalg.eigvals([x, a * x + [0, 1 - a]]))))

    widest = 2 - 2 * beta * (1 - a) / (2 - a)
    assert radius(0.999 * widest) < 1 < radius(1.001 * widest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "decay must lie in [0, 1), not 1"),
        ((1.5,), "decay must lie in [0, 1), not -0.5"),
        ((float("nan"),), "decay must lie in [0, 1), not nan"),
        ((0.1, 1.0), "inertia must lie in [0, 1), not 1"),
        ((0.1, -0.1), "inertia must lie in [0, 1), not -0.1"),
        ((0.1, 0, -1), "feedback must be a number of 0 or more, not -1"),
        ((0.1, 0, 1, float("inf")), "curvature must be a number of 0 or more, not inf"),
    ],
)
def test_values_out_of_range(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Dynamics(*values)
    assert caught.value.message == message
