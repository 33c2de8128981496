"""Results into rows: each family of methods at its best by the validation set, judged on the test set."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scipy import stats

from evidence.methods import FOLLOWED, METHODS

NEAR = 1.05  # times the best loss of the EMA


@dataclass(frozen=True)
class Trial:
    """One method at one rate, and one kind of the weights that it offers. Losses and accuracies are [seeds]."""

    family: str
    method: str
    rate: float
    validation: list[float]
    test: list[float]
    accuracy: list[float]
    along: dict[str, list[list[float]]]

    @property
    def loss(self) -> float:
        """On the test set, mean over the seeds."""
        return statistics.mean(self.test)


@dataclass(frozen=True)
class Row:
    """A family at its best: the trial that its validation loss picks, and how it compares with that of the EMA.

    `difference`, `error` and `p`: of the test loss, paired by seed; `low` and `high`: the rates between which its best
    method is at most 5 % worse than the EMA at its best, None if there are none; `stopped`: its test loss if the
    validation loss picks the end of the training too, None where that was not followed.
    """

    trial: Trial
    difference: float
    error: float
    p: float
    low: float | None
    high: float | None
    stopped: float | None

    @property
    def spread(self) -> float:
        """Standard deviation of the test loss over the seeds."""
        return statistics.stdev(self.trial.test) if math.isfinite(self.trial.loss) else math.inf

    @property
    def accuracy(self) -> float:
        """On the test set, mean over the seeds."""
        return statistics.mean(self.trial.accuracy)


def trials(results: dict[str, Any]) -> dict[str, list[Trial]]:
    """All trials, by problem and optimizer."""
    found = defaultdict(list)
    for key, result in results.items():
        problem, optimizer, rate, name = key.split(" ", 3)
        family = METHODS[optimizer, name].family
        for kind, judged in result["weights"].items():
            along = result["along"]
            if name == "plain":
                family, label = kind.partition(" ")[0].replace("uniform", "uniform tail"), kind
                along = along if kind == FOLLOWED else {"validation": [], "test": []}
            elif kind == "last" and len(result["weights"]) > 1:
                continue
            else:
                label = name
            found[f"{problem} {optimizer}"].append(
                Trial(
                    family,
                    label,
                    float(rate),
                    judged["validation loss"],
                    judged["test loss"],
                    judged["test accuracy"],
                    along,
                )
            )
    return dict(found)


def rows(all_of_one: list[Trial]) -> list[Row]:
    """Each family of one problem and optimizer, the best first."""
    families = defaultdict(list)
    for trial in all_of_one:
        families[trial.family].append(trial)
    ema = best(families["EMA"])
    found = [_row(best(members), ema, members) for members in families.values()]
    return sorted(found, key=lambda row: row.trial.loss)


def best(members: list[Trial]) -> Trial:
    """By the mean validation loss."""
    return min(members, key=lambda trial: statistics.mean(trial.validation))


def _row(trial: Trial, ema: Trial, family: list[Trial]) -> Row:
    differences = [a - b for a, b in zip(trial.test, ema.test, strict=True)]
    same = all(d == 0 for d in differences)
    finite = math.isfinite(trial.loss)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if finite else math.inf
    p = 1.0 if same or not finite else float(stats.ttest_rel(trial.test, ema.test).pvalue)
    near = [one.rate for one in family if one.method == trial.method and one.loss <= NEAR * ema.loss]
    return Row(
        trial,
        statistics.mean(differences) if finite else math.inf,
        error,
        p,
        min(near, default=None),
        max(near, default=None),
        min(_stopped(family), default=(0.0, None))[1],
    )


def _stopped(family: list[Trial]) -> Iterator[tuple[float, float | None]]:
    """Mean validation and test loss at every check of every trial."""
    for trial in family:
        for validation, test in zip(trial.along["validation"], trial.along["test"], strict=True):
            yield statistics.mean(validation), statistics.mean(test)


def by_rate(all_of_one: list[Trial], method: str) -> list[tuple[float, float]]:
    """Rate and mean test loss of one method, by rising rate."""
    return sorted((one.rate, one.loss) for one in all_of_one if one.method == method)
