"""Through torch.distributed.checkpoint, whose own ways of reading an optimizer step it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW, Optimizer

from belay_cli.training import Belay
from tests.training.models import averages, backward, network, same, train, weights
from tests.training.test_state import agree

# One process without a group is what is meant.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

N = 5
OPTIONS: dict[str, Any] = {"half_life": 3, "stiffness": 0.2}


def begin(
    make: type[Optimizer], dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, Optimizer, Belay]:
    model = network(dtype)
    optimizer = make(model.parameters(), lr=0.02)  # type: ignore[call-arg]
    return model, optimizer, Belay(optimizer, model=model, **OPTIONS, **options)


@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize("options", [{}, {"inertia": 0.5, "dtype": torch.bfloat16}], ids=["", "bfloat16 and inertia"])
def test_a_training_goes_on_from_a_distributed_checkpoint_bit_for_bit(
    make: type[Optimizer], options: dict[str, Any]
) -> None:
    straight, hooked, belay = begin(make, **options)
    train(straight, hooked, range(N))
    of_model, of_optimizer = get_state_dict(straight, hooked)
    dcp.save({"model": of_model, "optim": of_optimizer, "belay": belay}, checkpoint_id="stored")
    train(straight, hooked, range(N, 2 * N))

    model, optimizer, resumed = begin(make, **options)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optim": of_optimizer, "belay": resumed}
    dcp.load(state, checkpoint_id="stored")
    model.load_state_dict(of_model)
    set_optimizer_state_dict(model, optimizer, of_optimizer)
    assert (resumed.steps, resumed.updates) == (N, N)
    train(model, optimizer, range(N, 2 * N))
    assert same(weights(model), weights(straight))
    agree(resumed.state_dict(), belay.state_dict())


def test_a_distributed_checkpoint_made_a_torch_file_is_loaded_too() -> None:
    """It leaves out parts that are empty, such as the velocities where there is no inertia."""
    model, optimizer, belay = begin(SGD)
    train(model, optimizer, range(N))
    dcp.save({"belay": belay}, checkpoint_id="stored")
    dcp_to_torch_save("stored", "stored.pt")
    loaded = torch.load(Path("stored.pt"), weights_only=True)
    _, _, resumed = begin(SGD)
    resumed.load_state_dict(loaded["belay"])
    agree(resumed.state_dict(), belay.state_dict())


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_reading_or_setting_the_state_of_a_fresh_optimizer_is_no_step(make: type[Optimizer], implicit: bool) -> None:
    """Both step the optimizer, at rate 0 and by gradients of 0, so that its state exists (pytorch#164929)."""
    model, optimizer, belay = begin(make, implicit=implicit)
    before, e = weights(model), averages(belay)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    state = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, state)
    assert calls
    assert (belay.steps, belay.updates) == (0, 0)
    assert same(weights(model), before)
    assert same(averages(belay), e)
    train(model, optimizer, range(1))
    assert (belay.steps, belay.updates) == (1, 1)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_reading_the_state_of_plain_sgd_in_the_middle_of_training_is_no_step(implicit: bool) -> None:
    model, optimizer, belay = begin(SGD, implicit=implicit)
    train(model, optimizer, range(N))
    optimizer.zero_grad()
    before, e = weights(model), averages(belay)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    state = get_optimizer_state_dict(model, optimizer)
    set_optimizer_state_dict(model, optimizer, state)
    assert len(calls) == 2
    assert (belay.steps, belay.updates) == (N, N)
    assert same(weights(model), before)
    assert same(averages(belay), e)


def test_the_weights_that_are_loaded_after_belay_is_made_are_what_the_average_begins_with() -> None:
    model, optimizer, belay = begin(AdamW, warmup=None)
    get_optimizer_state_dict(model, optimizer)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3.0)
    backward(model, 0)
    optimizer.step()
    a = 1 - 0.5 ** (1 / 3)
    for p, e in zip(model.parameters(), averages(belay), strict=True):
        assert torch.allclose(e, 3 + a * (p.detach() - 3), rtol=1e-6)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_a_first_step_at_rate_zero_counts(implicit: bool) -> None:
    """A schedule that warms up from 0 begins so; its gradients are not 0."""
    model, optimizer, belay = begin(AdamW, implicit=implicit)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, range(1))
    assert (belay.steps, belay.updates) == (1, 1)


def test_one_gradient_that_is_not_zero_makes_it_a_step() -> None:
    model, optimizer, belay = begin(SGD)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert belay.steps == 0
    last = list(model.parameters())[-1]
    assert last.grad is not None
    last.grad[-1] = 1e-30  # whose square is 0 in float32
    optimizer.step()
    assert belay.steps == 1
