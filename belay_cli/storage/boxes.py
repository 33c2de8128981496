"""Rectangular parts of tensors that are stored as one run of bytes each, and where other files have the same part."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from belay_cli.storage.files import Stored, StoredFile
from belay_cli.storage.pieces import Piece, StoredPieces, simplest

MOST_RUNS = 10_000  # of one tensor


class Box(NamedTuple):
    """A part of a tensor: where it begins, its sizes, and its dimensions in the order in which bytes go through them.

    All three are in elements or dimensions of the tensor; the last dimension of `order` is that of neighbours.
    """

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.sizes)


class StoredBox(NamedTuple):
    """A box, and where its run of bytes begins."""

    box: Box
    file: StoredFile
    offset: int


class NoRunsError(ValueError):
    """A tensor is not stored as runs of bytes of its own; says why, as in 'it …'."""


def boxes_of(stored: Stored | StoredPieces, shape: tuple[int, ...], itemsize: int) -> list[StoredBox]:
    """The boxes that a tensor is stored as, which cover it. Raises NoRunsError."""
    found: list[StoredBox] = []
    for piece in _pieces(stored, shape):
        if math.prod(piece.sizes):
            found += itertools.islice(_runs(piece, itemsize), MOST_RUNS + 1 - len(found))
        if len(found) > MOST_RUNS:
            raise NoRunsError(f"lies in more than {MOST_RUNS:,} runs of bytes")
    return found


def _runs(piece: Piece, itemsize: int) -> Iterator[StoredBox]:
    """A piece as runs: one, unless something else lies between its rows."""
    order = tuple(sorted(range(len(piece.sizes)), key=lambda d: (piece.sizes[d] > 1, -piece.strides[d])))
    dense, outer = 1, list(order)  # outer: the dimensions that are not part of a run
    while outer and (piece.sizes[outer[-1]] == 1 or piece.strides[outer[-1]] == dense):
        dense *= piece.sizes[outer.pop()]
    reach = dense
    for d in reversed(outer):
        if piece.sizes[d] > 1 and piece.strides[d] < reach:
            raise NoRunsError("shows some of its numbers more than once")
        reach = (piece.sizes[d] - 1) * piece.strides[d] + reach
    sizes = tuple(1 if d in outer else n for d, n in enumerate(piece.sizes))
    for index in itertools.product(*(range(piece.sizes[d]) for d in outer)):
        at = dict(zip(outer, index, strict=True))
        starts = tuple(start + at.get(d, 0) for d, start in enumerate(piece.starts))
        offset = piece.offset + sum(i * piece.strides[d] for d, i in at.items()) * itemsize
        yield StoredBox(Box(starts, sizes, order), piece.file, offset)


class Cuttable:
    """A tensor as a checkpoint stores it, of which boxes are taken. Many of them cost no more than they must."""

    def __init__(self, stored: Stored | StoredPieces, shape: tuple[int, ...], itemsize: int) -> None:
        self._itemsize = itemsize
        self._pieces = sorted(_pieces(stored, shape), key=lambda piece: piece.starts[:1])
        self._same = {(piece.starts, piece.sizes): piece for piece in self._pieces}
        if shape:
            self._begins = [piece.starts[0] for piece in self._pieces]
            self._ends = list(accumulate((p.starts[0] + p.sizes[0] for p in self._pieces), max))

    def cut(self, box: Box) -> Stored | StoredPieces:
        """Where the box is stored, as a tensor by itself, its dimensions in the order of the box."""
        whole = self._same.get((box.starts, box.sizes))
        pieces = [whole] if whole else self._near(box)
        cut = [part for piece in pieces if (part := _within(piece, box, self._itemsize))]
        return simplest(tuple(box.sizes[d] for d in box.order), self._itemsize, cut)

    def _near(self, box: Box) -> list[Piece]:
        if not box.starts:
            return self._pieces
        first = bisect_right(self._ends, box.starts[0])
        return self._pieces[first : bisect_left(self._begins, box.starts[0] + box.sizes[0])]


def _within(piece: Piece, box: Box, itemsize: int) -> Piece | None:
    """What of a piece lies in a box, as a piece of that; None if nothing does."""
    low = [max(a, b) for a, b in zip(piece.starts, box.starts, strict=True)]
    ends = zip(piece.starts, piece.sizes, box.starts, box.sizes, strict=True)
    sizes = [min(a + n, b + m) - begin for begin, (a, n, b, m) in zip(low, ends, strict=True)]
    if any(n <= 0 for n in sizes):
        return None
    skipped = sum((a - b) * s for a, b, s in zip(low, piece.starts, piece.strides, strict=True))
    starts = [a - b for a, b in zip(low, box.starts, strict=True)]
    return Piece(
        piece.file,
        piece.offset + skipped * itemsize,
        *(tuple(axis[d] for d in box.order) for axis in (starts, sizes, piece.strides)),
    )


def _pieces(stored: Stored | StoredPieces, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    if isinstance(stored, StoredPieces):
        return stored.pieces
    inner = list(accumulate(reversed(shape), lambda a, b: a * b, initial=1))[-2::-1] if shape else []
    return (Piece(stored.file, stored.offset, (0,) * len(shape), shape, tuple(inner)),)
