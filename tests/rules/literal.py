"""The recursions as they are defined, one tick after the other: slow, and the plainest witness there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from belay_cli.rules.dynamics import Dynamics
from belay_cli.rules.recursion import rates
from belay_cli.rules.rule import Float64Array


def replay_ticks(dynamics: Dynamics, ticks: Sequence[int], weights: Float64Array) -> Iterator[Float64Array]:
    """Yield the EMA weights e, [n], at the first tick and after each one that follows.

    ticks: [T] rising; weights: [T, n], any float dtype of numpy (longdouble for more digits).
    """
    alpha, mu, beta, kappa = rates(dynamics)
    w = weights[0]
    x, e, v = w, w, np.zeros_like(w)
    yield e
    for j in range(1, len(ticks)):
        n = ticks[j] - ticks[j - 1]
        delta = (weights[j] - weights[j - 1]) / n
        for _ in range(n):
            free = x + delta - kappa * (x - w)
            x = free + beta / (1 + beta) * (e - free)  # x = free + β (e − x), solved for x
            w = w + delta
            v = mu * v + alpha * (x - e)
            e = e + v
            yield e
        w = weights[j]  # what is recorded, rather than n additions of δ


def replay_weights(dynamics: Dynamics, ticks: Sequence[int], weights: Float64Array) -> Float64Array:
    """The EMA weights after the last tick. [T], [T, n] -> [n]."""
    e = weights[0]
    for e in replay_ticks(dynamics, ticks, weights):  # noqa: B007
        pass
    return np.asarray(e)


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
