"""The work of a replay: runs of tensors, in the order of the output's bytes, cut into chunks and shared out."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.engine.contract import Coefficients
from belay_cli.engine.spans import Line, Spans
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.policies import DELTA
from belay_cli.storage.files import Stored
from belay_cli.storage.pieces import StoredPieces

Progress = Callable[[int], None]  # called with the bytes of tensor data read so far


class Source(NamedTuple):
    """Where a run begins in one checkpoint."""

    checkpoint: int
    stored: Stored | StoredPieces


class Run(NamedTuple):
    """Tensors that lie side by side, in the output as in every checkpoint, and share dtypes and policy.

    They are read, averaged and written as one. `starts`: the element at which each begins. `sources` are in the order
    of the checkpoints, and `coefficients` [sources, outputs] are what each output gives them.
    """

    tensors: tuple[PlannedTensor, ...]
    starts: tuple[int, ...]
    elements: int
    sources: tuple[Source, ...]
    coefficients: Coefficients


class Part(NamedTuple):
    """What of one tensor lies in a chunk: `elements` of it from the one at `start` on."""

    tensor: PlannedTensor
    start: int
    elements: int


class Chunk(NamedTuple):
    """`elements` of a run from the one at `start` on; `number` counts chunks."""

    number: int
    run: Run
    start: int
    elements: int

    @property
    def source_dtype(self) -> str:
        """The dtype code in the checkpoints."""
        return self.run.tensors[0].source_dtype

    @property
    def dtype(self) -> str:
        """The dtype code in the output."""
        return self.run.tensors[0].dtype

    @property
    def copied(self) -> bool:
        """Whether the bytes of the last checkpoint are taken as they are."""
        return self.run.tensors[0].copied

    def begins(self, dtype: str) -> int:
        """Bytes from the start of the run to the chunk, in this dtype."""
        return self.start * DTYPES[dtype].bits // 8

    def nbytes(self, dtype: str) -> int:
        """Bytes of the chunk in this dtype; whole, since chunks start at multiples of 64 elements or with a tensor."""
        return (self.start + self.elements) * DTYPES[dtype].bits // 8 - self.begins(dtype)

    @property
    def place(self) -> int:
        """Bytes from the start of the data of its shard to the chunk."""
        return self.run.tensors[0].offset + self.begins(self.dtype)

    def pieces(self, elements: int) -> Iterator[Chunk]:
        """The chunk in pieces of at most `elements` elements, a multiple of 64; itself, if it is no longer."""
        for start in range(self.start, self.start + self.elements, elements):
            yield self._replace(start=start, elements=min(elements, self.start + self.elements - start))

    def by_tensor(self) -> Iterator[Chunk]:
        """The chunk cut where one tensor ends and the next begins."""
        at, end = self.start, self.start + self.elements
        for i in range(bisect_right(self.run.starts, at) - 1, len(self.run.tensors)):
            stop = min(end, self.run.starts[i] + self.run.tensors[i].elements)
            if at < stop:
                yield self._replace(start=at, elements=stop - at)
            at = stop
            if at >= end:
                return

    @property
    def part(self) -> Part:
        """What of its first tensor lies in it, which is all of a chunk of `by_tensor`."""
        i = bisect_right(self.run.starts, self.start) - 1
        tensor, start = self.run.tensors[i], self.start - self.run.starts[i]
        return Part(tensor, start, min(self.elements, tensor.elements - start))


def chunks(plan: Plan, elements: int, todo: Spans | None = None) -> Iterator[Chunk]:
    """All the work, or these ranges of it, in pieces of at most `elements` elements, a multiple of 64."""
    number, line = 0, Line(plan)
    for run in runs(plan):
        for first, end in elements_of(run, line.begins[run.tensors[0].shard], line.whole if todo is None else todo):
            for start in range(first, end, elements):
                yield Chunk(number, run, start, min(elements, end - start))
                number += 1


def elements_of(run: Run, base: int, todo: Spans) -> Iterator[tuple[int, int]]:
    """The elements of a run that ranges hold, from one to another; `base`: where its file begins on the line."""
    bits, begins = DTYPES[run.tensors[0].dtype].bits, base + run.tensors[0].offset
    for low, high in todo.within(begins, begins + run.elements * bits // 8):
        yield (low - begins) * 8 // bits, -(-(high - begins) * 8 // bits)


def runs(plan: Plan) -> Iterator[Run]:
    """The tensors of a plan, but for those that are averaged as updates, as few and as long runs as there are."""
    everything = np.stack([output.coefficients for output in plan.outputs], axis=1)
    averaged = np.ascontiguousarray(everything[plan.read_checkpoints])
    taken = np.ones((1, len(plan.outputs)))
    checkpoints = plan.sources
    last = [len(checkpoints) - 1]
    several, one = _layouts([checkpoints[t] for t in plan.read_checkpoints]), checkpoints[-1:]
    for tensors in _side_by_side(plan, several, one):
        first = tensors[0]
        from_last = first.action == "last"
        sources = [Source(t, checkpoints[t].stored(first.name)) for t in (last if from_last else plan.read_checkpoints)]
        *starts, total = accumulate((tensor.elements for tensor in tensors), initial=0)
        yield Run(tuple(tensors), tuple(starts), total, tuple(sources), taken if from_last else averaged)


def _side_by_side(
    plan: Plan, several: Sequence[Checkpoint], one: Sequence[Checkpoint]
) -> Iterator[list[PlannedTensor]]:
    """Groups of tensors without a hole between them, in the output or in these checkpoints."""
    group: list[PlannedTensor] = []
    for tensor in plan.pieces:
        if tensor.action == DELTA:
            continue  # whole matrices, not elements: see updates
        if group and not (
            _alike(group[-1], tensor)
            and all(_adjoin(c, group[-1], tensor) for c in (one if tensor.action == "last" else several))
        ):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _alike(one: PlannedTensor, other: PlannedTensor) -> bool:
    """Whether the output has them side by side and made in the same way."""
    return (one.action, one.source_dtype, one.dtype, one.shard, one.offset + one.nbytes) == (
        *(other.action, other.source_dtype, other.dtype, other.shard),
        other.offset,
    )


def _adjoin(checkpoint: Checkpoint, one: PlannedTensor, other: PlannedTensor) -> bool:
    """Whether a checkpoint has them side by side."""
    first, second = checkpoint.stored(one.name), checkpoint.stored(other.name)
    if not (isinstance(first, Stored) and isinstance(second, Stored)):
        return False
    nbytes = one.elements * DTYPES[one.source_dtype].bits // 8
    return first.file is second.file and first.offset + nbytes == second.offset


def _layouts(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints that stand for all: of those whose tensors lie alike one, so that many cost no more than a few."""
    found: dict[object, Checkpoint] = {}
    for i, checkpoint in enumerate(checkpoints):
        weights = checkpoint.weights
        shared = weights.places is None and not weights.parts
        found.setdefault(id(weights.tensors) if shared else (i,), checkpoint)
    return list(found.values())


def by_tensor(chunk: Chunk, data: memoryview) -> Iterator[tuple[Part, memoryview]]:
    """The bytes of a chunk in the output's dtype, those of each tensor by themselves."""
    if len(chunk.run.tensors) == 1:
        yield chunk.part, data
        return
    at = 0
    for piece in chunk.by_tensor():
        end = at + piece.nbytes(piece.dtype)
        yield piece.part, data[at:end]
        at = end


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
