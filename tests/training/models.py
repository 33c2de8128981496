"""Small models, and the same training of them however often it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import nn
from torch.optim import Optimizer

from belay_cli.training import Belay


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """Two layers, of 3 and 5 features."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model.to(dtype)


@lru_cache(maxsize=512)
def data(step: int, dtype: torch.dtype = torch.float64, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and targets of one step."""
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(rows, 3, generator=g)
    return x.to(dtype), torch.stack([x.sin().sum(1), x.prod(1)], dim=1).to(dtype)


def backward(model: nn.Module, step: int) -> None:
    """Fresh gradients of the loss on the data of a step."""
    dtype = next(model.parameters()).dtype
    x, y = data(step, dtype)
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def train(
    model: nn.Module, optimizer: Optimizer, steps: Iterable[int], then: Callable[[], object] | None = None
) -> None:
    """Step after step on the data of each."""
    for step in steps:
        backward(model, step)
        optimizer.step()
        if then is not None:
            then()


def weights(model: nn.Module) -> list[torch.Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in model.parameters()]


def averages(belay: Belay) -> list[torch.Tensor]:
    """Copies of the averages, in the order of the parameters."""
    return [e.clone() for e in belay.state_dict()["average"].values()]


def distance(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    """The largest difference of any two elements."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel())


def same(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> bool:
    """Whether all are equal, bit for bit, dtypes included."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
