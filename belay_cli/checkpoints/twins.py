"""Twins: two checkpoints at one place of a series that hold the same, such as last.ckpt and what it was saved as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from belay_cli.checkpoints.fingerprint import fingerprint
from belay_cli.errors import SeriesError
from belay_cli.storage.files import StoredFile, open_file

if TYPE_CHECKING:
    from belay_cli.checkpoints.checkpoint import Checkpoint

_COMPARED = 4 << 20  # bytes at a time


def merge_twins(
    ordered: Sequence[Checkpoint], notes: list[str], place: Callable[[Checkpoint], object] = lambda c: c.step
) -> list[Checkpoint]:
    """Two checkpoints at one place are one if their content is the same, the first of them; else a SeriesError."""
    distinct = list(ordered[:1])
    for checkpoint in ordered[1:]:
        before = distinct[-1]
        if place(checkpoint) != place(before):
            distinct.append(checkpoint)
        elif same_content(checkpoint, before):
            notes.append(f"{checkpoint.path} is the same as {before.path}; it counts once")
        else:
            raise SeriesError(
                f"is at step {checkpoint.step}, and so is {before.path}, with other weights",
                file=checkpoint.path,
                hint="a series has one checkpoint a step; leave one of them out",
            )
    return distinct


def same_content(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether the files of two checkpoints are the same, byte for byte."""
    if [file.size for file in one.files] != [file.size for file in other.files]:
        return False
    pairs = zip(one.files, other.files, strict=True)
    return fingerprint(one) == fingerprint(other) and all(_same_file(a, b) for a, b in pairs)


def _same_file(one: StoredFile, other: StoredFile) -> bool:
    with open_file(one.path) as left, open_file(other.path) as right:
        for offset in range(0, one.size, _COMPARED):
            count = min(_COMPARED, one.size - offset)
            if left.read_at(offset, count) != right.read_at(offset, count):
                return False
    return True
