"""What `belay_cli.training.Belay` costs a step, next to torch's AveragedModel: ratios of medians, taken in turn.

    python benchmarks/training.py

300 parameters of 33,333 float32 elements, 10 M in all. The peer is `AveragedModel` with `get_ema_multi_avg_fn`, torch's
foreach EMA. What is timed is the update alone, not the optimizer's step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from belay_cli.training import Belay

_DECAY = 0.999


class Parameters(nn.Module):
    """So many tensors of one size."""

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(torch.randn(elements)) for _ in range(tensors))


def main() -> None:
    """Time every kind of update in turn, and print the medians and their ratios to torch's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tensors", type=int, default=300)
    parser.add_argument("--elements", type=int, default=33_333)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)

    def model() -> Parameters:
        return Parameters(arguments.tensors, arguments.elements)

    updates: dict[str, Callable[[], object]] = {"torch's AveragedModel": _of_torch(model())}
    for name, options in (
        ("EMA", {}),
        ("EMA with inertia", {"inertia": 0.9}),
        ("feedback", {"feedback": 1.0}),
        ("stiffness", {"stiffness": 1.0}),
        ("stiffness, explicit", {"stiffness": 1.0, "implicit": False}),
        ("stiffness in Adam's metric", {"stiffness": 1.0, "metric": "optimizer"}),
    ):
        updates[name] = _of_belay(model(), options)
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(arguments.rounds):
        for name, update in updates.items():
            _wait()
            begun = time.perf_counter()
            update()
            _wait()
            seconds[name].append(time.perf_counter() - begun)
    first = statistics.median(seconds["torch's AveragedModel"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:28} {1e3 * median:7.2f} ms   {median / first:5.2f}")


def _of_torch(model: nn.Module) -> Callable[[], object]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))  # type: ignore[no-untyped-call]
    averaged.update_parameters(model)  # the first copies
    return lambda: averaged.update_parameters(model)


class _Still(torch.optim.AdamW):
    """AdamW whose second step and those after it do nothing, so that the hooks alone are timed."""

    done = False

    def step(self, closure: Any = None) -> Any:
        """The first step makes the state that a metric needs."""
        if not self.done:
            self.done = True
            return super().step(closure)
        return None


def _of_belay(model: nn.Module, options: dict[str, Any]) -> Callable[[], object]:
    optimizer = _Still(model.parameters(), lr=1e-3)
    Belay(optimizer, model=model, decay=_DECAY, **options)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return lambda: optimizer.step()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
