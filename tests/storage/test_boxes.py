"""Parts of tensors that are one run of bytes each, and the same parts as other files have them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belay_cli.storage.boxes import Box, Cuttable, NoRunsError, boxes_of
from belay_cli.storage.files import OpenFiles, Stored, StoredFile
from belay_cli.storage.pieces import Piece, StoredPieces

FILE = StoredFile(Path("x"), 1 << 40)


def piece(starts: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Piece:
    return Piece(FILE, offset, starts, sizes, strides)


def boxes(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> list[tuple[Any, ...]]:
    stored = StoredPieces(shape, 4, (piece((0,) * len(shape), shape, strides, offset),))
    return [(*box, at) for box, _, at in boxes_of(stored, shape, 4)]


def test_one_run_is_one_box() -> None:
    assert boxes_of(Stored(FILE, 8), (3, 4), 4) == [(Box((0, 0), (3, 4), (0, 1)), FILE, 8)]
    assert boxes_of(Stored(FILE, 8), (), 4) == [(Box((), (), ()), FILE, 8)]
    assert boxes_of(Stored(FILE, 8), (0, 4), 4) == []


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((3, 4), (1, 3), [((0, 0), (3, 4), (1, 0), 0)]),  # transposed
        ((2, 3, 4, 5), (60, 1, 15, 3), [((0, 0, 0, 0), (2, 3, 4, 5), (0, 2, 3, 1), 0)]),  # channels last
        ((1, 4), (0, 1), [((0, 0), (1, 4), (0, 1), 0)]),
        ((4, 1), (1, 0), [((0, 0), (4, 1), (1, 0), 0)]),
        ((2, 3), (5, 1), [((0, 0), (1, 3), (0, 1), 0), ((1, 0), (1, 3), (0, 1), 20)]),  # rows with gaps
        ((2, 2), (1, 3), [((0, 0), (2, 1), (1, 0), 0), ((0, 1), (2, 1), (1, 0), 12)]),  # columns with gaps
        ((3,), (2,), [((i,), (1,), (0,), 8 * i) for i in range(3)]),
    ],
)
def test_other_orders_and_gaps(shape: tuple[int, ...], strides: tuple[int, ...], expected: list[Any]) -> None:
    assert boxes(shape, strides) == expected


@pytest.mark.parametrize(
    ("shape", "strides", "message"),
    [
        ((3, 4), (0, 1), "shows some of its numbers more than once"),
        ((4,), (0,), "shows some of its numbers more than once"),
        ((3, 4), (2, 1), "shows some of its numbers more than once"),
        ((10_001,), (2,), "lies in more than 10,000 runs of bytes"),
        ((101, 100, 3), (5000, 5, 1), "lies in more than 10,000 runs of bytes"),
    ],
)
def test_what_is_no_runs_of_its_own(shape: tuple[int, ...], strides: tuple[int, ...], message: str) -> None:
    with pytest.raises(NoRunsError) as caught:
        boxes(shape, strides)
    assert str(caught.value) == message


def in_pieces(whole: np.ndarray[Any, Any], cuts: list[list[int]], path: Path, order: tuple[int, ...]) -> StoredPieces:
    """An array in a file, cut in all dimensions, each piece with its dimensions in another order."""
    data, pieces = b"", []
    edges = [[0, *own, n] for own, n in zip(cuts, whole.shape, strict=True)]
    for spans in itertools.product(*(list(itertools.pairwise(own)) for own in edges)):
        part = whole[tuple(slice(*span) for span in spans)].transpose(order)
        strides = np.array(np.empty(part.shape).strides) // 8
        inverse = tuple(int(strides[order.index(d)]) for d in range(whole.ndim))
        starts, sizes = zip(*((a, b - a) for a, b in spans), strict=True)
        pieces.append((len(data), starts, sizes, inverse))
        data += part.tobytes()
    path.write_bytes(data)
    file = StoredFile(path, len(data))
    return StoredPieces(whole.shape, whole.itemsize, tuple(Piece(file, *one) for one in pieces))


BOXES = (((0, 0, 0), (4, 5, 3)), ((1, 2, 0), (2, 3, 2)), ((3, 4, 2), (1, 1, 1)), ((0, 3, 1), (4, 1, 2)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("cuts", [[[], [], []], [[2, 3], [], []], [[1], [4], [2]], [[], [1, 2, 3], []]])
def test_any_box_of_any_pieces_is_that_of_the_array(
    tmp_path: Path, cuts: list[list[int]], order: tuple[int, ...]
) -> None:
    whole = np.arange(4 * 5 * 3, dtype=np.int32).reshape(4, 5, 3)
    stored = in_pieces(whole, cuts, tmp_path / "x", order)
    cuttable = Cuttable(stored, whole.shape, 4)
    with OpenFiles(2) as files:
        for starts, sizes in [
            ((0, 0, 0), (4, 5, 3)),
            ((1, 2, 0), (2, 3, 2)),
            ((3, 4, 2), (1, 1, 1)),
            ((0, 3, 1), (4, 1, 2)),
        ]:
            for own in itertools.permutations(range(3)):
                expected = whole[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))].transpose(own)
                buffer = bytearray(expected.size * 4)
                cuttable.cut(Box(starts, sizes, own)).read_into(files, memoryview(buffer), 0)
                assert bytes(buffer) == expected.tobytes()


def test_boxes_cover_what_is_stored(tmp_path: Path) -> None:
    whole = np.arange(4 * 5 * 3, dtype=np.int32).reshape(4, 5, 3)
    stored = in_pieces(whole, [[1], [2], []], tmp_path / "x", (2, 0, 1))
    cuttable, data = Cuttable(stored, whole.shape, 4), (tmp_path / "x").read_bytes()
    found = boxes_of(stored, whole.shape, 4)
    assert len(found) == 4
    for box, file, offset in found:
        assert cuttable.cut(box) == Stored(file, offset)
        own = whole[tuple(slice(a, a + n) for a, n in zip(box.starts, box.sizes, strict=True))].transpose(box.order)
        assert data[offset : offset + own.size * 4] == own.tobytes()


def test_many_pieces_cost_no_more_than_they_must() -> None:
    def cut(count: int) -> StoredPieces:
        rows = 192_000 // count
        pieces = tuple(piece((i * rows, 0), (rows, 8), (8, 1), i * rows * 32) for i in range(count))
        return StoredPieces((192_000, 8), 4, pieces)

    began = time.process_time()
    cuttable = Cuttable(cut(4000), (192_000, 8), 4)
    for box, _, _ in boxes_of(cut(3000), (192_000, 8), 4):
        cuttable.cut(box)
    assert time.process_time() - began < 5  # comparing all with all takes a minute
