"""Numbers that a rule has for every checkpoint, one each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from belay_cli.errors import UsageError

_LARGEST = 1e300


def numbers_in(told: Any) -> tuple[float, ...]:
    """Those of a record's list. Raises TypeError or ValueError if it is none."""
    if not isinstance(told, list) or any(isinstance(one, bool) or not isinstance(one, int | float) for one in told):
        raise TypeError("its parameters are no numbers")
    return finite(told, "a parameter of its rule", ValueError)


def finite(numbers: Sequence[float], what: str, error: type[Exception] = UsageError) -> tuple[float, ...]:
    """The numbers as float64. Raises `error` for one that is not finite."""
    for number in numbers:
        if not (math.isfinite(number) and abs(number) < _LARGEST):
            raise error(f"{what} cannot be {number:g}")
    return tuple(map(float, numbers))


def in_a_row(numbers: Sequence[float]) -> str:
    """As a command has them: `0.2,0.3,0.5`."""
    return ",".join(map(repr, numbers))


def one_each(numbers: Sequence[float], ticks: Sequence[int], what: str) -> None:
    """Raise ValueError unless there is one for each tick."""
    if len(numbers) != len(ticks):
        raise ValueError(f"{len(numbers)} {what} for {len(ticks)} checkpoints")
