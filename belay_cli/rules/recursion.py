"""The same dynamics written as they are defined: tick by tick, on the weights themselves.

This is the second definition of every rule. It is far slower than the coefficients and shares no code
with them, which makes it the witness in tests and in verification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from belay_cli.rules.rule import Float64Array
from belay_cli.rules.spring import Dynamics

_TICK_BY_TICK = 4096


def replay_ticks(dynamics: Dynamics, ticks: Sequence[int], weights: Float64Array) -> Iterator[Float64Array]:
    """Yield the EMA weights e, [n], at the first tick and after each one that follows.

    ticks: [T] rising; weights: [T, n], any float dtype of numpy (longdouble for more digits).
    """
    alpha, mu, beta, kappa = _rates(dynamics)
    w = weights[0]
    x, e, v = w, w, np.zeros_like(w)
    yield e
    for j in range(1, len(ticks)):
        n = ticks[j] - ticks[j - 1]
        delta = (weights[j] - weights[j - 1]) / n
        for _ in range(n):
            x = x + delta - kappa * (x - w) + beta * (e - x)
            w = w + delta
            v = mu * v + alpha * (x - e)
            e = e + v
            yield e
        w = weights[j]  # what is recorded, rather than n additions of δ


def _rates(dynamics: Dynamics) -> tuple[float, float, float, float]:
    """α, μ, β and κ of one tick."""
    return dynamics.spring, dynamics.inertia, dynamics.feedback * dynamics.a, dynamics.pull_back


def replay_weights(dynamics: Dynamics, ticks: Sequence[int], weights: Float64Array) -> Float64Array:
    """The EMA weights after the last tick. [T], [T, n] -> [n]."""
    e = weights[0]
    for e in replay_ticks(dynamics, ticks, weights):  # noqa: B007
        pass
    return np.asarray(e)


def replay_intervals(
    dynamics: Dynamics, ticks: Sequence[int], weights: Iterable[Float64Array], *, debias: bool = False
) -> Float64Array:
    """The EMA weights after the last tick, the checkpoints given one after the other. [T], T × [n] -> [n].

    One tick is linear in (x, e, v, w, δ), so the ticks between two checkpoints are worked through once, on the
    five unit vectors, and applied to every element: as exact as `replay_weights`, and fit for whole tensors.
    """
    w: Float64Array | None = None
    state = np.zeros((3, 0))
    before = 0
    for tick, now in zip(ticks, weights, strict=True):
        if w is None:
            state = np.array([now, dynamics.a * now if debias else now, np.zeros_like(now)])
        else:
            n = tick - before
            over_interval = _interval(dynamics, n)
            state = over_interval @ np.array([*state, w, (now - w) / n])
        w, before = now, tick
    if not debias:
        return np.asarray(state[1])
    # total ← total + a·(1 − total) from a on, at each of the ticks that follow the first
    total = -math.expm1((ticks[-1] - ticks[0] + 1) * math.log1p(-dynamics.a)) if dynamics.a < 1 else 1.0
    return np.asarray(state[1] / total)


@lru_cache(maxsize=1024)
def _interval(dynamics: Dynamics, n: int) -> Float64Array:
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
    alpha, mu, beta, kappa = _rates(dynamics)
    x, e, v, w, delta = np.eye(5)
    changed = np.zeros((5, 5))
    for _ in range(n):
        step = delta - kappa * (x - w) + beta * (e - x)
        x, w = x + step, w + delta
        push = mu * v + alpha * (x - e)
        changed += np.array([step, push, push - v, delta, np.zeros(5)])
        v, e = push, e + push
    return changed


def debiased_ema_weights(a: float, ticks: Sequence[int], weights: Float64Array) -> Float64Array:
    """The debiased EMA: e_0 = a·w_0, and the sum of its weights carried along to divide by. [T], [T, n] -> [n]."""
    e, total = a * weights[0], a
    for j in range(1, len(ticks)):
        n = ticks[j] - ticks[j - 1]
        for k in range(1, n + 1):
            w = weights[j - 1] + (weights[j] - weights[j - 1]) * (k / n)
            e = e + a * (w - e)
            total = total + a * (1.0 - total)
    return np.asarray(e / total)
