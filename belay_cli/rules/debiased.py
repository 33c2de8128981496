"""The debiased EMA: without the initial state, whose weight is decay^(ticks since) and dies out slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from belay_cli.rules.rule import Float64Array


def debiased_ema_coefficients(a: float, ticks: Sequence[int]) -> Float64Array:
    """The EMA without its initial state: started from e_0 = a·w_0 and divided by the sum. [T] -> [T], sum 1.

    Every tick gives a·decay^(ticks since) to a point between two checkpoints, so all terms are positive and
    the division loses nothing even where the sum is tiny.
    """
    c = np.zeros(len(ticks))
    later = 1.0  # decay^(ticks since the end of the interval)
    for j in range(len(ticks) - 1, 0, -1):
        n = ticks[j] - ticks[j - 1]
        to_end, to_start = shares_of_ends(a, n)
        c[j] += later * to_end
        c[j - 1] += later * to_start
        later *= np.exp(n * np.log1p(-a)) if a < 1.0 else 0.0
    c[0] += later * a
    return np.asarray(c / c.sum())


def shares_of_ends(a: float, n: int) -> tuple[float, float]:
    """Σ_k a·d^(n−k)·k/n and Σ_k a·d^(n−k)·(n−k)/n over k = 1 … n, d = 1 − a.

    By doubling, on sums of positive terms: the last m ticks of n + m are m new ones, and n older by d^m. What has a
    closed form, d^n and the sum of all a·d^(n−k), is taken from it: as a product of products it would lose digits.
    """
    log_decay = math.log1p(-a) if a < 1.0 else -math.inf
    done, ramp, lag = 0, 0.0, 0.0  # ticks, Σ a·d^(n−k)·k, Σ a·d^(n−k)·(n−k)
    for bit in bin(n)[2:]:
        decayed, mass = (math.exp(done * log_decay), -math.expm1(done * log_decay)) if done else (1.0, 0.0)
        ramp, lag = decayed * ramp + ramp + done * mass, decayed * (lag + done * mass) + lag
        done *= 2
        if bit == "1":
            mass = -math.expm1(done * log_decay) if done else 0.0
            ramp, lag = (1 - a) * ramp + a * (done + 1), (1 - a) * (lag + mass)
            done += 1
    return ramp / n, lag / n
