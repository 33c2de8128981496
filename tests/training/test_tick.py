"""The arithmetic of one tick on tensors, against the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from belay_cli.training import tick

NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
SHARES = st.floats(0.0, 0.99)
NARROW = [torch.bfloat16, torch.float16]


def of(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values).to(dtype)


def close(ours: torch.Tensor, theirs: torch.Tensor, scale: float, eps: float) -> bool:
    return float((ours.double() - theirs).abs().max()) <= eps * (scale + 1e-30)


def largest(*values: list[float]) -> float:
    return max(abs(v) for each in values for v in each)


@given(NUMBERS, NUMBERS, SHARES)
def test_a_pull_goes_its_share_of_the_way(x: list[float], e: list[float], share: float) -> None:
    moved = of(x)
    tick.pull([moved], [of(e)], [], share)
    assert close(moved, of(x).double().lerp(of(e).double(), share), largest(x, e), 3e-7)


@pytest.mark.parametrize("dtype", NARROW)
@given(x=NUMBERS, e=NUMBERS, share=SHARES)
def test_what_a_narrow_weight_cannot_show_of_a_pull_is_carried(
    dtype: torch.dtype, x: list[float], e: list[float], share: float
) -> None:
    moved, carry = of(x, dtype), torch.zeros(3)
    start = moved.double()
    for _ in range(3):
        tick.pull([moved], [of(e)], [carry], share)
        start = start.lerp(of(e).double(), share)
        assert close(moved.double() + carry.double(), start, largest(x, e), 1e-6)
        assert torch.equal(moved, (moved.float() + carry).to(dtype))
        # Half a unit in the last place: a subnormal has a fixed one.
        info = torch.finfo(dtype)
        assert bool((carry.abs() <= info.eps / 2 * moved.float().abs() + info.smallest_normal * info.eps).all())


@given(NUMBERS, SHARES, st.floats(0.01, 1.0))
def test_where_the_model_is_its_average_nothing_moves(x: list[float], share: float, a: float) -> None:
    for dtype in (torch.float32, *NARROW):
        model = of(x, dtype)
        e = model.float()
        carry = [] if dtype == torch.float32 else [torch.zeros(3)]
        tick.pull([model], [e], carry, share)
        tick.average([model], [e], [], carry, a, 0.0)
        moments = [torch.ones(3)]
        tick.pull_in_metric([model], [e], carry, moments, [1.0], 1e-8, share, None)
        assert torch.equal(model, of(x, dtype))
        assert torch.equal(e, of(x, dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@given(x=NUMBERS, e=NUMBERS, v=NUMBERS, rest=NUMBERS, a=st.floats(0.0, 1.0), inertia=st.floats(0.0, 0.99))
def test_an_average_moves_by_its_speed(
    dtype: torch.dtype, x: list[float], e: list[float], v: list[float], rest: list[float], a: float, inertia: float
) -> None:
    """Towards the weight that is carried, where one is."""
    average, velocity = of(e), of(v)
    carry = [] if dtype == torch.float32 else [of(rest)]
    weight = of(x, dtype).double() + (carry[0].double() if carry else 0)
    speed = (1 - inertia) * a * (weight - of(e).double())
    if inertia:
        speed = inertia * of(v).double() + speed
    tick.average([of(x, dtype)], [average], [velocity] if inertia else [], carry, a, inertia)
    assert close(average, of(e).double() + speed, largest(x, e, v, rest), 1e-6)
    if inertia:
        assert close(velocity, speed, largest(x, e, v, rest), 1e-6)


def test_the_first_average_is_the_weights_to_the_last_bit() -> None:
    x, e = torch.randn(1000), torch.randn(1000)
    tick.average([x], [e], [], [], 1.0, 0.0)
    assert torch.equal(x, e)


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("largest_share", [None, 0.99], ids=["implicit", "explicit"])
@given(
    x=NUMBERS,
    e=NUMBERS,
    moments=st.lists(st.floats(0.0, 100.0, width=32), min_size=3, max_size=3),
    factor=st.floats(1.0, 1000.0),
    eps=st.floats(1e-8, 1e-2),
    strength=st.floats(0.0, 10.0),
)
def test_a_pull_in_the_metric_goes_the_share_of_each_coordinate(
    dtype: torch.dtype,
    largest_share: float | None,
    x: list[float],
    e: list[float],
    moments: list[float],
    factor: float,
    eps: float,
    strength: float,
) -> None:
    assume(all(m == 0 or m > 1e-30 for m in moments))  # below, float32 has fewer digits
    moved, second = of(x, dtype), of(moments)
    carry = [] if dtype == torch.float32 else [torch.zeros(3)]
    s = strength / ((second.double() * factor).sqrt() + eps)
    share = s / (1 + s) if largest_share is None else s.clamp(max=largest_share)
    expected = moved.double() + share * (of(e).double() - moved.double())
    tick.pull_in_metric([moved], [of(e)], carry, [second], [factor], eps, strength, largest_share)
    exact = moved.double() + (carry[0].double() if carry else 0)
    assert close(exact, expected, largest(x, e), 2e-6)
    assert torch.equal(second, of(moments))
