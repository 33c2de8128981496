"""Narrow, wide and complex weights; tensors of odd layouts and sizes, larger than a batch or empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from belay_cli.training import Belay
from belay_cli.training.batches import _ELEMENTS
from tests.training import literal
from tests.training.literal import Literal
from tests.training.models import averages, distance, network, same, train, weights

NARROW = [torch.bfloat16, torch.float16]


def gradients(parameters: list[nn.Parameter], step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def run(parameters: list[nn.Parameter], steps: int, make: Any = SGD, **options: Any) -> Belay:
    """Random gradients, the same in each dtype."""
    optimizer = make(parameters, lr=0.125)
    belay = Belay(optimizer, **{"half_life": 20, **options})
    for step in range(steps):
        gradients(parameters, step)
        optimizer.step()
    return belay


@pytest.mark.parametrize("dtype", NARROW)
def test_the_average_of_narrow_weights_moves_where_a_narrow_one_would_stand_still(dtype: torch.dtype) -> None:
    x = nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = SGD([x], lr=1.0)
    belay = Belay(optimizer, decay=0.9999, warmup=None)
    narrow = x.detach().clone()
    for step in range(200):
        x.grad = torch.full_like(x, -0.5 if step == 0 else 0.0)
        optimizer.step()
        narrow.lerp_(x.detach(), 1e-4)
    (e,) = averages(belay)
    assert e.dtype == torch.float32
    assert torch.equal(narrow, torch.ones_like(narrow))
    assert torch.allclose(e, torch.tensor(1.5 - 0.5 * 0.9999**200), rtol=1e-6)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_pull_of_less_than_half_a_unit_in_the_last_place_adds_up(dtype: torch.dtype) -> None:
    """x + carry is where a float64 model is pulled to, and x is that rounded."""
    x = nn.Parameter(torch.full((4,), 1.5, dtype=dtype))
    optimizer = SGD([x], lr=1.0)
    belay = Belay(optimizer, decay=0.999, warmup=None, feedback=0.5)
    share = 0.5 * 0.001 / (1 + 0.5 * 0.001)
    x.grad = torch.full_like(x, 0.5)
    optimizer.step()  # to 1, with the average behind at 1.5
    wide, e = 1.0, 1.5
    for step in range(400):
        if step:
            x.grad = torch.zeros_like(x)
            optimizer.step()
        wide += share * (e - wide)
        e += 0.001 * (wide - e)
        carry = belay.state_dict()["carry"]["param_groups.0.0"]
        assert torch.allclose(x.detach().double() + carry.double(), torch.tensor(wide, dtype=torch.float64), rtol=2e-6)
        assert torch.equal(x.detach(), (x.detach().float() + carry).to(dtype))
    assert share * 0.5 < torch.finfo(dtype).eps / 2
    assert wide > 1.05
    assert float(x.detach()[0]) == pytest.approx(wide, rel=float(torch.finfo(dtype).eps))
    assert float(averages(belay)[0][0]) == pytest.approx(e, rel=1e-5)


@pytest.mark.parametrize("metric", [None, "optimizer"])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_weights_and_their_carry_are_pulled_as_wide_ones(
    dtype: torch.dtype, implicit: bool, metric: str | None
) -> None:
    """Pull by pull, with what the optimizer's own step rounds away left to it."""
    x = nn.Parameter(torch.linspace(-2, 2, 64).to(dtype))
    optimizer = AdamW([x], lr=0.01, eps=1e-4)
    seen: list[torch.Tensor] = []  # x just before the pull and just after
    look = lambda *_: seen.append(x.detach().double())  # noqa: E731
    if implicit:
        optimizer.register_step_post_hook(look)
    else:
        optimizer.register_step_pre_hook(look)
    options: dict[str, Any] = {"half_life": 3, "stiffness": 0.4, "metric": metric, "implicit": implicit}
    belay = Belay(optimizer, **options)
    if implicit:
        optimizer.register_step_post_hook(look)
    else:
        optimizer.register_step_pre_hook(look)

    for step in range(20):
        (carry,) = (c.double() for c in belay.state_dict()["carry"].values())
        (e,) = (t.double() for t in averages(belay))
        s = torch.full_like(e, 0.004)
        state = optimizer.state.get(x)
        if metric and not implicit:
            s = s * 0 if not state else s / (literal_root(state) + 1e-4)
        gradients([x], step)
        seen.clear()
        optimizer.step()
        if metric and implicit:
            s = s / (literal_root(optimizer.state[x]) + 1e-4)
        before, after = seen
        wide = before + carry
        wide = wide + (s / (1 + s) if implicit else s.clamp(max=0.99)) * (e - wide)
        carry = belay.state_dict()["carry"]["param_groups.0.0"]
        assert torch.allclose(after + carry.double(), wide, rtol=1e-6, atol=1e-7)
        assert torch.equal(after, (after.float() + carry).to(dtype).double())
    assert carry.any()


