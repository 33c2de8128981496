"""The uniform average: all checkpoints alike, or the last N (SWA, arXiv 1803.05407; LAWA, arXiv 2209.14981)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from belay_cli.rules.gains import follow
from belay_cli.rules.rule import Float64Array
from belay_cli.rules.windowed import Windowed


@dataclass(frozen=True)
class Uniform(Windowed):
    """The mean of the last `window` checkpoints, or of all."""

    method = "uniform"
    title = "Uniform average"
    phrase = "the mean of all checkpoints, or of the last ones"
    tags = ("swa",)

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """1/K for each of the last K, else 0. [T] -> [T], sum 1."""
        count = self.taken(ticks)
        c = np.zeros(len(ticks))
        c[-count:] = 1 / count
        return c

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The running mean, e ← e + (w − e)/k, over the last K. [T], T × [n] -> [n]."""
        skipped = len(ticks) - self.taken(ticks)
        return follow((1 / max(1, n - skipped) for n in range(1, len(ticks) + 1)), weights)

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """Of how many."""
        count = self.taken(ticks)
        if count == len(ticks):
            return f"all {count} checkpoints" if count > 1 else "the one checkpoint"
        return f"the last {count} of {len(ticks)} checkpoints" if count > 1 else "the last checkpoint alone"
