"""Beside torch.compile: a compiled model, and a compiled step, which calls the hooks as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import SGD, AdamW

from belay_cli.training import Belay
from tests.training.models import averages, backward, data, distance, network, same, weights

# What torch imports to compile a step.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

OPTIONS: dict[str, Any] = {"half_life": 10, "stiffness": 0.5}


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(steps: int, rates: bool = False, **options: Any) -> tuple[nn.Module, Belay]:
    """Without torch.compile."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, **OPTIONS, **options)
    for step in range(steps):
        if rates:
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
        backward(model, step)
        optimizer.step()
    return model, belay


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_trained_swapped_and_saved_without_a_graph_break(backend: str) -> None:
    model = network()
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = SGD(compiled.parameters(), lr=0.05)
    belay = Belay(optimizer, model=compiled, **OPTIONS)
    backward(compiled, 0)
    optimizer.step()
    with torch.no_grad():
        compiled(data(0)[0])  # without gradients it is another graph
    graphs = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(1, 12):
            backward(compiled, step)
            optimizer.step()
            with belay.averaged(), torch.no_grad():
                inside = compiled(data(step)[0])
        x = compiled(data(11)[0]).detach()
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    plain, other = trained(12)
    assert same(weights(model), weights(plain))
    assert same(averages(belay), averages(other))
    assert list(belay.state_dict()["average"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(x, plain(data(11)[0]).detach())
    with other.averaged(), torch.no_grad():
        assert torch.equal(inside, plain(data(11)[0]))


@pytest.mark.parametrize("options", [{}, {"inertia": 0.5}, {"implicit": False}], ids=["", "inertia", "explicit"])
def test_a_compiled_step_is_the_step_and_the_hooks_are_not_compiled(options: dict[str, Any]) -> None:
    """The schedule, the counters and the swap change from step to step, and no new graph is made of them."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, **OPTIONS, **options)
    step_of = torch.compile(optimizer.step, backend="eager", fullgraph=False)
    for step in range(12):
        backward(model, step)
        step_of()
        with belay.averaged():
            pass
    assert counters["stats"]["unique_graphs"] == 1
    plain, other = trained(12, **options)
    assert same(weights(model), weights(plain))
    assert same(averages(belay), averages(other))
    assert belay.steps == 12


def test_a_compiled_step_follows_a_schedule_whose_rate_is_a_tensor() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=torch.tensor(0.05))
    belay = Belay(optimizer, model=model, **OPTIONS)
    step_of = torch.compile(optimizer.step, backend="eager")
    for step in range(6):
        optimizer.param_groups[0]["lr"].fill_(0.05 / (1 + step))
        backward(model, step)
        step_of()
    plain, other = trained(6, rates=True)
    for ours, theirs in ((weights(model), weights(plain)), (averages(belay), averages(other))):
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(ours, theirs, strict=True))  # a rate in float32


def test_a_compiled_step_of_adam_pulls_in_its_metric() -> None:
    results = []
    for compiled in (True, False):
        model = network()
        optimizer = AdamW(model.parameters(), lr=0.01)
        belay = Belay(optimizer, model=model, metric="optimizer", **OPTIONS)
        step_of: Any = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for step in range(5):
            backward(model, step)
            step_of()
        results.append((weights(model), averages(belay)))
    (x, e), (x2, e2) = results
    assert distance([*x, *e], [*x2, *e2]) < 1e-6  # a compiled Adam corrects its bias in float32


def test_parts_of_a_model_may_be_compiled_each_for_itself() -> None:
    model = network()
    part: Any = torch.compile(model[0], backend="eager")
    model[0] = part
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, **OPTIONS)
    backward(model, 0)
    optimizer.step()
    assert next(name for name, _ in model.named_parameters()) == "0._orig_mod.weight"
    assert list(belay.averaged_state_dict()) == list(network().state_dict())
    network().load_state_dict(belay.averaged_state_dict())
