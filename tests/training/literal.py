"""The tick as it is written down, parameter by parameter in float64: the witness, which shares no code with Belay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

Array = NDArray[np.float64]
Strength = Callable[[Mapping[str, Any], Mapping[str, Any], int], Any]
"""s, from the group of a parameter, its state in the optimizer, and the steps that one update stands for."""


def none(group: Mapping[str, Any], state: Mapping[str, Any], every: int) -> float:
    """Nothing pulls on the model."""
    return 0.0


def feedback(share: float, decay: float) -> Strength:
    return lambda group, state, every: share * (1 - decay**every)


def stiffness(k: float) -> Strength:
    return lambda group, state, every: float(group["lr"]) * k * every


def in_metric(k: float) -> Strength:
    """lr·k/(√v̂ + ε), by the second moments that the optimizer holds; nothing before its first step."""

    def strength(group: Mapping[str, Any], state: Mapping[str, Any], every: int) -> Any:
        if not state:
            return 0.0
        moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].numpy()
        corrected = moment / (1 - group["betas"][1] ** float(state["step"]))
        return float(group["lr"]) * k * every / (np.sqrt(corrected) + group["eps"])

    return strength


def over(k: int, a: float, mu: float) -> tuple[float, float]:
    """a and μ of the block on (e, v) whose eigenvalues are the k-th powers of those of one tick."""
    alpha = (1 - mu) * a
    powers = np.linalg.eigvals(np.array([[1 - alpha, mu], [-alpha, mu]], dtype=complex)) ** k
    mu_k = float(np.prod(powers).real)  # the determinant of a block is its μ, the trace 1 − α + μ
    return float((1 + mu_k - np.sum(powers)).real) / (1 - mu_k), mu_k


class Literal:
    """Steps an optimizer that nothing is hooked to, and ticks. `x` are the parameters' own bytes."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        decay: float,
        inertia: float = 0.0,
        warmup: float | None = None,
        strength: Strength = none,
        implicit: bool = True,
        update_every: int = 1,
        start_step: int = 0,
    ) -> None:
        self.optimizer, self.strength, self.implicit = optimizer, strength, implicit
        self.every, self.start = update_every, start_step
        self.a, self.mu = over(update_every, 1 - decay, inertia)
        self.warmup = warmup
        self.x: list[Array] = [p.detach().numpy() for p in model.parameters()]
        self.owners = list(model.parameters())
        self.groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        self.e = [x.copy() for x in self.x]
        self.v = [np.zeros_like(x) for x in self.x]
        self.steps = self.updates = 0
        self.released = False

    def step(self) -> None:
        if self.steps == self.start:
            self.e = [x.copy() for x in self.x]
        since = self.steps + 1 - self.start
        ticks = since > 0 and since % self.every == 0
        if ticks and not self.implicit:
            for x, e, s in zip(self.x, self.e, self._strengths(), strict=True):
                x += np.minimum(s, 0.99) * (e - x)
        self.optimizer.step()
        self.steps += 1
        if ticks:
            self._tick()

    def _tick(self) -> None:
        self.updates += 1
        strengths = self._strengths() if self.implicit else [0.0] * len(self.x)
        a, mu = self.a, self.mu
        first = self.warmup is not None and self.updates == 1  # it is the weights, and leaves no speed behind
        if self.warmup is not None:
            gamma = 1 / self.warmup - 2
            a = max(a, (gamma + 1) / (self.updates + gamma))
        for i, (x, s) in enumerate(zip(self.x, strengths, strict=True)):
            x[...] = (x + s * self.e[i]) / (1 + s)  # x' = x̂ + s (e − x')
            change = a * (x - self.e[i]) if first else mu * self.v[i] + (1 - mu) * a * (x - self.e[i])
            self.e[i] = np.asarray(self.e[i] + change)
            self.v[i] = np.zeros_like(x) if first else change

    def _strengths(self) -> list[Any]:
        if self.released:
            return [0.0] * len(self.x)
        states = self.optimizer.state
        return [self.strength(self.groups[p], states.get(p, {}), self.every) for p in self.owners]

    def averages(self) -> list[torch.Tensor]:
        return [torch.from_numpy(e) for e in self.e]
