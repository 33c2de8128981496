"""Belay on a GPU: what it computes on the CPU, with every kind of step; collected only where there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from belay_cli.training import Belay
from tests.training.models import averages, data, distance, network, same, weights

# What torch imports to compile a step.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SPRINGS: list[dict[str, Any]] = [
    {},
    {"inertia": 0.8},
    {"feedback": 0.7},
    {"stiffness": 1.5, "inertia": 0.5},
    {"stiffness": 1.5, "implicit": False},
    {"stiffness": 1.5, "update_every": 3},
]
METRIC: dict[str, Any] = {"stiffness": 1e-3, "metric": "optimizer"}


def adamw(parameters: Iterable[nn.Parameter], **options: Any) -> Optimizer:
    return AdamW(parameters, lr=0.01, **options)


def begin(
    device: str, make: Callable[..., Optimizer], belay: dict[str, Any], dtype: torch.dtype, **options: Any
) -> tuple[nn.Module, Optimizer, Belay]:
    model = network(dtype).to(device)
    optimizer = make(model.parameters(), **options)
    return model, optimizer, Belay(optimizer, model=model, half_life=10, **belay)


def step(model: nn.Module, optimizer: Optimizer, number: int) -> None:
    first = next(model.parameters())
    x, y = (each.to(first.device) for each in data(number, first.dtype))
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()


def trained(device: str, steps: int, *of: Any, **options: Any) -> tuple[nn.Module, Optimizer, Belay]:
    model, optimizer, belay = begin(device, *of, **options)
    for number in range(steps):
        step(model, optimizer, number)
    return model, optimizer, belay


def apart(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    return distance([tensor.cpu() for tensor in ours], theirs)


@pytest.mark.parametrize("belay", [*SPRINGS, METRIC], ids=lambda one: "-".join(map(str, one)) or "ema")
def test_it_is_the_training_on_a_cpu(belay: dict[str, Any]) -> None:
    make = adamw if "metric" in belay else lambda parameters: SGD(parameters, lr=0.05)
    ours, theirs = (trained(device, 60, make, belay, torch.float64) for device in ("cuda", "cpu"))
    assert {tensor.device.type for tensor in averages(ours[2])} == {"cuda"}
    assert apart(weights(ours[0]), weights(theirs[0])) < 1e-11
    assert apart(averages(ours[2]), averages(theirs[2])) < 1e-11


@pytest.mark.parametrize("options", [{"fused": True}, {"capturable": True}, {"foreach": False}], ids=str)
def test_every_kind_of_adam(options: dict[str, Any]) -> None:
    ours = trained("cuda", 40, adamw, METRIC, torch.float64, **options)
    theirs = trained("cpu", 40, adamw, METRIC, torch.float64)
    # Where it is to be captured, Adam corrects its bias in float32.
    assert apart(averages(ours[2]), averages(theirs[2])) < (1e-5 if "capturable" in options else 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_that_goes_on_is_the_one_that_never_stopped(dtype: torch.dtype, tmp_path: Path) -> None:
    model, optimizer, belay = trained("cuda", 20, adamw, METRIC, dtype)
    whole = trained("cuda", 40, adamw, METRIC, dtype)
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "belay": belay.state_dict()}
    torch.save(kept, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    again, other, resumed = begin("cuda", adamw, METRIC, dtype)
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["belay"])
    for number in range(20, 40):
        step(again, other, number)
    assert same(weights(again), weights(whole[0]))
    assert same(averages(resumed), averages(whole[2]))


def test_the_average_takes_the_place_of_the_model_and_is_saved(tmp_path: Path) -> None:
    model, _, belay = trained("cuda", 20, adamw, {}, torch.float32)
    before = copy.deepcopy(weights(model))
    with belay.averaged():
        assert same(weights(model), averages(belay))
    assert same(weights(model), before)
    belay.save(tmp_path / "average.safetensors")
    saved = load_file(tmp_path / "average.safetensors")
    assert same(saved.values(), [belay.averaged_state_dict()[name].cpu() for name in saved])


def test_a_step_of_mixed_precision_that_is_skipped_is_none() -> None:
    model, optimizer, belay = begin("cuda", adamw, {}, torch.float32)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    for number in range(4):
        x, y = (each.cuda() for each in data(number, torch.float32))
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = (model(x) - y).square().mean()
        scaler.scale(loss * (float("inf") if number == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert belay.steps == 3
    assert all(bool(tensor.isfinite().all()) for tensor in averages(belay))


def test_a_compiled_model_and_a_compiled_step() -> None:
    model, optimizer, belay = begin("cuda", adamw, METRIC, torch.float32)
    expected = trained("cuda", 12, adamw, METRIC, torch.float32)
    compiled: Any = torch.compile(optimizer.step)
    for number in range(12):
        x, y = (each.cuda() for each in data(number, torch.float32))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        compiled()
    assert belay.steps == 12
    assert distance(averages(belay), averages(expected[2])) < 1e-4
