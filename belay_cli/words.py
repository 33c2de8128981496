"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

# What stands in for a sign where a stream cannot encode it.
_ASCII = {"·": "-", "…": "..", "×": "x", "✓": "ok", "−": "-", "←": "<-"}


def size(nbytes: int) -> str:
    """`6.95 GB`, `150 MB`, `18 kB`: decimal units, three digits."""
    if nbytes >= 500_000_000:
        return f"{nbytes / 1e9:.2f} GB"
    if nbytes >= 1_000_000:
        return f"{three_digits(nbytes / 1e6)} MB"
    return f"{three_digits(nbytes / 1e3)} kB" if nbytes >= 1000 else f"{nbytes} bytes"


def three_digits(number: float) -> str:
    """`0.58`, `5.79`, `57.9`, `579`."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def part(done: float, total: float, joint: str = " of ") -> str:
    """`3.12 of 6.95 GB`: bytes that are done of all, in the unit of all."""
    number, _, unit = size(int(total)).partition(" ")
    scale = total / float(number) if float(number) else 1.0
    digits = len(number.partition(".")[2])
    return f"{done / scale:.{digits}f}{joint}{number} {unit}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 5 min`: whole units, as an estimate is said."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def about(seconds: float) -> str:
    """`0.1 s` at the least, `1.3 s`, `12 s`, `3 min`: as an estimate of a run is said."""
    return f"{max(seconds, 0.1):.1f} s" if seconds < 9.95 else duration(seconds)


def clock(seconds: float) -> str:
    """`0:12`, `12:05`, `1:02:05`."""
    whole = round(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else str(whole // 60)
    return f"{hours}:{whole % 60:02}"


def count(number: int) -> str:
    """`290 M`, `70 B`, `1.2 k`, `12`."""
    for unit, value in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= value:
            return f"{number / value:.3g} {unit}" if number < 100 * value else f"{number / value:.0f} {unit}"
    return str(number)


def plural(number: int, noun: str) -> str:
    """`1 checkpoint`, `12 checkpoints`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def number(value: float) -> str:
    """Up to five digits, no trailing zeros, whole numbers whole: `100`, `692.8`, `0.99309`."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.5g}"


def is_number(text: str) -> bool:
    """Whether a text is a number as Python reads one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def spacing(ticks: Sequence[int]) -> str:
    """`every 100`, or `80 to 120 apart`; nothing for one checkpoint."""
    gaps = [b - a for a, b in pairwise(ticks)]
    if not gaps:
        return ""
    return f"every {gaps[0]}" if min(gaps) == max(gaps) else f"{min(gaps)} to {max(gaps)} apart"


def ascii_instead(error: UnicodeError) -> tuple[str, int]:
    """For codecs.register_error: what a stream that is not UTF-8 shows instead of what it cannot encode."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c, "?") for c in text), error.end


def printable(text: str) -> str:
    """Without control characters: names come from files, and a terminal would obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
