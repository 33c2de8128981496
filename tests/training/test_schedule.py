"""The warm-up's coefficients written out, k steps in one update, and half-lives in steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from belay_cli.errors import UsageError
from belay_cli.rules.dynamics import Dynamics
from belay_cli.rules.rule import Float64Array
from belay_cli.training import Belay
from belay_cli.training.schedule import Schedule, over_steps
from tests.training.literal import over

WARMUPS = st.floats(0.001, 0.5)


def coefficients(warmup: float, n: int) -> Float64Array:
    """Of the models 1 … n in the average after update n, where no half-life ends the warm-up."""
    schedule = Schedule.of(None, None, 0.0, warmup, 1)
    c = np.zeros(n)
    for k in range(1, n + 1):
        a = schedule.share(k)
        c *= 1 - a
        c[k - 1] = a
    return c


@given(WARMUPS, st.floats(0.5, 1e6))
def test_the_first_average_of_a_warm_up_is_the_weights(warmup: float, half_life: float) -> None:
    assert Schedule.of(None, None, 0.0, warmup, 1).share(1) == 1
    assert Schedule.of(half_life, None, 0.0, warmup, 1).share(1) == 1
    assert Schedule.of(half_life, None, 0.5, warmup, 3).share(1) == 1


@pytest.mark.parametrize("warmup", [0.01, 0.05, 0.1, 0.25, 0.5])
def test_the_average_lags_by_its_share_of_the_updates(warmup: float) -> None:
    n = 20_000
    c = coefficients(warmup, n)
    assert sum(c) == pytest.approx(1, abs=1e-12)
    assert float(c @ (n - np.arange(1, n + 1))) / n == pytest.approx(warmup, rel=1e-2)


def test_half_of_the_updates_is_the_uniform_mean() -> None:
    for n in (1, 2, 10, 1000):
        assert np.allclose(coefficients(0.5, n), 1 / n, rtol=1e-12, atol=0)


@given(WARMUPS, st.floats(1.0, 1e5), st.integers(1, 10**7))
def test_the_warm_up_ends_at_the_lag_of_the_half_life(warmup: float, half_life: float, n: int) -> None:
    schedule = Schedule.of(half_life, None, 0.0, warmup, 1)
    a = -math.expm1(-math.log(2) / half_life)
    gamma = 1 / warmup - 2
    assert schedule.share(n) == pytest.approx(max(a, (gamma + 1) / (n + gamma)), rel=1e-14)
    assert schedule.share(n + 1) <= schedule.share(n)
    assert Schedule.of(half_life, None, 0.0, None, 1).share(n) == pytest.approx(a, rel=1e-14)


@given(st.floats(1e-12, 1.0), st.integers(1, 1000))
def test_k_steps_without_inertia_forget_as_k_times_one(a: float, k: int) -> None:
    together, mu = over_steps(Dynamics(a), k)
    assert mu == 0
    assert together == pytest.approx(1.0 if a == 1 else -math.expm1(k * math.log1p(-a)), rel=1e-15)
    assert together == pytest.approx(1 - (1 - a) ** k, abs=1e-12)


@given(st.floats(1e-4, 1.0), st.floats(0.01, 0.99), st.integers(1, 50))
def test_k_steps_with_inertia_have_the_eigenvalues_of_k_ticks(a: float, mu: float, k: int) -> None:
    alpha = (1 - mu) * a
    powers = np.linalg.eigvals(np.array([[1 - alpha, mu], [-alpha, mu]], dtype=complex)) ** k
    a_k, mu_k = over_steps(Dynamics(a, mu), k)
    alpha_k = (1 - mu_k) * a_k
    block = np.array([[1 - alpha_k, mu_k], [-alpha_k, mu_k]])
    assert np.trace(block) == pytest.approx(complex(powers.sum()).real, abs=1e-9)
    assert np.linalg.det(block) == pytest.approx(complex(powers.prod()).real, abs=1e-9)
    assert (a_k, mu_k) == pytest.approx(over(k, a, mu), rel=1e-6, abs=1e-9)


def jump(steps: int, **options: Any) -> tuple[float, Belay]:
    """The average, where the one weight goes from 0 to 1 by the first step and stays there."""
    x = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = SGD([x], lr=1.0)
    belay = Belay(optimizer, warmup=None, **options)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1.0 if step == 0 else 0.0
        x.grad = torch.tensor(-1.0, dtype=torch.float64)
        optimizer.step()
    assert float(x.detach()) == 1
    return float(belay.state_dict()["average"]["param_groups.0.0"]), belay


@pytest.mark.parametrize("every", [1, 5, 10])
def test_the_average_forgets_half_in_a_half_life_of_steps(every: int) -> None:
    for half_lives in (1, 2, 3):
        e, belay = jump(20 * half_lives, half_life=20, update_every=every)
        assert belay.updates == 20 * half_lives // every
        assert e == pytest.approx(1 - 0.5**half_lives, abs=1e-14)


@pytest.mark.parametrize("every", [1, 5, 10])
def test_a_decay_is_that_of_one_step(every: int) -> None:
    assert jump(40, decay=0.97, update_every=every)[0] == pytest.approx(1 - 0.97**40, abs=1e-14)


@pytest.mark.parametrize("start", [0, 7])
def test_steps_before_the_start_are_not_averaged(start: int) -> None:
    """The jump is before a later start, so that the average begins with what comes of it."""
    e, belay = jump(27, half_life=20, start_step=start)
    assert (belay.steps, belay.updates) == (27, 27 - start)
    assert e == (1 if start else pytest.approx(1 - 0.5 ** (27 / 20), abs=1e-14))


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"half_life": 5, "decay": 0.9}, "half_life and decay say the same", "give one of the two"),
        ({"half_life": 0.0}, "half_life must be a positive number of steps, not 0", None),
        ({"half_life": math.inf}, "half_life must be a positive number of steps, not inf", None),
        ({"half_life": math.nan}, "half_life must be a positive number of steps, not nan", None),
        ({"decay": 1.0}, "decay must lie in [0, 1), not 1", None),
        ({"decay": -0.5}, "decay must lie in [0, 1), not -0.5", None),
        ({"half_life": 5, "inertia": 1.0}, "inertia must lie in [0, 1), not 1", None),
        ({"inertia": 0.5}, "inertia needs a half_life or a decay", None),
        (
            {"half_life": 5, "warmup": 0.6},
            "warmup is the share of the steps so far by which the average lags, above 0 and at most 0.5, not 0.6",
            "0.1 is the default, 0.5 the uniform mean, None no warm-up",
        ),
        (
            {"warmup": 0.0},
            "warmup is the share of the steps so far by which the average lags, above 0 and at most 0.5, not 0",
            "0.1 is the default, 0.5 the uniform mean, None no warm-up",
        ),
        ({"warmup": None}, "without half_life, decay and warmup nothing says how long the average remembers", None),
    ],
)
def test_averages_that_cannot_be_right_are_refused(options: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as refused:
        Belay(SGD([nn.Parameter(torch.zeros(1))], lr=0.1), **options)
    assert str(refused.value) == message
    assert refused.value.hint == hint


def test_a_decay_of_zero_keeps_the_last_weights() -> None:
    assert jump(1, decay=0.0)[0] == 1
    assert jump(3, decay=0.0, update_every=3)[0] == 1
