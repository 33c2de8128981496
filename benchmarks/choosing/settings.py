"""The settings in which averages are judged, and which of them share a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

FINEST = 50  # steps between the checkpoints of a run that several spacings share


@dataclass(frozen=True)
class Setting:
    """A training run and the checkpoints that are taken of it.

    problem: `digits` or `bytes`; rate: of the optimizer at the start; schedule: `constant`, `cosine` (to 10 %) or
    `linear` (to zero), over the steps that have checkpoints; batch: examples a step; every: steps between checkpoints;
    steps: of the whole run.
    """

    problem: str
    rate: float
    schedule: str = "constant"
    batch: int = 16
    every: int = 100
    steps: int = 2000

    @property
    def name(self) -> str:
        """As results are kept by."""
        learning = f"{self.schedule}, rate {self.rate:g}, batch {self.batch}"
        return f"{self.problem}, {learning}, {self.steps} steps, every {self.every}"

    @property
    def short(self) -> str:
        """The name without what is usual."""
        usual = BYTES if self.problem == BYTES.problem else DIGITS
        found = self.name.replace(f", every {usual.every}", "") if self.every == usual.every else self.name
        return found.replace(f", {usual.steps} steps", "") if self.steps == usual.steps else found

    @property
    def run(self) -> Setting:
        """The setting with the checkpoints that its training run saves: those with the same one share the run."""
        return replace(self, every=FINEST)

    def factor(self, done: float) -> float:
        """What the rate is multiplied by when a share `done`, 0 to 1, of the schedule is over."""
        if self.schedule == "linear":
            return 1 - done
        if self.schedule == "cosine":
            return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        return 1.0


DIGITS = Setting("digits", 0.1)
BYTES = Setting("bytes", 4e-3, batch=8, steps=3000)


def variations(base: Setting, rates: Sequence[float], batches: Sequence[int], steps: Sequence[int]) -> list[Setting]:
    """The base, and what differs from it in one respect; runs of other lengths have as many checkpoints."""
    found = [base]
    found += [replace(base, rate=rate) for rate in rates]
    found += [replace(base, schedule=schedule) for schedule in ("cosine", "linear")]
    found += [replace(base, batch=batch) for batch in batches]
    found += [replace(base, every=every) for every in (50, 200, 400)]
    return found + [replace(base, steps=count, every=base.every * count // base.steps) for count in steps]


SETTINGS = [
    *variations(DIGITS, rates=(0.03, 0.3), batches=(64,), steps=(1000, 4000, 8000)),
    *variations(BYTES, rates=(1e-3,), batches=(), steps=()),
]
