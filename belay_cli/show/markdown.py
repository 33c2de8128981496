"""Text that nobody vouches for, made harmless in Markdown.

Names come from files and from other people's records. Renderers differ in what they do with backslashes, entities,
bare links, mentions and formulas in running text; in a code span and a code block they agree to do nothing. So every
foreign text goes into one of these, and what could end it or be read before Markdown is (a table's pipe, a comment,
a formula) is shown as an escape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from belay_cli import words

_LONGEST = 100  # characters of a name that a table shows
_WIDTH = 72  # columns of a command
_IN_CODE = re.compile(r"[`|<>$\\]")
_IN_BLOCK = re.compile(r"<(?=[!/])|\$(?=\$)|(?<=\$)\$|\\(?=[()])")


def code(text: str) -> str:
    """A code span on one line, fit for a table: `checkpoint-100`. What would break out is shown as `\\x60`."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    # One character at a time: a backslash that comes out is always ours.
    shown = "".join(words.printable(_IN_CODE.sub(_escape, c)) for c in text).strip()
    return f"`{shown}`" if shown else "`\\x20`"


def block(lines: Sequence[str], language: str = "") -> list[str]:
    """A code block, its fence longer than any in the lines."""
    shown = [_IN_BLOCK.sub(_escape, words.printable(line)) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *shown, fence]


def command_lines(quoted: Sequence[str]) -> list[str]:
    """A command, its arguments quoted for a shell, in lines that need no scrolling, each but the last continued."""
    lines = [""]
    for word in quoted:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """A table of cells that are Markdown already; `right` says which columns are aligned to the right."""
    rule = ["---:" if r else ":---" for r in right]
    return ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"
