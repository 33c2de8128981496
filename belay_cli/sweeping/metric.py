"""Which number of an evaluation is meant, which end of it is good, and what several together come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.formats.text import listed
from belay_cli.sweeping.measures import Key, Measured, Measures, NoResult

LARGEST = 1e100  # of a score: its square and sums of it are numbers too


class Part(NamedTuple):
    """A metric of --metric: a task, or None where it is not said, a metric and its weight."""

    task: str | None
    metric: str
    weight: float = 1.0

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.task, self.metric))) or "score"
        return name if self.weight == 1 else f"{name} × {self.weight:g}"


class Score(NamedTuple):
    """What a candidate is judged by, and its standard error, None where nothing states one."""

    value: float
    error: float | None


def part_of(said: Sequence[str]) -> Part:
    """`TASK METRIC WEIGHT`, `TASK METRIC`, `METRIC WEIGHT` or `METRIC`. Raises UsageError."""
    texts = list(said)
    weight = 1.0
    if len(texts) > 1 and words.is_number(texts[-1]):
        weight = float(texts.pop())
    if not 1 <= len(texts) <= 2 or not all(texts) or not math.isfinite(weight) or weight == 0:
        raise UsageError(
            f"--metric {' '.join(said)} is no metric", hint="write --metric TASK METRIC, or with a WEIGHT behind it"
        )
    return Part(texts[0] if len(texts) == 2 else None, texts[-1], weight)


@dataclass
class Judge:
    """Makes scores of measures: of several metrics the mean, weighted over the sum of the absolute weights.

    `parts`: what --metric said; `higher`: what --maximize or --minimize said.
    What is left open is settled by the first evaluation with a score, and holds for all.
    """

    parts: tuple[Part, ...] = ()
    higher: bool | None = None
    settled: bool = False

    @property
    def name(self) -> str:
        """The metric, in words."""
        return " + ".join(map(str, self.parts)) or "score"

    def score(self, measures: Measures) -> Score:
        """The weighted mean of the metrics.

        Raises NoResult if one is missing or no number; UsageError if it is not known which one, or which end, is meant.
        """
        parts = self.parts or (_only(measures),)
        found = []
        for part in parts:
            key = _find(part, measures)
            if key is None:
                if not self.settled:
                    raise _which(f"the evaluation has no {part}", measures)
                raise NoResult(f"has no {part}")
            if not abs(measures[key].value) < LARGEST:  # and it settles nothing for those that did better
                raise NoResult(f"gave {measures[key].value} for {part}")
            found.append(measures[key])
        self.parts = parts
        self._settle_direction(found)
        self.settled = True
        return self._together(found)

    def _settle_direction(self, found: Sequence[Measured]) -> None:
        told = {
            measured.higher == (part.weight > 0)
            for part, measured in zip(self.parts, found, strict=True)
            if measured.higher is not None
        }
        if self.higher is None:
            if len(told) > 1:
                raise UsageError(
                    f"of {self.name} one is better higher, and another lower",
                    hint="give one of them a negative weight",
                )
            if not told:
                raise UsageError(
                    f"whether a high {self.name} is good is not known",
                    hint="say --maximize or --minimize; what was evaluated is kept",
                )
            self.higher = told.pop()
        elif self.higher not in told and len(told) == 1:
            said, end = ("--maximize", "lower") if self.higher else ("--minimize", "higher")
            raise UsageError(f"{said}, but the results say that {end} is better for {self.name}", hint="leave it out")

    def _together(self, found: Sequence[Measured]) -> Score:
        weights = [part.weight for part in self.parts]
        total = math.fsum(map(abs, weights))  # a negative weight turns the end that is good, and must stay negative
        value = math.fsum(w * m.value for w, m in zip(weights, found, strict=True)) / total
        errors = [m.error for m in found]
        if any(error is None for error in errors):
            return Score(value, None)
        squares = [(w * (error or 0.0)) ** 2 for w, error in zip(weights, errors, strict=True)]
        return Score(value, math.sqrt(math.fsum(squares)) / total)


def mean_of(scores: Sequence[Score]) -> Score:
    """Of one evaluation repeated: the mean, and the larger of what it states itself and of its own spread, over √N."""
    value = math.fsum(score.value for score in scores) / len(scores)
    errors = [score.error for score in scores if score.error is not None]
    if len(scores) > 1:
        squares = math.fsum((score.value - value) ** 2 for score in scores)
        errors.append(math.sqrt(squares / (len(scores) - 1) / len(scores)))
    return Score(value, max(errors) if errors else None)


def _only(measures: Measures) -> Part:
    """The metric, if there is but one."""
    if len(measures) == 1:
        key = next(iter(measures))
        return Part(key.task or None, key.metric)
    raise _which("which metric is meant is not known", measures)


def _which(message: str, measures: Measures) -> UsageError:
    found = list(map(str, measures))
    shown = listed(found[:6]) + (f" and {words.count(len(found) - 6)} more" if len(found) > 6 else "")
    if not any(map(any, measures)):
        return UsageError(
            f"{message}: it printed a number alone", hint="leave --metric out; what was evaluated is kept"
        )
    said = "TASK METRIC" if any(key.task for key in measures) else "METRIC"
    return UsageError(message, hint=f"--metric {said}, of: {shown}; what was evaluated is kept")


def _find(part: Part, measures: Measures) -> Key | None:
    """The metric as it is written; `acc` is `acc,none` too, where no other filter of it is there."""
    of_task = [key for key in measures if part.task in (None, key.task)]
    exact = [key for key in of_task if key.metric == part.metric]
    near = exact or [key for key in of_task if key.metric.partition(",")[0] == part.metric]
    if len(near) > 1:
        raise _which(f"--metric {part} may be one of several", {key: measures[key] for key in near})
    return near[0] if near else None
