"""Twins: two checkpoints at one place of a series that hold the same, such as last.ckpt and what it was saved as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.notes import counted_once
from belay_cli.errors import SeriesError
from belay_cli.storage.files import OpenFiles, open_files

_COMPARED = 4 << 20  # bytes at a time


def merge_twins(
    ordered: Sequence[Checkpoint], notes: list[str], place: Callable[[Checkpoint], object] = lambda c: c.step
) -> list[Checkpoint]:
    """Two checkpoints at one place are one if their content is the same, the first of them; else a SeriesError."""
    distinct, twins = list(ordered[:1]), []
    for checkpoint in ordered[1:]:
        before = distinct[-1]
        if place(checkpoint) != place(before):
            distinct.append(checkpoint)
        elif same_content(checkpoint, before):
            twins.append((checkpoint, before))
        else:
            raise SeriesError(
                f"is at step {checkpoint.step}, and so is {before.path}, with other weights",
                file=checkpoint.path,
                hint="a series has one checkpoint a step; leave one of them out",
            )
    notes += counted_once(twins, "{} is the same as {}")
    return distinct


def same_content(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same tensors, byte for byte, in whatever files."""
    if one.tensors.keys() != other.tensors.keys():
        return False
    pairs = [(tensor, other.tensors[name]) for name, tensor in one.tensors.items()]
    if any((a.dtype, a.shape) != (b.dtype, b.shape) for a, b in pairs):
        return False
    with OpenFiles(open_files(1)) as files:
        return all(_same_tensor(one, other, name, files) for name in one.tensors)


def _same_tensor(one: Checkpoint, other: Checkpoint, name: str, files: OpenFiles) -> bool:
    size, places = one.tensors[name].nbytes, (one.stored(name), other.stored(name))
    buffers = [bytearray(min(size, _COMPARED)) for _ in places]
    for begin in range(0, size, _COMPARED):
        count = min(_COMPARED, size - begin)
        for place, buffer in zip(places, buffers, strict=True):
            place.read_into(files, memoryview(buffer)[:count], begin)
        if buffers[0] != buffers[1]:
            return False
    return True
