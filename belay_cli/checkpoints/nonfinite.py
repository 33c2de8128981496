"""Weights that are no numbers: NaN and infinity, found by reading every value, a few MB at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.formats.contents import Tensor
from belay_cli.storage.files import OpenFiles, open_files

_CHUNK = 4 << 20  # bytes
_READERS = 2  # threads that may hold files open while this one does

# Of each dtype the unsigned integer of its size, and the bits of its exponent: all are set in what is not finite. A
# complex number is two real ones.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


class NonFinite(NamedTuple):
    """The first tensor of a checkpoint that is not finite: how many of its numbers are NaN, and how many infinite.

    `tensors` counts those that are not finite, this one too. Of a complex tensor both parts of an element count.
    """

    tensor: str
    nan: int
    infinite: int
    tensors: int

    @property
    def elements(self) -> int:
        """How many of its numbers are not finite."""
        return self.nan + self.infinite


def nonfinite(
    checkpoints: Sequence[Checkpoint], progress: Callable[[int], None] = lambda nbytes: None
) -> list[NonFinite | None]:
    """For each checkpoint what is not finite in it, or None. Reads every weight once. Raises CheckpointError.

    Takes float64, float32, float16, bfloat16 and complex64; other dtypes are passed over. `progress` is told the bytes
    read so far, of those that `bytes_of_values` gives.
    """
    found: list[NonFinite | None] = []
    done = 0
    with OpenFiles(open_files(_READERS)) as files:
        buffer = bytearray(_CHUNK)
        for checkpoint in checkpoints:
            counts = {}
            for name, tensor in _tensors(checkpoint):
                counts[name] = _count(checkpoint, tensor, files, buffer, lambda n: progress(done + n))  # noqa: B023
                done += tensor.nbytes
            found.append(_summary(counts))
    return found


def bytes_of_values(checkpoints: Sequence[Checkpoint]) -> int:
    """How many bytes `nonfinite` reads."""
    return sum(tensor.nbytes for checkpoint in checkpoints for _, tensor in _tensors(checkpoint))


def _tensors(checkpoint: Checkpoint) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in checkpoint.tensors.items() if tensor.dtype in _EXPONENTS]


def _count(
    checkpoint: Checkpoint, tensor: Tensor, files: OpenFiles, buffer: bytearray, progress: Callable[[int], None]
) -> tuple[int, int]:
    """How many numbers of a tensor are NaN, and how many infinite."""
    stored, nan, infinite = checkpoint.stored(tensor.name), 0, 0
    for begin in range(0, tensor.nbytes, _CHUNK):
        part = memoryview(buffer)[: min(_CHUNK, tensor.nbytes - begin)]
        stored.read_into(files, part, begin)
        more_nan, more_infinite = _in_chunk(part, *_EXPONENTS[tensor.dtype])
        nan, infinite = nan + more_nan, infinite + more_infinite
        progress(begin + len(part))
    return nan, infinite


def _in_chunk(part: memoryview, dtype: str, exponent: int) -> tuple[int, int]:
    bits = np.frombuffer(part, dtype)
    mask = bits.dtype.type(exponent)
    special = bits[(bits & mask) == mask]
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    infinite = int(np.count_nonzero((special & ~sign) == mask))
    return len(special) - infinite, infinite


def _summary(counts: dict[str, tuple[int, int]]) -> NonFinite | None:
    bad = {name: both for name, both in counts.items() if any(both)}
    if not bad:
        return None
    name, (nan, infinite) = next(iter(bad.items()))
    return NonFinite(name, nan, infinite, len(bad))
