"""What is chosen by a part of the held-out data, and what the other part says of it.

The held-out data of a run are cut into four quarters, at random by its seed. Two of them choose and the other two
report, in each of the six ways; what is reported of a run is the mean over the ways. A standard error is over runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from choosing.judging import QUARTERS, UNIT, WAYS

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over runs and its standard error, which is NaN for one run."""

    mean: float
    error: float


class Picked(NamedTuple):
    """What was chosen: its loss on the quarters that chose and on those that report, nats, [S]; how often a label."""

    chosen: Array
    reported: Array
    labels: Counter[str]


@dataclass(frozen=True)
class Measured:
    """The results of a setting. lags: steps, by label; quarters: losses, nats, [S, L, QUARTERS]."""

    name: str
    checkpoints: int
    span: int
    lags: Mapping[str, float]
    quarters: Array
    best: tuple[Mapping[str, Sequence[int]], ...]

    @classmethod
    def of(cls, name: str, kept: Mapping[str, Any]) -> Measured:
        """From the JSON."""
        seeds = [kept["seeds"][seed] for seed in sorted(kept["seeds"], key=int)]
        losses = np.array([one["losses"] for one in seeds], np.float64) * UNIT
        best = tuple(one["best"] for one in seeds)
        return cls(name, kept["checkpoints"], kept["span"], kept["lags"], losses, best)

    @property
    def runs(self) -> int:
        """How many."""
        return len(self.quarters)

    def family(self, *families: str) -> list[str]:
        """The labels of these families, without those at the same lag."""
        return [label for label in self.lags if label.split()[0] in families and not label.endswith("same-lag")]

    def loss(self, label: str) -> Array:
        """Of one average on all held-out data, nats, [S]."""
        return np.asarray(self.quarters[:, self._place[label]].mean(1))

    def by_run(self, labels: Sequence[str]) -> Picked:
        """Each run chooses among the labels."""
        chosen, reported = self._halves(labels)
        return self._picked(chosen, reported, chosen.argmin(2), labels)

    def by_setting(self, labels: Sequence[str]) -> Picked:
        """One choice for all runs, by their mean loss."""
        chosen, reported = self._halves(labels)
        places = np.broadcast_to(chosen.mean(0).argmin(1), chosen.shape[:2])
        return self._picked(chosen, reported, places, labels)

    def best_checkpoints(self, count: int) -> Picked:
        """The mean of the `count` best checkpoints, the best by the quarters that choose."""
        halves = np.zeros((2, self.runs, len(WAYS)))
        for run, way in np.ndindex(self.runs, len(WAYS)):
            losses = self.best[run][f"{count} by {WAYS[way][0]}{WAYS[way][1]}"]
            halves[:, run, way] = _split(np.array(losses, np.float64) * UNIT, WAYS[way])
        return Picked(halves[0].mean(1), halves[1].mean(1), Counter())

    @cached_property
    def _place(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.lags)}

    def _halves(self, labels: Sequence[str]) -> tuple[Array, Array]:
        """Losses on the quarters that choose and on those that report, [S, W, labels] each."""
        taken = self.quarters[:, [self._place[label] for label in labels]]
        pairs = [_split(taken, way) for way in WAYS]
        return np.stack([pair[0] for pair in pairs], 1), np.stack([pair[1] for pair in pairs], 1)

    @staticmethod
    def _picked(chosen: Array, reported: Array, places: NDArray[np.intp], labels: Sequence[str]) -> Picked:
        at = places[..., None]
        own, other = (np.take_along_axis(one, at, 2)[..., 0].mean(1) for one in (chosen, reported))
        return Picked(own, other, Counter(labels[int(place)] for place in places.ravel()))


def estimate(values: Array) -> Estimate:
    """Mean and standard error over runs, [S]."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def _split(losses: Array, way: Sequence[int]) -> tuple[Array, Array]:
    """Means over the quarters of a way and over the others: [..., QUARTERS] -> [...], [...]."""
    others = [quarter for quarter in range(QUARTERS) if quarter not in way]
    return np.asarray(losses[..., list(way)].mean(-1)), np.asarray(losses[..., others].mean(-1))
