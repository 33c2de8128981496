"""The dynamics of the spring as they are defined: tick by tick, on the weights themselves.

This is the spring's second definition. It is far slower than the coefficients and shares no code with them, which
makes it the witness in tests and in verification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from belay_cli.rules.dynamics import Dynamics
from belay_cli.rules.rule import Float64Array

_TICK_BY_TICK = 4096


def rates(dynamics: Dynamics) -> tuple[float, float, float, float]:
    """α, μ, β and κ of one tick."""
    return dynamics.spring, dynamics.inertia, dynamics.feedback * dynamics.a, dynamics.pull_back


def replay_intervals(
    dynamics: Dynamics, ticks: Sequence[int], weights: Iterable[Float64Array], *, debias: bool = False
) -> Float64Array:
    """The EMA weights after the last tick, the checkpoints given one after the other. [T], T × [n] -> [n].

    One tick is linear in (x, e, v, w, δ), so the ticks between two checkpoints are worked through once, on the
    five unit vectors, and applied to every element: as exact as working through them for each, and fit for whole
    tensors.
    """
    w: Float64Array | None = None
    state = np.zeros((3, 0))
    before = 0
    for tick, now in zip(ticks, weights, strict=True):
        if w is None:
            state = np.array([now, dynamics.a * now if debias else now, np.zeros_like(now)])
        else:
            n = tick - before
            interval = over_interval(dynamics, n)
            state = interval @ np.array([*state, w, (now - w) / n])
        w, before = now, tick
    if not debias:
        return np.asarray(state[1])
    # total ← total + a·(1 − total) from a on, at each of the ticks that follow the first
    total = -math.expm1((ticks[-1] - ticks[0] + 1) * math.log1p(-dynamics.a)) if dynamics.a < 1 else 1.0
    return np.asarray(state[1] / total)


@lru_cache(maxsize=1024)
def over_interval(dynamics: Dynamics, n: int) -> Float64Array:
    """n ticks as a [3, 5] matrix from (x, e, v, w, δ) to (x, e, v)."""
    return np.asarray((np.eye(5) + _change(dynamics, n))[:3])


def _change(dynamics: Dynamics, n: int) -> Float64Array:
    """What n ticks change, [5, 5]: tick by tick, or for many ticks as half of them and the other half after those.

    With D the change of m ticks, 2m ticks change 2·D + D·D; the identity, next to which D is small, stays out of it.
    """
    if n > _TICK_BY_TICK:
        half = _change(dynamics, n // 2)
        twice = 2 * half + half @ half
        one = _change(dynamics, n % 2)
        return np.asarray(one + twice + one @ twice)
    alpha, mu, beta, kappa = rates(dynamics)
    x, e, v, w, delta = np.eye(5)
    changed = np.zeros((5, 5))
    for _ in range(n):
        step = (delta - kappa * (x - w) + beta * (e - x)) / (1 + beta)  # x' − x, of x' = x + δ − κ(x − w) + β(e − x')
        x, w = x + step, w + delta
        push = mu * v + alpha * (x - e)
        changed += np.array([step, push, push - v, delta, np.zeros(5)])
        v, e = push, e + push
    return changed
