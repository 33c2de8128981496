"""Candidates with their scores: the best, what is tied with it, and where the grid ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from belay_cli.rules import Summary
from belay_cli.sweeping.grid import LAST, Candidate, at_edges
from belay_cli.sweeping.metric import Score


@dataclass(frozen=True)
class Tried:
    """A candidate and what became of it: a score, or why there is none.

    `measured`: every metric of --metric by name; `seconds`: that its evaluations took, None if not known.
    """

    candidate: Candidate
    summary: Summary
    score: Score | None = None
    failure: str = ""
    measured: Mapping[str, float] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """All that was tried. higher: whether a high score is good."""

    tried: Sequence[Tried]
    higher: bool

    @property
    def ranked(self) -> list[Tried]:
        """Those with a score, the best first; of two alike, the one that remembers longer."""
        sign = -1 if self.higher else 1
        scored = [(one, one.score) for one in self.tried if one.score is not None]
        return [
            one for one, score in sorted(scored, key=lambda pair: (sign * pair[1].value, -pair[0].summary.mean_lag))
        ]

    @property
    def failed(self) -> list[Tried]:
        """Those without."""
        return [one for one in self.tried if one.score is None]

    @property
    def best(self) -> Tried | None:
        """The best one."""
        return next(iter(self.ranked), None)

    @property
    def last(self) -> Tried | None:
        """The last checkpoint."""
        return next((one for one in self.tried if one.candidate.label == LAST and one.score is not None), None)

    @property
    def tied(self) -> list[Tried]:
        """Those within one standard error of the best (the rule of Breiman and others, 1984), the best too.

        Empty where nothing states a standard error.
        """
        best = self.best
        if best is None or best.score is None or best.score.error is None:
            return []
        value, error = best.score.value, best.score.error
        return [one for one in self.ranked if one.score is not None and abs(one.score.value - value) <= error]

    @property
    def longest(self) -> Tried | None:
        """Of those that are tied, the one with the longest memory."""
        return max(self.tied, key=lambda one: one.summary.mean_lag, default=None)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The options in which the best is at an end of the grid, and a value beyond."""
        best = self.best
        return at_edges([one.candidate for one in self.ranked], best.candidate) if best else []
