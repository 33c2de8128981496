"""Lines that fit a terminal: folded between words, never between a number and its unit or inside a command.

A width of None stands for no terminal: a pipe or a file gets every line whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from rich.cells import cell_len, chop_cells
from rich.text import Text

# What stays on one line: quoted text, an option with its value, a command, a number with its unit and its name.
_TOGETHER = re.compile(
    r"(?<!\w)'[^']*'"
    r"|--[\w-]+ (?:'[^']*'|[^\s;,)]+)"
    r"|\b(?:belay (?:average|plan|inspect|verify|push)|pip install|hf|mkdir -p) [^;,]*"
    r"|\d (?:a )?(?=[^\W\d])|[^\W\d] (?=\d)"
)
_GAP = re.compile(r"\S  +(?=\S)")


def fold(text: Text, width: int | None, hang: int | None = None) -> list[Text]:
    """The lines of a text. Those after the first are indented by `hang` columns; by default as the text's last column.

    A word or a command that is longer than a line keeps its length, so that it is copied whole.
    """
    if width is None or cell_len(text.plain) <= width:
        return [text]
    hang = hanging(text.plain, width) if hang is None else hang
    first, *rest = text.divide(_breaks(text.plain, width, width - hang))
    lines = [first, *(Text(" " * hang).append_text(line) for line in rest)]
    for line in lines:
        line.rstrip()
    return lines


def hanging(text: str, width: int) -> int:
    """The column at which a text goes on: where its last column begins, if that leaves half of the width."""
    indent = len(text) - len(text.lstrip())
    gaps = [match.end() for match in _GAP.finditer(text) if match.end() <= width // 2]
    return max([indent, *gaps])


def _breaks(text: str, width: int, room: int) -> list[int]:
    """Where lines begin, but for the first: `width` columns are for that one, `room` for each of the others."""
    starts = _starts(text)
    breaks: list[int] = []
    begin, columns = 0, width
    for start, following in zip(starts, [*starts[1:], len(text)], strict=True):
        too_long = _columns(text[begin:following]) > columns
        if too_long and _columns(text[start:following]) <= room:  # what fits on no line gains nothing on the next
            clauses = [s for s in starts if begin < s < start and text[:s].endswith("· ")]
            fit = [s for s in clauses if 3 * (s - begin) > columns and _columns(text[s:following]) <= room]
            breaks.append(fit[-1] if fit else start)
            begin, columns = breaks[-1], room
    return breaks


def _starts(text: str) -> list[int]:
    """Where words begin that may be parted from the one before."""
    kept = {i for match in _TOGETHER.finditer(text) for i in range(match.start(), match.end())}
    return [match.end() for match in re.finditer(r"(?<=\S) +(?=\S)", text) if match.start() not in kept]


def _columns(text: str) -> int:
    return cell_len(text.rstrip())


def shortened(text: str, width: int, ellipsis: str = "…") -> str:
    """At most `width` columns of a name: what is too long loses its middle, since names differ at their ends."""
    if cell_len(text) <= width:
        return text
    room = max(2, width - len(ellipsis))
    head = chop_cells(text, room - room // 2)[0]
    tail = chop_cells(text[::-1], room // 2)[0][::-1]
    return head + ellipsis + tail


def shorten_all(names: Sequence[str], width: int, ellipsis: str = "…") -> list[str]:
    """Each name in at most `width` columns; if they then look the same, without the end that they share."""
    cut = [shortened(name, width, ellipsis) for name in names]
    if len(set(cut)) == len(set(names)):
        return cut
    shared = _same(*(name[::-1] for name in names))
    return [shortened(name[: len(name) - shared], width - len(ellipsis), ellipsis) + ellipsis for name in names]


def _same(*texts: str) -> int:
    """With how many of the same characters all of them begin."""
    together = zip(*texts, strict=False)  # to the end of the shortest
    return sum(1 for _ in takewhile(lambda characters: len(set(characters)) == 1, together))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text in a column of so many cells; signs of Chinese and others take two."""
    gap = " " * (width - cell_len(text))
    return gap + text if right else text + gap
