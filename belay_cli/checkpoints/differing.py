"""Which tensors are not the same in every checkpoint, for those that are not averaged: counters, masks, indices.

Each is read in all checkpoints at once, a few MB at a time, up to the first place where one differs. Counters and masks
cost nothing; a large table that never differs is read whole, once in every checkpoint, before the replay begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.packed import NARROW_INTEGERS
from belay_cli.errors import SeriesError, glob_for
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import DTYPES
from belay_cli.storage.files import OpenFiles, open_files

_CHUNK = 4 << 20  # bytes that are compared at a time
_READERS = 3  # threads that may hold files open while this one does
_MANY = 4096  # numbers that differ, in rows: more than counters have


def differing(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> list[str]:
    """Those of the named tensors that differ in some checkpoint from the last one.

    Raises SeriesError for one that training changes as it changes weights: it may be packed, and only a person knows.
    """
    last = checkpoints[-1]
    with OpenFiles(open_files(_READERS)) as files:
        found = [name for name in names if _differs(checkpoints, name, files)]
    for name in found:
        if _may_be_weights(last.tensors[name]):
            raise _undecided(last.tensors[name])
    return found


def _differs(checkpoints: Sequence[Checkpoint], name: str, files: OpenFiles) -> bool:
    *others, last = [checkpoint.stored(name) for checkpoint in checkpoints if name in checkpoint.tensors]
    size = checkpoints[-1].tensors[name].nbytes
    kept, read = bytearray(min(size, _CHUNK)), bytearray(min(size, _CHUNK))
    for begin in range(0, size if others else 0, _CHUNK):
        count = min(_CHUNK, size - begin)
        last.read_into(files, memoryview(kept)[:count], begin)
        for other in others:
            other.read_into(files, memoryview(read)[:count], begin)
            if read != kept:
                return True
    return False


def _may_be_weights(tensor: Tensor) -> bool:
    return tensor.dtype in NARROW_INTEGERS and len(tensor.shape) > 1 and tensor.elements > _MANY


def _undecided(tensor: Tensor) -> SeriesError:
    return SeriesError(
        f"{tensor.name!r} holds {tensor.elements} numbers of {DTYPES[tensor.dtype].name} that differ between "
        "checkpoints, as weights do that are packed: an average of those is noise",
        tensor=tensor.name,
        hint=f"if they are no weights, keep the last one's: --last {glob_for(tensor.name)}; "
        "else average the checkpoints from before quantization",
    )
