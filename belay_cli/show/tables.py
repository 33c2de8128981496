"""Tables as lines: rows of weights with their bars, and aligned columns, each cut to the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from rich.cells import cell_len
from rich.text import Text

from belay_cli import words
from belay_cli.show.folding import padded, shorten_all, shortened
from belay_cli.show.styles import BAR, NEGATIVE, STRONG

_ROWS = 12  # of the table of weights: nothing to scroll for
_TAIL = 0.10  # of the weight: the oldest checkpoints that together have less share a row
_BAR = 40  # columns of the heaviest row
_WEIGHT = 12  # columns that a weight takes, with the gaps around it
_NARROWEST = 8  # columns of a text that is cut
_NUMBER = re.compile(r"-|[\d.]+%?( \w{1,5})?")  # `100`, `2.27 kB`, `12 bytes`


def weight_rows(
    names: Sequence[str],
    ticks: Sequence[int],
    coefficients: Sequence[float],
    unit: str,
    *,
    width: int | None,
    unicode: bool,
) -> Iterator[Text]:
    """A row for each checkpoint or each group of light ones, with its share of the average and a bar; each [T].

    unit: `step` labels the rows by ticks, `checkpoint` by names.
    """
    stepped = unit == "step"
    labels = [str(tick) for tick in ticks] if stepped else [words.printable(name) for name in names]
    groups = group_rows(coefficients)
    heading = "step" if stepped else "checkpoint"
    most = None if width is None else max(len(heading), width // 2 - 4)
    rows = [(_joined(labels[a], labels[b], most, unicode), sum(coefficients[a : b + 1])) for a, b in groups]
    room = max(cell_len(heading), *(cell_len(label) for label, _ in rows))
    room = room if most is None else min(room, most)
    longest = _BAR if width is None else max(1, min(_BAR, width - room - _WEIGHT))
    heaviest = max(abs(weight) for _, weight in rows)
    yield Text(f"  {padded(heading, room)}   weight", style=STRONG)
    shown = shorten_all([label for label, _ in rows], room, "…" if unicode else "..")
    for label, (_, weight) in zip(shown, rows, strict=True):
        blocks = bar(abs(weight) / heaviest * longest, unicode, negative=weight < 0)
        yield Text.assemble(f"  {padded(label, room)}  {weight:6.1%}  ", (blocks, NEGATIVE if weight < 0 else BAR))
    if any(first != last for first, last in (groups[0], groups[-1])):
        yield Text(f"  first checkpoint {coefficients[0]:.1%}, last {coefficients[-1]:.1%}")


def _joined(first: str, last: str, most: int | None, unicode: bool) -> str:
    """The label of a group; of long names only the last, which says it too, since the first follows the row above."""
    both = f"{first}{'…' if unicode else '..'}{last}"
    if first == last:
        return first
    return both if most is None or cell_len(both) <= most else f"to {last}"


def group_rows(coefficients: Sequence[float]) -> list[tuple[int, int]]:
    """First and last checkpoint of each row: the light tail in one row, and never more than fit on a screen."""
    count = len(coefficients)
    tail = sum(weight < _TAIL for weight in accumulate(map(abs, coefficients)))
    tail = tail if count > 5 else 0
    rows = [(0, tail - 1)] if tail else []
    room = _ROWS - len(rows)
    rest = count - tail
    each = -(-rest // room)
    starts = range(tail, count, each) if rest else range(0)
    return rows + [(start, min(start + each, count) - 1) for start in starts]


def bar(columns: float, unicode: bool, *, negative: bool = False) -> str:
    """A bar as long as so many columns, to an eighth of one; of a negative weight a lighter one, to a whole one."""
    if not unicode:
        return "-#"[not negative] * round(columns)
    if negative:
        return "░" * max(1, round(columns))
    eighths = round(columns * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def columns(rows: Sequence[Sequence[str]], *, width: int | None, unicode: bool) -> Iterator[Text]:
    """Aligned columns; the first row is the heading. Numbers are aligned to the right, and never cut."""
    table = [[words.printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    right = [all(_NUMBER.fullmatch(cell) for cell in cells) for _, *cells in table]
    widths = _widths([max(map(cell_len, column)) for column in table], right, width)
    ellipsis = "…" if unicode else ".."
    shown = [
        [padded(cell, w, right=r) for cell in (shortened(head, w, ellipsis), *shorten_all(cells, w, ellipsis))]
        for (head, *cells), w, r in zip(table, widths, right, strict=True)
    ]
    for number, row in enumerate(zip(*shown, strict=True)):
        yield Text(f"  {'  '.join(row)}".rstrip(), style="" if number else STRONG)


def _widths(wanted: Sequence[int], numbers: Sequence[bool], width: int | None) -> list[int]:
    """The widths of columns that fit together: the widest text gives way first."""
    widths = list(wanted)
    excess = 0 if width is None else sum(widths) + 2 * len(widths) - width
    texts = [i for i, number in enumerate(numbers) if not number]
    while excess > 0 and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        excess -= 1
    return widths
