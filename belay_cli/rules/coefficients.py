"""Coefficients of the user's own: any linear merge, with negative weights too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.per_checkpoint import finite, in_a_row, numbers_in, one_each
from belay_cli.rules.rule import Facts, Float64Array, Parameters, Rule

Given = str | tuple[float, ...] | Mapping[str, float] | None

_ROUNDED = 1e-9  # what a sum that was meant to be 1 may miss it by


@dataclass(frozen=True)
class Coefficients(Rule):
    """One number a checkpoint, taken as they are: nothing is normalised, and they may be negative.

    Given as the name of a file, as numbers in the order of the series, or by the names of the checkpoints.
    """

    coefficients_: Annotated[Given, Option("coefficients: a .json or .csv by name, or 0.2,0.3,0.5.", "FILE")] = None

    method = "coefficients"
    title = "Average"
    chosen_by_name = True
    phrase = "coefficients of your own"
    any_sum: ClassVar[bool] = True

    def told(self, facts: Facts) -> Coefficients:
        """With a number for each checkpoint. Raises UsageError if they are not as many."""
        if self.coefficients_ is None:
            raise UsageError("--method coefficients takes --coefficients", hint="a file, or numbers: 0.2,0.3,0.5")
        found = facts.numbers("--coefficients", self.coefficients_, whole=True)
        numbers = finite(found, "a coefficient")
        if not any(numbers):
            raise UsageError("--coefficients are all 0", hint="give at least one checkpoint a weight")
        if any(abs(number) > 1e6 for number in numbers):
            raise UsageError("--coefficients are larger than a million", hint="scale them, so that they sum to 1")
        return Coefficients(numbers)

    @property
    def _numbers(self) -> tuple[float, ...]:
        if not isinstance(self.coefficients_, tuple):
            raise ValueError("the coefficients are not known: told() finds them")
        return self.coefficients_

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """They themselves. [T] -> [T]."""
        one_each(self._numbers, ticks, "coefficients")
        return np.array(self._numbers, np.float64)

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """Their sum, one checkpoint after the other. [T], T × [n] -> [n]."""
        return np.asarray(sum(c * w for c, w in zip(self._numbers, weights, strict=True)))

    def parameters(self) -> Parameters:
        """The numbers."""
        return {"coefficients": list(self._numbers)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Coefficients:
        """The rule of a record. Raises KeyError, TypeError or ValueError."""
        return cls(numbers_in(parameters["coefficients"]))

    def arguments(self) -> list[str]:
        """The numbers in the order of the series. An = keeps a minus in front from being an option."""
        return [f"--coefficients={in_a_row(self._numbers)}"]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """That they are given, and their sum if it is not 1."""
        total = math.fsum(self._numbers)
        return "coefficients as given" + ("" if abs(total - 1) <= _ROUNDED else f", sum {words.number(total)}")

    def warnings(self, ticks: Sequence[int], unit: str, coefficients: Float64Array) -> Iterator[str]:
        """A sum that scales the weights."""
        total = math.fsum(self._numbers)
        if abs(total) <= _ROUNDED:
            yield "the coefficients sum to 0, and nothing is normalised: this is a difference of weights, and no model"
        elif abs(total - 1) > _ROUNDED:
            yield (
                f"the coefficients sum to {total:.6g}, and nothing is normalised: the weights are scaled by that; for "
                "an average divide each by the sum"
            )

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Others."""
        return "other --coefficients spread it"
