"""A training that was stopped goes on bit for bit; a state of something else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training.models import averages, distance, network, same, train, weights

N = 7
PATH = Path("stopped.pt")

Make = Callable[[nn.Module], Optimizer]


def momentum(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=0.01)


RESUMED: dict[str, tuple[Make, torch.dtype, dict[str, Any]]] = {
    "momentum": (momentum, torch.float32, {"half_life": 3, "warmup": None, "stiffness": 1.0}),
    "adam": (adam, torch.float32, {"half_life": 3, "stiffness": 0.2, "metric": "optimizer"}),
    "explicit": (adam, torch.float32, {"half_life": 3, "feedback": 0.2, "implicit": False}),
    "bfloat16": (momentum, torch.bfloat16, {"half_life": 3, "stiffness": 1.0}),
    "inertia": (momentum, torch.float32, {"half_life": 3, "inertia": 0.7, "stiffness": 1.0}),
    "warm-up in progress": (momentum, torch.float32, {"half_life": 1000, "stiffness": 1.0}),
    "warm-up without end": (momentum, torch.float64, {"warmup": 0.5}),
    "every third step": (momentum, torch.float32, {"half_life": 3, "stiffness": 1.0, "update_every": 3}),
    "not begun": (momentum, torch.float32, {"half_life": 3, "stiffness": 1.0, "start_step": 9}),
    "about to begin": (momentum, torch.float32, {"half_life": 3, "stiffness": 1.0, "start_step": N}),
    "all at once": (
        adam,
        torch.bfloat16,
        {"half_life": 3, "stiffness": 0.2, "metric": "optimizer", "inertia": 0.5, "update_every": 2, "start_step": 1},
    ),
}


def begin(kind: str) -> tuple[nn.Sequential, Optimizer, Belay]:
    make, dtype, options = RESUMED[kind]
    model = network(dtype)
    optimizer = make(model)
    return model, optimizer, Belay(optimizer, model=model, **options)


def stop(model: nn.Module, optimizer: Optimizer, belay: Belay) -> None:
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "belay": belay.state_dict()}
    torch.save(whole, PATH)


def go_on(model: nn.Module, optimizer: Optimizer, belay: Belay) -> None:
    loaded = torch.load(PATH, weights_only=True)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    belay.load_state_dict(loaded["belay"])


def agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every part of two states, bit for bit."""
    assert list(ours) == list(theirs)
    for part, value in ours.items():
        if part in ("average", "velocity", "carry"):
            assert list(value) == list(theirs[part])
            assert same(value.values(), theirs[part].values()), part
        else:
            assert value == theirs[part], part


@pytest.mark.parametrize("release", [False, True], ids=["", "released"])
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_training_goes_on_bit_for_bit(kind: str, release: bool) -> None:
    straight, hooked, belay = begin(kind)
    train(straight, hooked, range(N))
    if release:
        belay.release()
    train(straight, hooked, range(N, 2 * N))

    stopped, optimizer, before = begin(kind)
    train(stopped, optimizer, range(N))
    if release:
        before.release()
    stop(stopped, optimizer, before)

    model, optimizer, after = begin(kind)
    go_on(model, optimizer, after)
    agree(after.state_dict(), before.state_dict())
    train(model, optimizer, range(N, 2 * N))
    assert same(weights(model), weights(straight))
    agree(after.state_dict(), belay.state_dict())
    assert after.steps == 2 * N
    if RESUMED[kind][1] == torch.bfloat16:
        assert any(carry.abs().max() > 0 for carry in after.state_dict()["carry"].values())


def test_an_average_that_is_as_long_as_the_training_outlives_a_stop_in_each_step() -> None:
    """The counter is what a warm-up goes by: begun anew it would write over the average."""
    straight, hooked, belay = begin("warm-up without end")
    seen: list[list[torch.Tensor]] = []
    train(straight, hooked, range(N), lambda: seen.append(weights(straight)))
    model, optimizer, resumed = begin("warm-up without end")
    for step in range(N):
        stop(model, optimizer, resumed)
        model, optimizer, resumed = begin("warm-up without end")
        go_on(model, optimizer, resumed)
        train(model, optimizer, [step])
    mean = [torch.stack(each).mean(0) for each in zip(*seen, strict=True)]
    assert distance(averages(resumed), mean) < 1e-15
    agree(resumed.state_dict(), belay.state_dict())


