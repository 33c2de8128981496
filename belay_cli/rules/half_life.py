"""Half-lives as people write them, in ticks."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

from belay_cli.errors import UsageError

DEFAULT_SHARE_OF_SPAN = 0.05

_EXAMPLES = "write 10%, 2000steps, 3checkpoints, or a number of ticks"

# A number and a word for what it counts; 1_000 groups digits as Python does.
_FORM = re.compile(r"(\d+(?:_\d{3})*(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*(%|(?:[a-z][a-z ]*)?)", re.IGNORECASE | re.ASCII)
_COMMAS = re.compile(r"(\d+)((?:,\d+)+)(.*)", re.ASCII)
_THOUSANDS = re.compile(r"([kKM]) ?(|[sS]teps?)")

# What a word counts, without the s at its end; "" are ticks.
_COUNTED = {
    **dict.fromkeys(("%", "percent", "pct"), "%"),
    **dict.fromkeys(("step", "iteration", "iter"), "step"),
    **dict.fromkeys(("checkpoint", "ckpt"), "checkpoint"),
    **dict.fromkeys(("", "tick"), ""),
}
# What no checkpoint states.
_NOT_KNOWN = {
    "epoch": "epochs",
    "token": "tokens",
    **dict.fromkeys(("sample", "example", "image"), "samples"),
    **dict.fromkeys(("sec", "second", "min", "minute", "h", "hour", "day"), "time"),
}


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
    found = _FORM.fullmatch(str(text).strip())
    if found is None:
        raise _no_half_life(text, _with_a_point(str(text)))
    number, word = float(found[1] + (found[2] or "")), found[3]
    suffix = _COUNTED.get(_singular(word))
    if suffix is None:
        raise _not_counted(text, number, word)
    if not 0 < number < math.inf:
        raise _no_half_life(text, "the longest that says something is about the span: 100%" if number else None)
    return number, suffix


def _singular(word: str) -> str:
    word = word.lower()
    return word if len(word) < 2 else word.removesuffix("s")


def _no_half_life(text: str | float, hint: str | None = None) -> UsageError:
    return UsageError(f"--half-life '{text}' is not a positive half-life", hint=hint or _EXAMPLES)


def _with_a_point(text: str) -> str | None:
    """The mend for commas: 1,000 is a thousand to some, and 1,5 one and a half to others."""
    found = _COMMAS.fullmatch(text.strip())
    if not found:
        return None
    whole, groups, rest = found[1], found[2].split(",")[1:], found[3]
    thousands = whole != "0" and all(len(group) == 3 for group in groups)
    return f"without a comma: {whole}{'' if thousands else '.'}{''.join(groups)}{rest}"


def _not_counted(text: str | float, number: float, word: str) -> UsageError:
    """The error for a word that is none of ours, with what it may stand for."""
    if what := _NOT_KNOWN.get(_singular(word)):
        convert = f"one epoch of 500 steps is 500steps; with one checkpoint an epoch, {number:g}checkpoints"
        return UsageError(
            f"--half-life '{text}' counts {what}, which checkpoints do not state",
            hint=convert if what == "epochs" else "convert it to steps or checkpoints: 2000steps, 3checkpoints",
        )
    if found := _THOUSANDS.fullmatch(word):
        return _no_half_life(text, f"in digits: {number * (1e6 if found[1] == 'M' else 1e3):.0f}steps")
    near = difflib.get_close_matches(word.lower(), ("steps", "checkpoints", "percent"), n=1)
    return _no_half_life(text, f"did you mean {number:g}{near[0].replace('percent', '%')}?" if near else None)


def mean_spacing(ticks: Sequence[int]) -> float:
    """Mean distance of two checkpoints in ticks; 1 if there is only one."""
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1.0


def a_from_half_life(half_life: float) -> float:
    """a = 1 − decay for decay = 2^(−1/half_life), without the cancellation."""
    return -math.expm1(-math.log(2) / half_life)


def half_life_from_a(a: float) -> float:
    """The ticks after which the EMA has forgotten half; 0 at decay 0."""
    return -math.log(2) / math.log1p(-a) if a < 1 else 0.0
