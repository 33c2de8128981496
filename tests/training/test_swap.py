"""The average in the model's place: what is there within, and that the weights are back after, whatever happens."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import update_bn

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training.models import averages, backward, data, network, same, train, weights
from tests.training.test_state import agree

STEPS = "the optimizer steps while the average is in the model's place"
STATE = "the model's state dict is asked for while the average is in its place: training would go on from that"
LOAD = "weights are loaded into the model while the average is in its place: they would be lost"

KINDS: list[Any] = [
    pytest.param(torch.float32, {}, id="float32"),
    pytest.param(torch.float64, {"inertia": 0.5}, id="float64"),
    pytest.param(torch.bfloat16, {"stiffness": 0.5}, id="bfloat16"),
    pytest.param(torch.float16, {}, id="float16"),
]


def trained(
    dtype: torch.dtype = torch.float32, steps: int = 5, **options: Any
) -> tuple[nn.Sequential, torch.optim.Optimizer, Belay]:
    model = network(dtype)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5, **options)
    train(model, optimizer, range(steps))
    return model, optimizer, belay


@pytest.mark.parametrize(("dtype", "options"), KINDS)
def test_within_is_the_average_and_after_are_the_weights_bit_for_bit(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model, _, belay = trained(dtype, **options)
    x, state = weights(model), copy.deepcopy(belay.state_dict())
    for _ in range(3):
        with belay.averaged():
            assert same(weights(model), [e.to(dtype) for e in state["average"].values()])
            assert not same(weights(model), x)
            agree(belay.state_dict(), state)
        assert same(weights(model), x)
        agree(belay.state_dict(), state)


@pytest.mark.parametrize(("dtype", "options"), KINDS)
def test_an_exception_within_puts_the_weights_back(dtype: torch.dtype, options: dict[str, Any]) -> None:
    model, _, belay = trained(dtype, **options)
    x, e = weights(model), averages(belay)
    with pytest.raises(KeyboardInterrupt), belay.averaged():
        raise KeyboardInterrupt
    assert same(weights(model), x)
    assert same(averages(belay), e)


def test_nested_is_once() -> None:
    model, _, belay = trained()
    x, e = weights(model), averages(belay)
    with belay.averaged():
        with belay.averaged():
            assert same(weights(model), e)
        assert same(weights(model), e)
    assert same(weights(model), x)


def test_twice_is_once() -> None:
    model, _, belay = trained()
    x, e = weights(model), averages(belay)
    belay.train()
    assert same(weights(model), x)
    belay.eval()
    belay.eval()
    assert same(weights(model), e)
    with belay.averaged():
        assert same(weights(model), e)
    assert same(weights(model), e)
    belay.train()
    belay.train()
    assert same(weights(model), x)


@pytest.mark.parametrize("start", [0, 8])
def test_before_the_first_update_the_weights_stay(start: int) -> None:
    """An average that was never updated would be what the training began with (Lightning#21724)."""
    model, optimizer, belay = trained(start_step=start, steps=5 if start else 0)
    x = weights(model)
    with belay.averaged():
        assert same(weights(model), x)
        model.state_dict()
    train(model, optimizer, range(1))


def test_a_step_within_is_refused_and_no_weights_are_lost() -> None:
    model, optimizer, belay = trained()
    x, e = weights(model), averages(belay)
    with belay.averaged():
        backward(model, 9)
        with pytest.raises(UsageError) as refused:
            optimizer.step()
        assert str(refused.value) == STEPS
        assert refused.value.hint == "leave averaged(), or call train(), before training goes on"
        assert same(weights(model), e)
    assert same(weights(model), x)
    assert same(averages(belay), e)
    assert belay.steps == 5


def test_the_models_state_dict_within_is_refused() -> None:
    """It would be stored, and training go on from the average (schnetpack#785, YOLOX#1318)."""
    model, _, belay = trained()
    whole = nn.ModuleDict({"part": model})
    before = copy.deepcopy(model.state_dict())
    with belay.averaged():
        for module in (model, whole, nn.DataParallel(model)):
            with pytest.raises(UsageError) as refused:
                module.state_dict()
            assert str(refused.value) == STATE
            assert refused.value.hint == (
                "leave averaged() before; for the average itself: averaged_state_dict(), or save()"
            )
        with pytest.raises(UsageError) as refused:
            model.load_state_dict(before)
        assert str(refused.value) == LOAD
        assert refused.value.hint == "leave averaged(), or call train(), before"
        average = belay.averaged_state_dict()
    assert same(average.values(), averages(belay))
    assert same(model.state_dict().values(), before.values())
    model.load_state_dict(before)


def test_a_copy_of_the_model_is_a_model_of_its_own() -> None:
    """Made within it is the average; either way it does not drag Belay along, nor the optimizer."""
    model, _, belay = trained()
    outside = copy.deepcopy(model)
    pickled = io.BytesIO()
    torch.save(model, pickled)
    with belay.averaged():
        outside.state_dict()
        inside = copy.deepcopy(model)
        inside.state_dict()
        unpickled = torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)
        unpickled.load_state_dict(outside.state_dict())
    assert same(inside.state_dict().values(), averages(belay))
    assert same(outside.state_dict().values(), weights(model))
    assert same(unpickled.state_dict().values(), weights(model))
    assert b"belay.Belay" not in pickled.getvalue()
    assert len(pickle.dumps(model)) < len(pickle.dumps(network(torch.float32))) + 500


