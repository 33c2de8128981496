"""The ways in which torch optimizers differ, their schedulers, and accelerate's wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import nn
from torch.optim import SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training import literal
from tests.training.literal import Literal
from tests.training.models import averages, backward, data, distance, network, same, train, weights

DECAY = 0.9


@pytest.mark.parametrize(
    "make",
    [SGD, Adadelta, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop],
    ids=lambda m: m.__name__,
)
def test_every_optimizer_of_torch_is_followed(make: Any) -> None:
    ours, theirs = network(), network()
    hooked, plain = make(ours.parameters(), lr=0.01), make(theirs.parameters(), lr=0.01)
    belay = Belay(hooked, model=ours, decay=DECAY, warmup=None, stiffness=2.0)
    witness = Literal(theirs, plain, decay=DECAY, strength=literal.stiffness(2.0))
    for step in range(10):
        backward(ours, step)
        hooked.step()
        backward(theirs, step)
        witness.step()
    assert distance(weights(ours), weights(theirs)) < 1e-12
    assert distance(averages(belay), witness.averages()) < 1e-12


@pytest.mark.parametrize("metric", [None, "optimizer"])
@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"foreach": False}, {"fused": True}, {"lr": torch.tensor(0.01, dtype=torch.float64)}],
    ids=["foreach", "for loop", "fused", "rate as a tensor"],
)
def test_every_way_to_step_adam_gives_the_same(options: dict[str, Any], metric: str | None) -> None:
    results = []
    for said in ({}, options):
        model = network()
        optimizer = AdamW(model.parameters(), **{"lr": 0.01, **said})
        belay = Belay(optimizer, model=model, half_life=5, stiffness=0.5, metric=metric)
        train(model, optimizer, range(10))
        results.append([*weights(model), *averages(belay)])
    assert distance(*results) < 1e-13


@pytest.mark.parametrize("metric", [None, "optimizer"])
def test_each_group_is_pulled_at_its_own_rate(metric: str | None) -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, still, *rest = model.parameters()
        return [{"params": [first]}, {"params": [still], "lr": 0.0}, {"params": rest, "lr": 0.002, "eps": 1e-4}]

    ours, theirs = network(), network()
    hooked, plain = AdamW(groups(ours), lr=0.02), AdamW(groups(theirs), lr=0.02)
    belay = Belay(hooked, model=ours, decay=DECAY, warmup=None, stiffness=0.5, metric=metric)
    strength = literal.in_metric(0.5) if metric else literal.stiffness(0.5)
    witness = Literal(theirs, plain, decay=DECAY, strength=strength)
    bias = weights(ours)[1]
    for step in range(20):
        backward(ours, step)
        hooked.step()
        backward(theirs, step)
        witness.step()
    assert torch.equal(weights(ours)[1], bias)
    assert distance(weights(ours), weights(theirs)) < 1e-12
    assert list(belay.state_dict()["average"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert distance(averages(belay), witness.averages()) < 1e-12


def schedule(name: str, optimizer: torch.optim.Optimizer) -> LRScheduler:
    if name == "one cycle":
        return OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
    return LambdaLR(optimizer, lambda step: min(1.0, step / 5))


@pytest.mark.parametrize("first", ["belay", "scheduler"])
@pytest.mark.parametrize("name", ["one cycle", "from zero"])
def test_schedulers_work_on_the_hooked_optimizer(name: str, first: str) -> None:
    """In either order, without their warning that the step was wrapped, and the step at rate 0 counts."""
    ours, theirs = network(), network()
    hooked, plain = SGD(ours.parameters(), lr=0.05, momentum=0.9), SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    early = schedule(name, hooked) if first == "scheduler" else None
    belay = Belay(hooked, model=ours, decay=DECAY, warmup=None, stiffness=2.0)
    rates = early or schedule(name, hooked)
    theirs_rates = schedule(name, plain)
    witness = Literal(theirs, plain, decay=DECAY, strength=literal.stiffness(2.0))
    for step in range(20):
        backward(ours, step)
        hooked.step()
        backward(theirs, step)
        witness.step()
        if step < 19:
            rates.step()
            theirs_rates.step()
    assert belay.steps == 20
    assert distance(weights(ours), weights(theirs)) < 1e-12
    assert distance(averages(belay), witness.averages()) < 1e-12


@pytest.mark.parametrize("prepared", ["before", "after"])
def test_the_optimizer_of_accelerate_is_followed(prepared: str) -> None:
    """In either order; gradients are accumulated over two batches, and the wrapper steps for the second only."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network(torch.float32)
    optimizer = AdamW(model.parameters(), lr=0.01)
    options: dict[str, Any] = {"half_life": 5, "stiffness": 0.5}
    belay = Belay(optimizer, model=model, **options) if prepared == "after" else None
    ready, stepper = accelerator.prepare(model, optimizer)
    belay = belay or Belay(stepper, model=ready, **options)
    for step in range(8):
        with accelerator.accumulate(ready):
            x, y = data(step, torch.float32)
            accelerator.backward((ready(x) - y).square().mean())
            stepper.step()
            stepper.zero_grad()
    assert (belay.steps, belay.updates) == (4, 4)
    assert list(belay.state_dict()["average"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]

    other = network(torch.float32)
    plain = AdamW(other.parameters(), lr=0.01)
    unwrapped = Belay(plain, model=other, **options)
    for step in range(0, 8, 2):
        plain.zero_grad()
        for part in (step, step + 1):
            x, y = data(part, torch.float32)
            ((other(x) - y).square().mean() / 2).backward()
        plain.step()
    assert distance(weights(model), weights(other)) < 1e-6
    assert distance(averages(belay), averages(unwrapped)) < 1e-6


def test_what_accelerate_forwards_to_an_optimizer_still_arrives() -> None:
    """Its wrapper calls train() and eval() of optimizers that have them; Belay leaves the optimizer what it is."""

    class Modal(SGD):
        calls: list[str] = []  # noqa: RUF012

        def train(self) -> None:
            self.calls.append("train")

        def eval(self) -> None:
            self.calls.append("eval")

    accelerator = Accelerator(cpu=True)
    model = network(torch.float32)
    optimizer = Modal(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    ready, stepper = accelerator.prepare(model, optimizer)
    stepper.train()
    train(ready, stepper, range(2))
    stepper.eval()
    with belay.averaged():
        ready(data(0, torch.float32)[0])
    stepper.train()
    train(ready, stepper, range(2, 4))
    assert Modal.calls == ["train", "eval", "train"]
    assert belay.steps == 4


def test_the_optimizer_stays_what_it_is() -> None:
    model, other = network(), network()
    hooked, plain = AdamW(model.parameters()), AdamW(other.parameters())
    Belay(hooked, model=model, half_life=5, stiffness=0.5, inertia=0.5)
    train(model, hooked, range(2))
    train(other, plain, range(2))
    ours, theirs = hooked.state_dict(), plain.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert {k: list(v) for k, v in ours["state"].items()} == {k: list(v) for k, v in theirs["state"].items()}


def test_what_is_no_optimizer_is_refused() -> None:
    for thing in (network(), object(), None):
        with pytest.raises(UsageError) as refused:
            Belay(thing, half_life=5)  # type: ignore[arg-type]
        assert (
            str(refused.value) == f"a {type(thing).__name__} is no torch.optim.Optimizer, whose step could be followed"
        )


def test_two_belays_may_follow_one_optimizer() -> None:
    """Averages of two lengths."""
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    short, long = Belay(optimizer, model=model, half_life=2), Belay(optimizer, model=model, half_life=20)
    train(model, optimizer, range(30))
    for belay, half_life in ((short, 2), (long, 20)):
        other = network()
        plain = SGD(other.parameters(), lr=0.05)
        alone = Belay(plain, model=other, half_life=half_life)
        train(other, plain, range(30))
        assert same(averages(belay), averages(alone))
