"""Real runs: every problem, optimizer, rate and method, all seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from evidence.methods import METHODS, Run
from evidence.problems import PROBLEMS, judge, losses

CHECKS = 8  # times at which the method's own weights are evaluated, evenly along the run
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


@dataclass(frozen=True, order=True)
class Job:
    """One training of all seeds."""

    problem: str
    optimizer: str
    method: str
    rate: float

    @property
    def name(self) -> str:
        """As results are kept by."""
        return f"{self.problem} {self.optimizer} {self.rate:g} {self.method}"


def jobs(only: str = "") -> list[Job]:
    """All, or those whose problem, optimizer or method contains a text."""
    found = [
        Job(problem.name, optimizer, method, rate)
        for problem in PROBLEMS.values()
        for optimizer, rates in problem.rates.items()
        for of, method in METHODS
        if of == optimizer and (METHODS[of, method].also_long or problem.name != "bytes")
        for rate in rates
    ]
    return [job for job in found if only in job.name]


def train(job: Job) -> dict[str, Any]:
    """Train, and judge: for each kind of weights its validation and test loss and accuracy, [S] each.

    `along` has the validation and test loss of the method's own weights after every CHECKS-th of the run,
    [CHECKS][S]. A network that is no longer finite has a loss of infinity; a run of such networks ends early.
    """
    problem = PROBLEMS[job.problem]
    parameters: dict[str, torch.Tensor] = {
        name: torch.nn.Parameter(p) for name, p in problem.begin(problem.seeds).items()
    }
    optimizer = OPTIMIZERS[job.optimizer]([*parameters.items()], lr=job.rate)
    run = Run({**parameters}, optimizer, problem.steps, problem.epoch)
    method = METHODS[job.optimizer, job.method].make(run)
    batches = problem.batches(problem.seeds)
    along: dict[str, list[list[float]]] = {"validation": [], "test": []}
    for step in range(1, problem.steps + 1):
        inputs, labels = next(batches)
        loss = losses(problem.forward(parameters, inputs), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss.sum())
        for group in optimizer.param_groups:
            group["lr"] = job.rate * min(1.0, step / max(problem.warmup, 1)) * method.rate(step)
        with torch.no_grad():
            method.before_step(step)
            optimizer.step()
            method.after_step(step)
        if step % (problem.steps // CHECKS) == 0:
            own = method.own()
            for which, seen in along.items():
                seen.append(_finite(judge(problem, own, which)[0]))
            if not any(loss.isfinite()):
                break
    found: dict[str, dict[str, list[float]]] = {}
    for name, weights in method.weights().items():
        found[name] = {}
        for which in ("validation", "test"):
            value, right = judge(problem, weights, which)
            found[name] |= {f"{which} loss": _finite(value), f"{which} accuracy": right.tolist()}
    return {"weights": found, "along": along}


def _finite(values: torch.Tensor) -> list[float]:
    return [round(v, 5) if v < 1e4 else float("inf") for v in values.nan_to_num(nan=float("inf")).tolist()]