def test_swapping_takes_no_third_copy() -> None:
    """The bytes change places between the two that are there."""
    model, _, belay = trained()
    places = [
        [p.data_ptr() for p in model.parameters()],
        [e.data_ptr() for e in belay.state_dict()["average"].values()],
    ]
    with belay.averaged():
        held = [one.average.data_ptr() for one in belay._state]
        assert [[p.data_ptr() for p in model.parameters()], held] == places
        assert belay._aside == {}
    now = [[p.data_ptr() for p in model.parameters()], [e.data_ptr() for e in belay.state_dict()["average"].values()]]
    assert now == places


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def test_running_statistics_are_those_of_the_weights_again() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(5))
    before, x = statistics(model), weights(model)
    with belay.averaged():
        assert same(statistics(model), before)
        update_bn([data(step)[0] for step in range(3)], model)
        assert not same(statistics(model), before)
        within = statistics(model)
        with torch.no_grad():
            hidden = torch.stack([model[0](data(step)[0]).mean(0) for step in range(3)]).mean(0)
        assert torch.allclose(within[0], hidden)
    assert same(statistics(model), before)
    assert same(weights(model), x)


@pytest.mark.parametrize("outer", [True, False])
def test_an_evaluation_in_inference_mode_may_swap_within_or_outside_of_it(outer: bool) -> None:
    model, optimizer, belay = trained()
    x, e = weights(model), averages(belay)
    mode: Any = torch.inference_mode()
    with mode if outer else belay.averaged(), belay.averaged() if outer else mode:
        model(data(0, torch.float32)[0])
        assert same(weights(model), e)
    assert same(weights(model), x)
    train(model, optimizer, range(5, 7))
    assert belay.steps == 7


MIXED = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float64]


@pytest.mark.parametrize("failing", range(len(MIXED) + 3))
def test_when_memory_ends_while_swapping_no_weights_are_lost(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block is copied at a time: five on the way in, three on the way back, where the narrow ones need none."""
    parameters = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in MIXED]
    optimizer = SGD(parameters, lr=0.5)
    belay = Belay(optimizer, half_life=5, warmup=None)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    x, e = [p.detach().clone() for p in parameters], averages(belay)
    clone, calls = torch.Tensor.clone, 0

    def limited(self: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return clone(self)

    monkeypatch.setattr(torch.Tensor, "clone", limited)
    with pytest.raises(torch.OutOfMemoryError), belay.averaged():
        assert failing >= len(MIXED)
    monkeypatch.undo()
    if failing >= len(MIXED):
        with pytest.raises(UsageError) as refused:
            optimizer.step()
        assert str(refused.value) == STEPS
        belay.train()
    assert same([p.detach() for p in parameters], x)
    assert same(averages(belay), e)
    optimizer.step()
    with belay.averaged():
        assert not same([p.detach() for p in parameters], x)


def test_forgotten_within_the_state_is_the_one_from_outside() -> None:
    """Stored while the average was left in place, it goes on as it would have."""
    model, optimizer, belay = trained(inertia=0.5)
    x = weights(model)
    belay.eval()
    stored = copy.deepcopy(belay.state_dict())
    belay.train()
    train(model, optimizer, range(5, 8))

    other = network(torch.float32)
    plain = SGD(other.parameters(), lr=0.05)
    resumed = Belay(plain, model=other, half_life=5, inertia=0.5)
    with torch.no_grad():
        for p, w in zip(other.parameters(), x, strict=True):
            p.copy_(w)
    resumed.load_state_dict(stored)
    train(other, plain, range(5, 8))
    assert same(weights(other), weights(model))
    assert same(averages(resumed), averages(belay))


def test_removing_belay_while_swapped_leaves_the_weights() -> None:
    model, optimizer, belay = trained()
    x = weights(model)
    belay.eval()
    belay.remove()
    assert same(weights(model), x)
    model.load_state_dict(model.state_dict())
    train(model, optimizer, range(2))
    assert belay.steps == 5