def test_loading_shares_no_memory_with_what_is_loaded() -> None:
    _, _, belay = begin("inertia")
    state = belay.state_dict()
    copies = {part: {k: t.clone() for k, t in state[part].items()} for part in ("average", "velocity", "carry")}
    model, optimizer, other = begin("inertia")
    other.load_state_dict({**state, **copies})
    train(model, optimizer, range(3))
    for part in ("average", "velocity"):
        assert same(copies[part].values(), state[part].values())


def test_a_state_is_the_same_keys_before_the_first_step_and_after() -> None:
    model, optimizer, belay = begin("all at once")
    before = {part: list(value) for part, value in belay.state_dict().items() if isinstance(value, dict)}
    train(model, optimizer, range(4))
    assert {part: list(value) for part, value in belay.state_dict().items() if isinstance(value, dict)} == before
    names = [name for name, _ in model.named_parameters()]
    assert before == {"since": names, "average": names, "velocity": names, "carry": names}


def test_without_inertia_and_narrow_weights_the_average_is_all_that_is_held() -> None:
    model, _, belay = begin("momentum")
    state = belay.state_dict()
    assert (state["velocity"], state["carry"]) == ({}, {})
    held = sum(e.nbytes for e in state["average"].values())
    assert held == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("kind", ["momentum", "inertia", "bfloat16"])
def test_what_a_state_lacks_begins_at_zero(kind: str) -> None:
    """Inertia, or a spring on narrow weights, that is new since the state was stored; and what is no longer wanted."""
    model, optimizer, belay = begin(kind)
    train(model, optimizer, range(N))
    state = belay.state_dict()
    state["velocity"], state["carry"] = {}, {"0.weight": torch.ones(5, 3)}
    belay.load_state_dict(state)
    now = belay.state_dict()
    assert all(not v.any() for v in now["velocity"].values())
    assert list(now["carry"]) == (["0.weight", "0.bias", "2.weight", "2.bias"] if kind == "bfloat16" else [])
    assert not any(c.any() for name, c in now["carry"].items() if name != "0.weight")


@pytest.mark.parametrize("part", ["steps", "updates", "released", "since", "average"])
def test_a_state_without_a_part_is_none_of_belay(part: str) -> None:
    _, _, belay = begin("momentum")
    state = belay.state_dict()
    del state[part]
    with pytest.raises(UsageError) as refused:
        belay.load_state_dict(state)
    assert str(refused.value) == f"this is no state of Belay: it has no {part!r}"


def test_a_state_of_other_parameters_is_refused_and_nothing_of_it_is_taken() -> None:
    model, optimizer, belay = begin("momentum")
    train(model, optimizer, range(3))
    before = averages(belay)
    state = {**belay.state_dict(), "steps": 99}

    more = {**state, "average": {**state["average"], "4.weight": torch.zeros(1)}}
    with pytest.raises(UsageError) as refused:
        belay.load_state_dict(more)
    assert str(refused.value) == "is in the state and not in the optimizer"
    assert refused.value.tensor == "4.weight"
    assert refused.value.hint == "load it when the optimizer has its groups"

    less = {**state, "average": {k: t for k, t in state["average"].items() if k != "0.bias"}}
    with pytest.raises(UsageError) as refused:
        belay.load_state_dict(less)
    assert str(refused.value) == "is in the optimizer and not in the state"
    assert refused.value.tensor == "0.bias"

    zeros = {k: torch.zeros_like(t) for k, t in state["average"].items()}
    with pytest.raises(UsageError) as refused:
        belay.load_state_dict({**state, "average": {**zeros, "2.weight": torch.zeros(5, 2)}})
    assert str(refused.value) == "is (5, 2) in the state and (2, 5) in the optimizer"
    assert refused.value.tensor == "2.weight"

    assert belay.steps == 3
    assert same(averages(belay), before)


def test_a_state_is_not_loaded_while_the_average_is_in_place() -> None:
    model, optimizer, belay = begin("momentum")
    train(model, optimizer, range(3))
    state = belay.state_dict()
    with belay.averaged(), pytest.raises(UsageError) as refused:
        belay.load_state_dict(state)
    assert str(refused.value) == "a state is loaded while the average is in the model's place"
    assert refused.value.hint == "call train() before"


def test_a_state_from_another_dtype_of_the_weights_is_taken() -> None:
    """Averages are float32 for both."""
    model, optimizer, belay = begin("bfloat16")
    train(model, optimizer, range(N))
    _, _, other = begin("momentum")
    other.load_state_dict(belay.state_dict())
    assert same(averages(other), averages(belay))
