"""What the pull is: a penalty on the loss, or a proximal step; how far the two are stable; what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RAdam

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from belay_cli.training.spring import LARGEST_SHARE, Spring
from tests.training.models import averages, backward, data, distance, network, weights


def test_an_explicit_stiffness_is_sgd_on_the_loss_and_a_penalty() -> None:
    """SGD on loss + k/2 · |x − e|², with e held, by autograd."""
    model, k, rate = network(), 0.8, 0.05
    optimizer = SGD(model.parameters(), lr=rate)
    belay = Belay(optimizer, model=model, half_life=7, stiffness=k, implicit=False)
    worst = 0.0
    for step in range(50):
        penalised = network()
        penalised.load_state_dict(model.state_dict())
        x, y = data(step)
        apart = sum((p - e).square().sum() for p, e in zip(penalised.parameters(), averages(belay), strict=True))
        ((penalised(x) - y).square().mean() + k / 2 * apart).backward()
        SGD(penalised.parameters(), lr=rate).step()
        backward(model, step)
        optimizer.step()
        worst = max(worst, distance(weights(model), weights(penalised)))
    assert worst < 2e-15


def test_an_implicit_stiffness_is_a_proximal_step() -> None:
    """x' is where <g, x> + |x − x₀|²/(2η) + k/2 · |x − e|² is least: its gradient vanishes there."""
    model, k, rate = network(), 0.8, 0.05
    optimizer = SGD(model.parameters(), lr=rate)
    belay = Belay(optimizer, model=model, half_life=7, stiffness=k)
    for step in range(50):
        backward(model, step)
        before, e = weights(model), averages(belay)
        g = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        for x0, x, e0, slope in zip(before, weights(model), e, g, strict=True):
            assert float((slope + (x - x0) / rate + k * (x - e0)).abs().max()) < 1e-12


def test_an_implicit_stiffness_in_the_metric_is_a_proximal_step_in_that_metric() -> None:
    """x' is where |x − x̂|² by (√v̂ + ε)/(2η) + k/2 · |x − e|² is least, x̂ the point that AdamW steps to."""
    model, plain, k, rate = network(), network(), 0.8, 0.05
    optimizer, unhooked = AdamW(model.parameters(), lr=rate), AdamW(plain.parameters(), lr=rate)
    belay = Belay(optimizer, model=model, half_life=7, stiffness=k, metric="optimizer")
    for step in range(20):
        plain.load_state_dict(model.state_dict())
        unhooked.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        backward(plain, step)
        unhooked.step()
        e = averages(belay)
        backward(model, step)
        optimizer.step()
        for p, x_hat, e0 in zip(model.parameters(), weights(plain), e, strict=True):
            state = optimizer.state[p]
            scale = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8
            assert float((scale * (p.detach() - x_hat) / rate + k * (p.detach() - e0)).abs().max()) < 1e-12


@given(
    st.floats(0.001, 1.0), st.floats(0.0, 5.0), st.floats(0.9, 1.1).filter(lambda f: abs(f - 1) > 1e-3), st.booleans()
)
def test_the_spring_is_stable_up_to_the_rates_that_are_written_down(
    a: float, s: float, factor: float, implicit: bool
) -> None:
    """On a quadratic, of (x, e), at a little less or more than the largest stable h = rate · curvature."""
    limit = 2 + 2 * s / (2 - a) if implicit else 2 - 2 * s * (1 - a) / (2 - a)
    h = limit * factor
    if h <= 0 or (not implicit and s > 1):
        return
    row = [(1 - h) / (1 + s), s / (1 + s)] if implicit else [1 - h - s, s]
    block = np.array([[1, 0], [a, 1 - a]]) @ np.array([row, [0, 1]])  # x first, then e by the new x
    radius = max(abs(np.linalg.eigvals(block)))
    assert (radius <= 1 + 1e-12) == (factor < 1)


def quadratic(rate: float, steps: int, **options: Any) -> float:
    """|x| after SGD on x²/2 from 1."""
    x = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SGD([x], lr=rate)
    Belay(optimizer, decay=0.9, warmup=None, **options)
    for _ in range(steps):
        x.grad = x.detach().clone()
        optimizer.step()
    return abs(float(x.detach()))


def test_an_implicit_spring_is_stable_at_rates_at_which_sgd_is_not() -> None:
    assert quadratic(2.1, 400) > 1e6
    assert quadratic(2.1, 400, stiffness=0.5, implicit=False) > 1e6
    assert quadratic(2.1, 400, stiffness=0.5) < 1e-6
    for rate in (3.0, 30.0, 3000.0):
        assert quadratic(rate, 500, stiffness=0.95) <= 1 + 1e-9  # (1 − a/2) λ: no largest rate
    assert quadratic(3000.0, 400, stiffness=0.9) > 1e3


