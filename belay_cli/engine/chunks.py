"""The work of a replay: pieces of tensors, in the order of the output's bytes, shared out among workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.policies import DELTA
from belay_cli.storage.files import Stored
from belay_cli.storage.pieces import StoredPieces

Progress = Callable[[int], None]  # called with the bytes of tensor data read so far


class Source(NamedTuple):
    """Where a tensor lies in one checkpoint, and the coefficient that each output gives it."""

    checkpoint: int
    stored: Stored | StoredPieces
    coefficients: tuple[float, ...]


class Chunk(NamedTuple):
    """`elements` of a tensor from the one at `start` on; `number` counts chunks.

    `sources` are in the order of the checkpoints; those without a coefficient are left out.
    """

    number: int
    tensor: PlannedTensor
    start: int
    elements: int
    sources: tuple[Source, ...]

    def begins(self, dtype: str) -> int:
        """Bytes from the start of the tensor to the chunk, in this dtype."""
        return self.start * DTYPES[dtype].bits // 8

    def nbytes(self, dtype: str) -> int:
        """Bytes of the chunk in this dtype; whole, since chunks start at multiples of 64 elements."""
        return (self.start + self.elements) * DTYPES[dtype].bits // 8 - self.begins(dtype)


def chunks(plan: Plan, elements: int) -> Iterator[Chunk]:
    """Every tensor in pieces of at most `elements` elements, a multiple of 64."""
    number = 0
    coefficients = list(zip(*(output.coefficients.tolist() for output in plan.outputs), strict=True))  # [T][K]
    for tensor in plan.tensors:
        if tensor.action == DELTA:
            continue  # whole matrices, not elements: see updates
        sources = _sources(plan, tensor, coefficients)
        for start in range(0, tensor.elements, elements):
            yield Chunk(number, tensor, start, min(elements, tensor.elements - start), sources)
            number += 1


def _sources(plan: Plan, tensor: PlannedTensor, coefficients: list[tuple[float, ...]]) -> tuple[Source, ...]:
    checkpoints = plan.series.checkpoints
    if tensor.action == "last":
        return (Source(len(checkpoints) - 1, plan.series.last.stored(tensor.name), (1.0,) * len(plan.outputs)),)
    return tuple(Source(t, checkpoints[t].stored(tensor.name), coefficients[t]) for t in plan.read_checkpoints)


class Sink(Protocol):
    """Where the chunks of one output go."""

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Take the bytes of a chunk, in the output's dtype; they are good until it returns. Threads call it at once."""


class Queue:
    """Chunks handed to workers in order, until somebody stops it."""

    def __init__(self, items: Iterator[Chunk]) -> None:
        self._items = items
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            with self._lock:
                chunk = None if self._stopped else next(self._items, None)
            if chunk is None:
                return
            yield chunk

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True
