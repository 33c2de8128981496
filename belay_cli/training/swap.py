"""The average in the model's place while it is evaluated, and the weights back afterwards.

Where a parameter has the dtype of its average the two are exchanged, in blocks, so that no third copy is made. A
narrower parameter gets the average rounded, and its weights are kept aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from belay_cli.training.batches import Averaged, Batch
from belay_cli.training.parameters import local


class Guard:
    """A hook that looks on before a model makes or loads a state dict. In a copy of the model it is idle."""

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        self._before = before

    def __call__(self, *_: object) -> None:
        """What torch calls."""
        if self._before is not None:
            self._before()

    def __reduce__(self) -> tuple[type[Guard], tuple[()]]:
        return Guard, ()


def exchange(batches: Iterable[Batch]) -> None:
    """Swap parameter and average where they have one dtype: all or, should the memory end, none."""
    done: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        try:
            for batch in batches:
                if batch.x and batch.x[0].dtype == batch.e[0].dtype:
                    for x, e in zip(batch.x, batch.e, strict=True):
                        _exchange(x, e)
                        done.append((x, e))
        except BaseException:
            for x, e in done:
                _exchange(x, e)
            raise


def _exchange(x: torch.Tensor, e: torch.Tensor) -> None:
    held = x.clone()
    x.copy_(e)
    e.copy_(held)


def set_aside(averaged: Iterable[Averaged]) -> dict[str, torch.Tensor]:
    """Copies of the parameters that are narrower than their averages, all of them before one is written over."""
    pairs = {one.name: (local(one.parameter), local(one.average)) for one in averaged}
    return {name: x.clone() for name, (x, e) in pairs.items() if x.dtype != e.dtype}


def round_into_place(averaged: Iterable[Averaged], aside: dict[str, torch.Tensor]) -> None:
    """Write the averages of those parameters over them."""
    with torch.no_grad():
        for one in averaged:
            if one.name in aside:
                local(one.parameter).copy_(local(one.average))


def put_back(averaged: Iterable[Averaged], aside: dict[str, torch.Tensor]) -> None:
    """Undo `round_into_place`."""
    with torch.no_grad():
        for one in averaged:
            if one.name in aside:
                local(one.parameter).copy_(aside[one.name])


def running_statistics(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The buffers of the layers that keep running statistics (BatchNorm), each with a copy."""
    layers = [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), torch.Tensor)]
    return [(buffer, buffer.detach().clone()) for layer in layers for buffer in layer.buffers(recurse=False)]


def gather_again(model: nn.Module) -> None:
    """Let FSDP2 drop what it has gathered of the parameters, which no longer holds once they have changed."""
    for module in model.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()