def literal_root(state: Any) -> torch.Tensor:
    """√v̂ of AdamW."""
    moment: torch.Tensor = state["exp_avg_sq"].double()
    return torch.sqrt(moment / (1 - 0.999 ** float(state["step"])))


@pytest.mark.parametrize("dtype", NARROW)
def test_without_a_spring_narrow_weights_have_no_carry_and_are_those_of_plain_training(dtype: torch.dtype) -> None:
    ours, theirs = network(dtype), network(dtype)
    hooked, plain = SGD(ours.parameters(), lr=0.05), SGD(theirs.parameters(), lr=0.05)
    belay = Belay(hooked, model=ours, half_life=5)
    train(ours, hooked, range(20))
    train(theirs, plain, range(20))
    assert belay.state_dict()["carry"] == {}
    assert same(weights(ours), weights(theirs))
    assert all(e.dtype == torch.float32 for e in averages(belay))


@pytest.mark.parametrize("dtype", NARROW)
def test_the_average_of_narrow_weights_is_the_average_of_what_they_were(dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    e, n = [p.detach().double().numpy() for p in model.parameters()], 0

    def follow() -> None:
        nonlocal n
        n += 1
        a = max(1 - 0.5 ** (1 / 5), 9 / (n + 8))
        for i, p in enumerate(model.parameters()):
            e[i] = e[i] + a * (p.detach().double().numpy() - e[i])

    train(model, optimizer, range(30), follow)
    assert distance((t.double() for t in averages(belay)), map(torch.from_numpy, e)) < 1e-6


def test_dtypes_live_side_by_side_in_one_optimizer() -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.complex64, torch.float32]
    parameters = [nn.Parameter(torch.ones(3, 2, dtype=d)) for d in kinds]
    belay = run(parameters, 5, stiffness=0.5)
    held = averages(belay)
    wide = [torch.float32, torch.float32, torch.float64, torch.float32, torch.complex64, torch.float32]
    assert [e.dtype for e in held] == wide
    assert list(belay.state_dict()["carry"]) == ["param_groups.0.1", "param_groups.0.3"]
    alone = [run([nn.Parameter(torch.ones(3, 2, dtype=torch.float64))], 5, stiffness=0.5)]
    assert held[2].shape == averages(alone[0])[0].shape
    for e, p in zip(held, parameters, strict=True):
        assert not torch.equal(e, torch.ones_like(e))
        assert float((e - p.detach()).abs().max()) < 2


@pytest.mark.parametrize("options", [{}, {"metric": "optimizer"}], ids=["share", "metric"])
def test_complex_weights_are_two_real_ones(options: dict[str, Any]) -> None:
    start = torch.randn(4, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    whole = nn.Parameter(start.clone())
    pairs = nn.Parameter(torch.view_as_real(start).clone())
    results = []
    for p in (whole, pairs):
        optimizer = AdamW([p], lr=0.01)
        belay = Belay(optimizer, half_life=5, stiffness=0.5, inertia=0.3, **options)
        for step in range(10):
            g = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(step))
            p.grad = torch.view_as_complex(g) if p is whole else g
            optimizer.step()
        results.append((p.detach(), averages(belay)[0]))
    (x, e), (x2, e2) = results
    assert e.dtype == torch.complex64
    assert torch.equal(torch.view_as_real(x), x2)
    assert torch.equal(torch.view_as_real(e), e2)


def parameters_of(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g, dtype=dtype)) for shape in shapes]


