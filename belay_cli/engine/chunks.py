"""The work of a replay: pieces of tensors, in the order of the output's bytes, shared out among workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from belay_cli.checkpoints.dtypes import DTYPES
from belay_cli.plan import Plan
from belay_cli.plan.layout import PlannedTensor

Progress = Callable[[int], None]  # called with the bytes of tensor data read so far


class Source(NamedTuple):
    """Where a chunk's elements lie in one checkpoint, and the coefficient that each output gives it."""

    checkpoint: int
    path: Path
    offset: int
    coefficients: tuple[float, ...]


class Chunk(NamedTuple):
    """`elements` of a tensor from the one at `start` on; `number` counts chunks."""

    number: int
    tensor: PlannedTensor
    start: int
    elements: int

    def begins(self, dtype: str) -> int:
        """Bytes from the start of the tensor to the chunk, in this dtype."""
        return self.start * DTYPES[dtype].bits // 8

    def nbytes(self, dtype: str) -> int:
        """Bytes of the chunk in this dtype; whole, since chunks start at multiples of 64 elements."""
        return (self.start + self.elements) * DTYPES[dtype].bits // 8 - self.begins(dtype)


def chunks(plan: Plan, elements: int) -> Iterator[Chunk]:
    """Every tensor in pieces of at most `elements` elements, a multiple of 64."""
    number = 0
    for tensor in plan.tensors:
        for start in range(0, tensor.elements, elements):
            yield Chunk(number, tensor, start, min(elements, tensor.elements - start))
            number += 1


def sources(plan: Plan, chunk: Chunk) -> list[Source]:
    """Where to read a chunk from, in the order of the checkpoints; those without a coefficient are left out."""
    last = len(plan.series.checkpoints) - 1
    if chunk.tensor.action == "last":
        return [_source(plan, chunk, last, (1.0,) * len(plan.outputs))]
    return [
        _source(plan, chunk, t, tuple(float(output.coefficients[t]) for output in plan.outputs))
        for t in plan.read_checkpoints
    ]


def _source(plan: Plan, chunk: Chunk, t: int, coefficients: tuple[float, ...]) -> Source:
    path, offset = plan.series.checkpoints[t].location(chunk.tensor.name)
    return Source(t, path, offset + chunk.begins(chunk.tensor.source_dtype), coefficients)


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
