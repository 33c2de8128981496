"""Tensors that are not one run of bytes: cut into pieces, as sharded training saves them, or stored in another order.

A piece is read as one range that spans what is wanted of it, and put into place by its strides. The range is bounded:
what is scattered further than that is read in several, so memory stays small even where time does not.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from belay_cli.storage.files import OpenFiles, Stored, StoredFile

_LARGEST_RANGE = 16 << 20  # bytes that are read to pick from
_MOST_CUTS = 6  # dimensions along which a tensor is cut, where a mesh of devices has two or three

Array = np.ndarray[Any, np.dtype[np.void]]
_Box = tuple[tuple[int, ...], tuple[int, ...]]  # starts, sizes


class Piece(NamedTuple):
    """A rectangular part of a tensor: byte `offset` of its first element, place and size, strides of what is stored.

    `starts` and `sizes` are in elements of the tensor, `strides` in elements of the file; 0 repeats one element.
    """

    file: StoredFile
    offset: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class StoredPieces(NamedTuple):
    """A tensor in pieces that cover it; `itemsize` in bytes."""

    shape: tuple[int, ...]
    itemsize: int
    pieces: tuple[Piece, ...]

    def read_into(self, files: OpenFiles, buffer: memoryview, begin: int) -> None:
        """Fill `buffer` with the tensor's bytes, row after row, from byte `begin` on. Raises CheckpointError."""
        first, count = begin // self.itemsize, buffer.nbytes // self.itemsize
        out: Array = np.frombuffer(buffer, dtype=f"V{self.itemsize}")
        if count:
            _fill(out, first, self.shape, self.pieces, files)


def simplest(shape: tuple[int, ...], itemsize: int, pieces: Sequence[Piece]) -> Stored | StoredPieces:
    """One run of bytes where it is one."""
    if len(pieces) == 1 and pieces[0].sizes == shape and _contiguous(pieces[0]):
        return Stored(pieces[0].file, pieces[0].offset)
    return StoredPieces(shape, itemsize, tuple(pieces))


def check_pieces(shape: tuple[int, ...], pieces: Sequence[Piece]) -> str | None:
    """What is wrong with pieces that should cover a tensor once, in words; None if nothing is."""
    boxes = [(piece.starts, piece.sizes) for piece in pieces if math.prod(piece.sizes)]
    for starts, sizes in boxes:
        if not len(starts) == len(sizes) == len(shape):
            return "a piece has another number of dimensions"
        if any(a < 0 or n < 0 or a + n > whole for a, n, whole in zip(starts, sizes, shape, strict=True)):
            return "a piece reaches outside it"
    volume, whole = sum(math.prod(sizes) for _, sizes in boxes), math.prod(shape)
    if volume < whole:
        return "a piece is missing"
    cut = [d for d, n in enumerate(shape) if any(sizes[d] != n for _, sizes in boxes)]
    if len(cut) > _MOST_CUTS:
        return f"the pieces are cut along more than {_MOST_CUTS} dimensions"
    return "two pieces overlap" if volume > whole or (whole and not _cover_once(shape, cut, boxes)) else None


def _cover_once(shape: tuple[int, ...], cut: Sequence[int], boxes: Iterable[_Box]) -> bool:
    """Whether each element lies in one box; `cut` are the dimensions along which boxes end inside the tensor.

    How many boxes an element lies in is known from their corners: taken with alternating signs, those of all boxes
    cancel except at the corners of the tensor. It takes one step a corner, where comparing them all takes one a pair.
    """
    signs = [(-1) ** sum(far) for far in itertools.product((0, 1), repeat=len(cut))]
    corners = Counter(dict(zip(itertools.product(*((0, shape[d]) for d in cut)), signs, strict=True)))
    for starts, sizes in boxes:
        spans = ((starts[d], starts[d] + sizes[d]) for d in cut)
        for corner, sign in zip(itertools.product(*spans), signs, strict=True):
            corners[corner] -= sign
    return not any(corners.values())