def against_the_literal_tick(parameters: list[nn.Parameter], steps: int, **options: Any) -> float:
    """The largest difference of x or e in the end."""
    ours = nn.ParameterList(parameters)
    theirs = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in parameters])
    hooked, plain = AdamW(ours.parameters(), lr=0.01), AdamW(theirs.parameters(), lr=0.01)
    belay = Belay(hooked, model=ours, decay=0.9, warmup=None, stiffness=0.7, **options)
    strength = literal.in_metric(0.7) if options.get("metric") else literal.stiffness(0.7)
    inertia = options.get("inertia", 0.0)
    witness = Literal(theirs, plain, decay=0.9, strength=strength, inertia=inertia)
    for step in range(steps):
        gradients(list(ours.parameters()), step)
        hooked.step()
        gradients(list(theirs.parameters()), step)
        witness.step()
    return max(distance(weights(ours), weights(theirs)), distance(averages(belay), witness.averages()))


@pytest.mark.parametrize("options", [{}, {"inertia": 0.5}, {"metric": "optimizer"}], ids=["", "inertia", "metric"])
def test_tensors_of_every_size_are_averaged(options: dict[str, Any]) -> None:
    """Larger than a batch, a batch, several in one, one that does not fit the rest, empty ones, a number."""
    most = _ELEMENTS["cpu"]
    parameters = parameters_of([(2 * most + 7,), (0, 3), (), (most,), (5, 5), (most - 10,), (20,), (0,), (1, 1, 1)])
    assert against_the_literal_tick(parameters, 2, **options) < 1e-13


@pytest.mark.parametrize("options", [{}, {"inertia": 0.5}, {"metric": "optimizer"}], ids=["", "inertia", "metric"])
def test_layouts_are_kept_and_averaged(options: dict[str, Any]) -> None:
    """Channels last, transposed, a step of two; each also larger than a batch."""
    most = _ELEMENTS["cpu"]
    shapes: list[tuple[int, ...]] = [(8, 4, 3, 3), (4, most // 8 + 1, 3, 3), (6, 5), (3, most), (10,)]
    first, large, transposed, long, strided = (p.detach() for p in parameters_of(shapes))
    parameters = [
        nn.Parameter(first.to(memory_format=torch.channels_last)),
        nn.Parameter(large.to(memory_format=torch.channels_last)),
        nn.Parameter(transposed.T),
        nn.Parameter(long.T),
        nn.Parameter(strided[::2]),
    ]
    strides = [p.stride() for p in parameters]
    assert against_the_literal_tick(parameters, 2, **options) < 1e-13
    assert [p.stride() for p in parameters] == strides


def test_the_average_has_the_layout_of_its_weights() -> None:
    conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    belay = Belay(SGD(conv.parameters(), lr=0.1), model=conv, half_life=5, inertia=0.5)
    state = belay.state_dict()
    for part in ("average", "velocity"):
        assert state[part]["weight"].stride() == conv.weight.stride()


def test_weights_that_are_given_other_memory_are_followed() -> None:
    """As `model.to(…)` does, and assignments to `.data`."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0)
    train(model, optimizer, range(3))
    for p in model.parameters():
        p.data = p.data.clone()
    train(model, optimizer, range(3, 6))
    other = network()
    plain = SGD(other.parameters(), lr=0.05)
    unmoved = Belay(plain, model=other, half_life=5, stiffness=1.0)
    train(other, plain, range(6))
    assert same(weights(model), weights(other))
    assert same(averages(belay), averages(unmoved))


def test_a_gradient_that_is_not_there_moves_nothing_and_is_averaged() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamW([used, unused], lr=0.1)
    belay = Belay(optimizer, half_life=5, stiffness=0.5, metric="optimizer")
    for _ in range(3):
        used.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(3))
    assert torch.equal(averages(belay)[1], torch.ones(3))
    assert np.all(averages(belay)[0].numpy() < 1)


def test_a_model_may_become_narrower_while_it_trains() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(model(torch.ones(1, 4, dtype=dtype)).sum())
            optimizer.step()
    state = belay.state_dict()
    assert state["updates"] == 6
    assert set(state["carry"]) == {"weight", "bias"}
    assert all(tensor.isfinite().all() for tensor in state["average"].values())
