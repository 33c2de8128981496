"""What a file claims, as text that fits on a line, however long it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def short(value: object) -> str:
    """A value from a file as text that fits on a line, however long it is."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number too large to show"
    return text if len(text) <= 80 else f"{text[:80]}…"


def listed(names: Sequence[str]) -> str:
    """The first names of a file's own, as text that fits on a line or two."""
    shown = [name if len(name) <= 60 and name.isprintable() else short(name) for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def shape_text(shape: Iterable[int]) -> str:
    """`2816×1024`; `a scalar` without dimensions."""
    text = "×".join(str(n) for n in shape) or "a scalar"
    return text if len(text) <= 80 else f"{text[:80]}…"