def _fill(out: Array, first: int, shape: tuple[int, ...], pieces: Sequence[Piece], files: OpenFiles) -> None:
    """out: [n], from element `first` of the tensor on."""
    if not shape:
        _read_range(out, pieces[0].file, pieces[0].offset, files)
        return
    inner, end = math.prod(shape[1:]), first + len(out)
    low, high = first // inner, -(-end // inner)
    near = [p for p in pieces if p.starts[0] < high and p.starts[0] + p.sizes[0] > low]
    scattered = [p for p in near if not _read_rows(out, first, inner, shape, p, files)]
    if not scattered:
        return
    if (high - low) * inner * out.itemsize <= _LARGEST_RANGE:
        block: Array = np.empty((high - low, *shape[1:]), dtype=out.dtype)
        wanted = block.reshape(-1)[first - low * inner : end - low * inner]
        wanted[:] = out  # what other pieces have filled
        for piece in scattered:
            _place(block, low, piece, files)
        out[:] = wanted
    elif high - low > 1:
        middle = (low + high) // 2 * inner - first
        _fill(out[:middle], first, shape, scattered, files)
        _fill(out[middle:], first + middle, shape, scattered, files)
    else:  # one long row: the same, with a dimension less
        rows = [_row(piece, low, out.itemsize) for piece in scattered]
        _fill(out, first - low * inner, shape[1:], rows, files)


def _read_rows(out: Array, first: int, inner: int, shape: tuple[int, ...], piece: Piece, files: OpenFiles) -> bool:
    """Read a piece of whole rows straight into place. Returns whether it is one."""
    if piece.sizes[1:] != shape[1:] or not _contiguous(piece):
        return False
    begins = piece.starts[0] * inner
    low, high = max(first, begins), min(first + len(out), begins + piece.sizes[0] * inner)
    if low < high:
        _read_range(out[low - first : high - first], piece.file, piece.offset + (low - begins) * out.itemsize, files)
    return True


def _row(piece: Piece, row: int, itemsize: int) -> Piece:
    """The piece's part in one index of the first dimension, as a piece of the rest."""
    offset = piece.offset + (row - piece.starts[0]) * piece.strides[0] * itemsize
    return Piece(piece.file, offset, piece.starts[1:], piece.sizes[1:], piece.strides[1:])


def _place(block: Array, low: int, piece: Piece, files: OpenFiles) -> None:
    """Put what a piece holds of the rows from `low` on into the block of these rows."""
    begin, end = max(low, piece.starts[0]), min(low + len(block), piece.starts[0] + piece.sizes[0])
    rest = (slice(start, start + size) for start, size in zip(piece.starts[1:], piece.sizes[1:], strict=True))
    where = (slice(begin - low, end - low), *rest)
    offset = piece.offset + (begin - piece.starts[0]) * piece.strides[0] * block.itemsize
    _scatter(block[where], piece.file, offset, piece.strides, files)


def _scatter(target: Array, file: StoredFile, offset: int, strides: tuple[int, ...], files: OpenFiles) -> None:
    """Fill target, whose element (i, j, …) lies i·strides[0] + j·strides[1] + … elements after `offset` bytes."""
    if not target.size:
        return
    reach = [(size - 1) * stride for size, stride in zip(target.shape, strides, strict=True)]
    count = sum(reach) + 1
    if count * target.itemsize > _LARGEST_RANGE:
        widest = reach.index(max(reach))
        middle = target.shape[widest] // 2
        one, other = np.split(target, [middle], axis=widest)
        _scatter(one, file, offset, strides, files)
        _scatter(other, file, offset + middle * strides[widest] * target.itemsize, strides, files)
        return
    found: Array = np.empty(count, dtype=target.dtype)
    _read_range(found, file, offset, files)
    steps = tuple(stride * target.itemsize for stride in strides)
    target[...] = np.lib.stride_tricks.as_strided(found, target.shape, steps, writeable=False)


def _read_range(out: Array, file: StoredFile, offset: int, files: OpenFiles) -> None:
    files.read_into(file, out.view(np.uint8).data, offset)


def _contiguous(piece: Piece) -> bool:
    expected = 1
    for size, stride in zip(reversed(piece.sizes), reversed(piece.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
