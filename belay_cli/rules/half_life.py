"""Half-lives as people write them, in ticks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from belay_cli.errors import UsageError

DEFAULT_SHARE_OF_SPAN = 0.05

_FORM = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(%|steps?|checkpoints?|)\s*", re.IGNORECASE)
_EXAMPLES = "write 10%, 2000steps, 3checkpoints, or a number of ticks"


def default_half_life(ticks: Sequence[int]) -> float:
    """5 % of the span, at least the mean spacing of the checkpoints. Ticks."""
    return max(DEFAULT_SHARE_OF_SPAN * (ticks[-1] - ticks[0]), mean_spacing(ticks))


def parse_half_life(text: str | float, ticks: Sequence[int], unit: str) -> float:
    """`10%` of the span, `2000steps`, `3checkpoints`, or a bare number of ticks -> ticks, above 0.

    Raises UsageError on any other form, and on steps in checkpoint unit.
    """
    number, suffix = split_half_life(text)
    if suffix == "%":
        # One checkpoint has no span; any half-life gives the same copy of it.
        return number / 100 * (ticks[-1] - ticks[0]) if len(ticks) > 1 else 1.0
    if suffix == "step" and unit != "step":
        raise UsageError(
            f"--half-life {text} needs the step of every checkpoint, and these are counted in checkpoints",
            hint="write it in checkpoints (3checkpoints) or as a share of the span (10%)",
        )
    if suffix == "checkpoint":
        return number * mean_spacing(ticks)
    return number


def split_half_life(text: str | float) -> tuple[float, str]:
    """Number and suffix (`%`, `step`, `checkpoint` or nothing) of a half-life. Raises UsageError."""
    match = _FORM.fullmatch(str(text))
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not 0 < number < math.inf:
        raise UsageError(f"--half-life '{text}' is not a positive half-life", hint=_EXAMPLES)
    return number, match[2].lower().rstrip("s")


def mean_spacing(ticks: Sequence[int]) -> float:
    """Mean distance of two checkpoints in ticks; 1 if there is only one."""
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1.0


def a_from_half_life(half_life: float) -> float:
    """a = 1 − decay for decay = 2^(−1/half_life), without the cancellation."""
    return -math.expm1(-math.log(2) / half_life)


def half_life_from_a(a: float) -> float:
    """The ticks after which the EMA has forgotten half; 0 at decay 0."""
    return -math.log(2) / math.log1p(-a) if a < 1 else 0.0
