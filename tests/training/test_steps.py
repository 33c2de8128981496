"""What counts as a step: not what mixed precision skips, accumulated gradients once, and however closures go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training import literal
from tests.training.literal import Literal
from tests.training.models import averages, backward, data, distance, network, same, train, weights

CLOSURE = "an explicit spring pulls before the step, and a closure would take the gradient after that"


def scaled(model: nn.Module, step: int, scaler: GradScaler, *, finite: bool) -> None:
    x, y = data(step, torch.float32)
    model.zero_grad()
    loss = (model(x) - y).square().mean()
    scaler.scale(loss if finite else loss * float("inf")).backward()


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_step_that_a_grad_scaler_skips_is_none(make: Any, fused: bool, implicit: bool) -> None:
    """A plain optimizer is not called; a fused one is, and finds for itself that the gradients are not finite."""
    model = network(torch.float32)
    optimizer = make(model.parameters(), lr=0.01, fused=fused)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0, implicit=implicit)
    scaler = GradScaler("cpu", init_scale=4.0)
    for step in range(6):
        before, e, counted = weights(model), averages(belay), belay.steps
        scaled(model, step, scaler, finite=step not in (0, 3))
        scaler.step(optimizer)
        scaler.update()
        if step in (0, 3):
            assert belay.steps == counted
            assert same(weights(model), before)
            assert same(averages(belay), e)
        else:
            assert belay.steps == counted + 1
            assert not same(weights(model), before)
            assert not same(averages(belay), e)
    assert (belay.steps, belay.updates) == (4, 4)


def test_scaled_training_is_the_training_without_a_scale() -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    hooked = SGD(ours.parameters(), lr=0.05, fused=True)
    plain = SGD(theirs.parameters(), lr=0.05)
    belay, other = (Belay(o, half_life=5, stiffness=1.0) for o in (hooked, plain))
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for step in range(10):
        scaled(ours, step, scaler, finite=True)
        scaler.step(hooked)
        scaler.update()
    train(theirs, plain, range(10))
    assert distance(weights(ours), weights(theirs)) < 1e-6
    assert distance(averages(belay), averages(other)) < 1e-6


def test_accumulated_gradients_are_one_step() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(4):
            x, y = data(10 * step + part)
            (model(x) - y).square().mean().backward()
        optimizer.step()
    assert (belay.steps, belay.updates) == (3, 3)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_sparse_gradients_are_steps(rate: float) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = SGD(model.parameters(), lr=rate)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=0.5)
    model(torch.tensor([1, 1, 2])).sum().backward()
    optimizer.step()
    assert belay.steps == 1
    assert distance(averages(belay), weights(model)) == 0


def closure(model: nn.Module, step: int) -> Any:
    def evaluate() -> float:
        backward(model, step)
        with torch.no_grad():
            return float(nn.functional.mse_loss(model(data(step)[0]), data(step)[1]))

    return evaluate


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("make", [LBFGS, SGD])
def test_a_closure_is_one_step_however_often_it_is_evaluated(make: Any, positional: bool) -> None:
    model, other = network(), network()
    optimizer, plain = make(model.parameters(), lr=0.1), make(other.parameters(), lr=0.1)
    belay = Belay(optimizer, model=model, half_life=5, warmup=None, stiffness=1.0)
    witness = Literal(
        other,
        _Closed(plain, other),
        decay=0.5 ** (1 / 5),
        strength=literal.stiffness(1.0),
    )
    for step in range(4):
        if positional:
            optimizer.step(closure(model, step))
        else:
            optimizer.step(closure=closure(model, step))
        witness.step()
    assert (belay.steps, belay.updates) == (4, 4)
    assert distance(weights(model), weights(other)) < 1e-12
    assert distance(averages(belay), witness.averages()) < 1e-12


class _Closed(SGD):
    """An optimizer that is stepped by the closure of each step in turn."""

    def __init__(self, inner: Optimizer, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=inner.param_groups[0]["lr"])
        self.inner, self.model, self.taken = inner, model, 0

    def step(self, _: Any = None) -> None:  # type: ignore[override]
        self.inner.step(closure(self.model, self.taken))
        self.taken += 1


def test_an_explicit_spring_refuses_a_closure_and_takes_none_for_none() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0, implicit=False, start_step=1)
    optimizer.step(closure(model, 0))  # there is no spring yet
    before = weights(model)
    for arguments in ([closure(model, 1)], []):
        with pytest.raises(UsageError) as refused:
            optimizer.step(*arguments, **({} if arguments else {"closure": closure(model, 1)}))
        assert str(refused.value) == CLOSURE
        assert refused.value.hint == "take the implicit spring, or compute the gradient before step()"
    assert same(weights(model), before)
    backward(model, 1)
    optimizer.step(None)
    optimizer.step(closure=None)
    assert belay.steps == 3


def test_one_optimizer_a_parameter_and_one_belay_each_count_one_step_a_step() -> None:
    """The optimizer in the backward (torchtitan#851): each parameter is stepped when its gradient is there."""
    model, other = network(), network()
    optimizers = {p: Adam([p], lr=0.01) for p in model.parameters()}
    belays = [Belay(o, model=model, half_life=5, stiffness=0.1) for o in optimizers.values()]

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    plain = Adam(other.parameters(), lr=0.01)
    whole = Belay(plain, model=other, half_life=5, stiffness=0.1)
    for n in range(10):
        x, y = data(n)
        (model(x) - y).square().mean().backward()
        backward(other, n)
        plain.step()
    assert [belay.steps for belay in belays] == [10] * 4
    assert same(weights(model), weights(other))
    assert same([e for belay in belays for e in averages(belay)], averages(whole))
    names = [name for belay in belays for name in belay.state_dict()["average"]]
    assert names == list(whole.state_dict()["average"])
