"""The replay of a plain run, next to the BELAY run that it stands for; and what is lost between sparse checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from belay_cli.rules import Belay as Replay
from belay_cli.rules import Ema, Rule
from belay_cli.training import Belay
from evidence.problems import PROBLEMS, Batch, judge, losses

Array = NDArray[np.float64]
Weights = dict[str, torch.Tensor]

_CURVATURES = (0.03, 0.1, 0.3, 1.0, 3.0)
_STEPS, _HALF_LIFE, _RATE, _SEEDS = 1500, 45, 0.25, 5


def replay(_: object = None) -> dict[str, Any]:
    """All of it."""
    return {"quadratics": _quadratics(), "network": _network()}


def _coefficients(rule: Rule, ticks: Sequence[int]) -> Array:
    return np.asarray(rule.resolve(ticks, "step").coefficients(ticks))


# ---- quadratics


def _quadratics() -> list[dict[str, Any]]:
    """The distance of the replay from the BELAY run, over that of the EMA from it, for feedback 1."""
    found = []
    for condition in (1.0, 10.0, 100.0, 10_000.0):
        eigenvalues = np.logspace(-np.log10(condition), 0, 50) if condition > 1 else np.full(50, 0.2)
        path, belay = _runs(eigenvalues, half_life=30, steps=600)
        ticks = range(len(path))
        ema = _coefficients(Ema(30), ticks) @ path
        a = -np.expm1(-np.log(2) / 30)
        # Rate 0.2: ηλ of the steepest direction, in units of a, is the curvature that fits it.
        exact = 0.2 * eigenvalues[0] / a if condition == 1 else None
        row: dict[str, Any] = {"condition": condition}
        for curvature in ([exact] if exact else []) + list(_CURVATURES):
            again = _coefficients(Replay(30, feedback=1.0, curvature=curvature), ticks) @ path
            name = "ηλ" if curvature == exact else f"{curvature:g}"
            row[name] = float(np.linalg.norm(again - belay) / np.linalg.norm(ema - belay))
        found.append(row)
    return found


def _runs(eigenvalues: Array, half_life: float, steps: int) -> tuple[Array, Array]:
    """The path of SGD of rate 0.2 under noise, [steps + 1, n], and the average of the BELAY run of the same noise."""
    curvatures = torch.tensor(eigenvalues)
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(steps, len(curvatures), generator=generator, dtype=torch.float64)
    paths = []
    for feedback in (None, 1.0):
        x = torch.nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        optimizer = torch.optim.SGD([("x", x)], lr=0.2)
        belay = Belay(optimizer, half_life=half_life, feedback=feedback, warmup=None)
        path = [x.detach().clone()]
        for one in noise:
            x.grad = curvatures * x.detach() + one
            optimizer.step()
            path.append(x.detach().clone())
        paths.append((torch.stack(path).numpy(), belay.state_dict()["average"]["x"].numpy()))
    return paths[0][0], paths[1][1]


# ---- a network


def _network() -> dict[str, Any]:
    problem = PROBLEMS["noisy"]
    path, emas = _train({"half_life": _HALF_LIFE})
    _, belay = _train({"half_life": _HALF_LIFE, "feedback": 1.0})
    ticks = range(_STEPS + 1)

    def along(rule: Rule, chosen: Sequence[int] = ticks) -> Weights:
        c = torch.tensor(_coefficients(rule, chosen), dtype=torch.float64)
        return {name: torch.tensordot(c, p[list(chosen)].double(), 1).float() for name, p in path.items()}

    def loss(weights: Weights) -> list[float]:
        return [float(v) for v in judge(problem, weights, "test")[0]]

    distance = _distances(emas, belay)
    rows = []
    for curvature in _CURVATURES:
        again = along(Replay(_HALF_LIFE, feedback=1.0, curvature=curvature))
        longer = along(Ema(_longer(curvature)))
        rows.append(
            {
                "curvature": curvature,
                "replay from the BELAY run": (_distances(again, belay) / distance).mean(),
                "EMA of equal lag from the BELAY run": (_distances(longer, belay) / distance).mean(),
                "replay from that EMA": (_distances(again, longer) / distance).mean(),
                "loss of the replay": loss(again),
                "loss of that EMA": loss(longer),
            }
        )
    last = {name: p[-1] for name, p in path.items()}
    sparse = []
    rule, exact = Ema(_HALF_LIFE), along(Ema(_HALF_LIFE))
    for every in (1, 5, 15, 50, 150, 300):
        found = along(rule, range(0, _STEPS + 1, every))
        away = (_distances(found, exact) / _distances(last, exact)).mean()
        sparse.append({"every": every, "from the EMA of every step": away, "loss": loss(found)})
    return {
        "loss of the EMA": loss(emas),
        "loss of the BELAY run": loss(belay),
        "loss of the last": loss(last),
        "curvature": rows,
        "sparse": sparse,
    }


def _longer(curvature: float) -> float:
    """The half-life of the EMA that lags as far as BELAY with feedback 1: (decay + 1/curvature)/(1 − decay) steps."""
    decay = 2 ** (-1 / _HALF_LIFE)
    lag = (decay + 1 / curvature) / (1 - decay)
    return float(-1 / np.log2(lag / (1 + lag)))


def _train(options: dict[str, Any]) -> tuple[Weights, Weights]:
    """The weights after every step, [steps + 1, S, …], and the average at the end."""
    problem = PROBLEMS["noisy"]
    parameters: dict[str, torch.Tensor] = {name: torch.nn.Parameter(p) for name, p in problem.begin(_SEEDS).items()}
    optimizer = torch.optim.SGD([*parameters.items()], lr=_RATE)
    belay = Belay(optimizer, warmup=None, **options)
    path = [{name: p.detach().clone() for name, p in parameters.items()}]
    batches: Iterator[Batch] = problem.batches(_SEEDS)
    for _ in range(_STEPS):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        torch.autograd.backward(losses(problem.forward(parameters, inputs), labels).sum())
        optimizer.step()
        path.append({name: p.detach().clone() for name, p in parameters.items()})
    average: Weights = belay.state_dict()["average"]
    return {name: torch.stack([one[name] for one in path]) for name in parameters}, average


def _distances(first: Weights, second: Weights) -> Array:
    """Between the networks of each seed, [S]."""
    squares = sum((first[name] - second[name]).double().square().flatten(1).sum(1) for name in first)
    return np.asarray(np.sqrt(np.asarray(squares)), dtype=np.float64)
