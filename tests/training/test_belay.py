"""Belay on a real optimizer is the tick as it is written down, step by step in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training import literal
from tests.training.literal import Literal, Strength
from tests.training.models import averages, backward, distance, network, same, train, weights

DECAY = 0.95

SPRINGS: dict[str, tuple[dict[str, Any], Strength]] = {
    "nothing": ({}, literal.none),
    "feedback": ({"feedback": 0.7}, literal.feedback(0.7, DECAY)),
    "stiffness": ({"stiffness": 1.5}, literal.stiffness(1.5)),
}


def both(
    make: type[Optimizer],
    optimizer: dict[str, Any],
    belay: dict[str, Any],
    strength: Strength,
    *,
    rate: Callable[[int], float] | None = None,
    steps: int = 60,
) -> tuple[float, float]:
    """Train twice, by Belay and by the literal tick; the largest difference of x and of e, along the way."""
    ours, theirs = network(), network()
    hooked, plain = make(ours.parameters(), **optimizer), make(theirs.parameters(), **optimizer)
    keeper = Belay(hooked, model=ours, decay=DECAY, **belay)
    kinds = {k: v for k, v in belay.items() if k in ("inertia", "warmup", "implicit", "update_every", "start_step")}
    witness = Literal(theirs, plain, decay=DECAY, strength=strength, **{"warmup": 0.1, **kinds})
    worst_x = worst_e = 0.0
    for step in range(steps):
        for group in (*hooked.param_groups, *plain.param_groups):
            group["lr"] = group["lr"] if rate is None else rate(step)
        backward(ours, step)
        hooked.step()
        backward(theirs, step)
        witness.step()
        if step < 10 or step % 20 == 19:
            worst_x = max(worst_x, distance(weights(ours), weights(theirs)))
            worst_e = max(worst_e, distance(averages(keeper), witness.averages()))
    assert (keeper.steps, keeper.updates) == (steps, witness.updates)
    return worst_x, worst_e


@pytest.mark.parametrize("warmup", [None, 0.1, 0.5])
@pytest.mark.parametrize("inertia", [0.0, 0.8])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("spring", SPRINGS)
def test_sgd_follows_the_literal_tick(spring: str, implicit: bool, inertia: float, warmup: float | None) -> None:
    pull, strength = SPRINGS[spring]
    options = {**pull, "implicit": implicit, "inertia": inertia, "warmup": warmup}
    x, e = both(SGD, {"lr": 0.05}, options, strength, steps=200)
    assert x < 1e-12
    assert e < 1e-12


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize(
    "optimizer",
    [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}],
    ids=["weight decay", "nesterov"],
)
def test_momentum_and_weight_decay_follow_the_literal_tick(optimizer: dict[str, Any], implicit: bool) -> None:
    x, e = both(SGD, {"lr": 0.02, **optimizer}, {"stiffness": 2.0, "implicit": implicit}, literal.stiffness(2.0))
    assert x < 1e-12
    assert e < 1e-12


@pytest.mark.parametrize("inertia", [0.0, 0.8])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("spring", SPRINGS)
@pytest.mark.parametrize(("every", "start"), [(3, 0), (1, 5), (3, 5)])
def test_every_third_step_and_a_later_start_follow_the_literal_tick(
    every: int, start: int, spring: str, implicit: bool, inertia: float
) -> None:
    pull, strength = SPRINGS[spring]
    if spring == "feedback" and every > 1:
        # feedback is a share of 1 − decay of the update, and with inertia that is the a of its block.
        a, _ = literal.over(every, 1 - DECAY, inertia)
        strength = lambda group, state, steps: 0.7 * a  # noqa: E731
    options = {**pull, "implicit": implicit, "inertia": inertia, "update_every": every, "start_step": start}
    x, e = both(SGD, {"lr": 0.05}, options, strength)
    assert x < 1e-12
    assert e < 1e-12


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_the_pull_follows_a_schedule_of_the_rate(implicit: bool) -> None:
    def rate(step: int) -> float:
        return 0.05 * min(1.0, step / 20) * (1 - step / 60)

    options = {"stiffness": 1.5, "implicit": implicit}
    x, e = both(SGD, {"lr": 0.05}, options, literal.stiffness(1.5), rate=rate)
    assert x < 1e-12
    assert e < 1e-12


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("make", [Adam, AdamW])
def test_adam_follows_the_literal_tick_in_its_own_metric(
    make: type[Optimizer], implicit: bool, amsgrad: bool, every: int
) -> None:
    options = {"stiffness": 0.3, "metric": "optimizer", "implicit": implicit, "update_every": every}
    x, e = both(make, {"lr": 0.01, "amsgrad": amsgrad}, options, literal.in_metric(0.3))
    assert x < 1e-12
    assert e < 1e-12


def test_an_explicit_pull_in_the_metric_is_held_below_the_whole_way() -> None:
    # Where the second moment is tiny, lr·k/(√v̂ + ε) is far above 1.
    options = {"stiffness": 1e4, "metric": "optimizer", "implicit": False, "warmup": None}
    x, e = both(AdamW, {"lr": 0.01}, options, literal.in_metric(1e4))
    assert x < 1e-12
    assert e < 1e-12


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_a_released_model_is_pulled_no_more_and_still_averaged(implicit: bool) -> None:
    ours, theirs = network(), network()
    hooked, plain = SGD(ours.parameters(), lr=0.05), SGD(theirs.parameters(), lr=0.05)
    belay = Belay(hooked, model=ours, decay=DECAY, stiffness=2.0, implicit=implicit)
    witness = Literal(theirs, plain, decay=DECAY, warmup=0.1, strength=literal.stiffness(2.0), implicit=implicit)
    for step in range(60):
        if step == 30:
            belay.release()
            witness.released = True
        backward(ours, step)
        hooked.step()
        backward(theirs, step)
        witness.step()
    assert belay.released
    assert distance(weights(ours), weights(theirs)) < 1e-13
    assert distance(averages(belay), witness.averages()) < 1e-13


def test_without_a_spring_training_is_what_it_would_be_without_belay() -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    hooked, plain = AdamW(ours.parameters()), AdamW(theirs.parameters())
    Belay(hooked, model=ours, half_life=10)
    train(ours, hooked, range(30))
    train(theirs, plain, range(30))
    assert same(weights(ours), weights(theirs))


def test_a_removed_belay_follows_no_more() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(3))
    kept = averages(belay)
    belay.remove()
    train(model, optimizer, range(3, 6))
    assert belay.steps == 3
    assert distance(averages(belay), kept) == 0
    model.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_every": 0}, "update_every is a whole number of 1 or more, and start_step one of 0 or more"),
        ({"update_every": 1.5}, "update_every is a whole number of 1 or more, and start_step one of 0 or more"),
        ({"start_step": -1}, "update_every is a whole number of 1 or more, and start_step one of 0 or more"),
    ],
)
def test_counts_that_are_none_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Belay(SGD(network().parameters(), lr=0.1), **options)  # type: ignore[arg-type]
    assert str(refused.value) == message
