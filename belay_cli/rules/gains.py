"""Averages that move a share of the way to each checkpoint, e ← e + g (w − e): their coefficients, and the recursion.

A rule of this kind is its gains g_n = 1 − b_n, one a checkpoint; the first is 1, since e begins as the first weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from belay_cli.rules.rule import Float64Array


def coefficients_of_gains(gains: Sequence[float] | Float64Array) -> Float64Array:
    """c_n = g_n Π_{m>n} (1 − g_m). [T] -> [T], sum 1."""
    g = np.array(gains, np.float64)
    g[0] = 1.0
    kept = np.append(np.cumprod(1.0 - g[:0:-1])[::-1], 1.0)  # Π over the later ones
    return np.asarray(g * kept)


def follow(gains: Iterable[float], weights: Iterable[Float64Array]) -> Float64Array:
    """The same as the recursion on weights. [T], T × [n] -> [n]."""
    average: Float64Array | None = None
    for gain, now in zip(gains, weights, strict=True):
        average = now if average is None else average + gain * (now - average)
    if average is None:
        raise ValueError("an average of nothing")
    return np.asarray(average)