def test_a_share_is_below_one_whatever_the_strength() -> None:
    for strength in (0.0, 1e-9, 0.5, 1.0, 10.0, 1e300):
        assert Spring(stiffness=1.0).share(strength) == strength / (1 + strength) <= 1
        assert Spring(stiffness=1.0, implicit=False).share(strength) == min(strength, LARGEST_SHARE)


def test_no_spring_is_none() -> None:
    options: dict[str, Any] = {"metric": None, "a": 0.1, "implicit": True}
    for feedback, stiffness in ((None, None), (0.0, None), (None, 0.0)):
        assert Spring.of(feedback, stiffness, **options) is None


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"feedback": -1.0}, "feedback must be a number of 0 or more, not -1", None),
        ({"stiffness": math.nan}, "stiffness must be a number of 0 or more, not nan", None),
        ({"stiffness": math.inf}, "stiffness must be a number of 0 or more, not inf", None),
        (
            {"feedback": 1.0, "stiffness": 1.0},
            "feedback and stiffness are two ways to say how hard the spring pulls",
            "give one",
        ),
        ({"stiffness": 1.0, "metric": "adam"}, "metric is 'optimizer' or None, not 'adam'", None),
        (
            {"metric": "optimizer"},
            "metric says in which metric a stiffness pulls",
            "give a stiffness, or no metric",
        ),
        (
            {"feedback": 1.0, "metric": "optimizer"},
            "metric says in which metric a stiffness pulls",
            "give a stiffness, or no metric",
        ),
        (
            {"feedback": 1.0, "half_life": None},
            "feedback is a share of 1 − decay",
            "give a half_life or a decay, or a stiffness",
        ),
        (
            {"feedback": 8.0, "half_life": 2.0, "implicit": False},
            "an explicit pull of 2.34315 of the way to the average is unstable",
            "take a longer half_life, a smaller feedback, or the implicit spring",
        ),
    ],
)
def test_springs_that_cannot_be_right_are_refused(options: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as refused:
        Belay(SGD(network().parameters(), lr=0.1), **{"half_life": 10.0, **options})
    assert str(refused.value) == message
    assert refused.value.hint == hint


@pytest.mark.parametrize("make", [SGD, Adagrad])
def test_an_optimizer_without_second_moments_has_no_metric(make: Any) -> None:
    model = network()
    optimizer = make(model.parameters(), lr=0.1, **({"momentum": 0.9} if make is SGD else {}))
    Belay(optimizer, model=model, half_life=5, stiffness=1.0, metric="optimizer")
    backward(model, 0)
    with pytest.raises(UsageError) as refused:
        optimizer.step()
    assert str(refused.value) == (
        "metric='optimizer' needs the second moments that Adam and its kin keep (exp_avg_sq), "
        "and this optimizer has none"
    )
    assert refused.value.tensor == "0.weight"
    assert refused.value.hint == "leave metric out"


@pytest.mark.parametrize("make", [Adam, AdamW, RAdam])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}])
def test_the_kin_of_adam_have_a_metric(make: Any, options: dict[str, Any]) -> None:
    model, plain = network(), network()
    optimizer, unhooked = make(model.parameters(), lr=0.01, **options), make(plain.parameters(), lr=0.01, **options)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0, metric="optimizer")
    for step in range(10):
        backward(model, step)
        optimizer.step()
        backward(plain, step)
        unhooked.step()
    assert belay.updates == 10
    assert 1e-4 < distance(weights(model), weights(plain)) < 1


@pytest.mark.parametrize("implicit", [True, False])
def test_an_optimizer_without_any_state_has_no_metric(implicit: bool) -> None:
    """SGD without momentum keeps nothing: a spring that never pulls would pass for one."""
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    Belay(optimizer, model=model, half_life=3, stiffness=1.0, metric="optimizer", implicit=implicit)
    torch.autograd.backward(model(torch.ones(1, 3)).sum())
    with pytest.raises(UsageError) as refused:
        optimizer.step()
        optimizer.step()
    assert str(refused.value).startswith("metric='optimizer' needs the second moments that Adam and its kin keep")
    assert refused.value.tensor == "weight"


@pytest.mark.parametrize("name", ["half_life", "decay", "inertia", "warmup", "feedback", "stiffness"])
@pytest.mark.parametrize("value", ["10%", True, [1.0]])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    options = {"half_life": 3, name: value}
    if name == "decay":
        del options["half_life"]
    with pytest.raises(UsageError) as refused:
        Belay(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), **options)
    assert str(refused.value) == f"{name} must be a number, not {value!r}"
    assert refused.value.hint == ("of steps: nobody knows here how many there will be" if name == "half_life" else None)
