"""Tensors in pieces and in other orders come back as numpy has them, in bounded reads."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.storage import pieces as pieces_module
from belay_cli.storage.files import OpenFiles, Stored, StoredFile
from belay_cli.storage.pieces import Piece, StoredPieces, check_pieces, simplest


def split(draw: Callable[..., Any], box: tuple[tuple[int, int], ...]) -> list[tuple[tuple[int, int], ...]]:
    """A box cut in two again and again, as no grid would."""
    free = [d for d, (begin, end) in enumerate(box) if end - begin > 1]
    if not free or not draw(st.integers(0, 2)):
        return [box]
    d = draw(st.sampled_from(free))
    at = draw(st.integers(box[d][0] + 1, box[d][1] - 1))
    halves = [(*box[:d], span, *box[d + 1 :]) for span in ((box[d][0], at), (at, box[d][1]))]
    return [part for half in halves for part in split(draw, half)]


@st.composite
def tilings(draw: Callable[..., Any]) -> Any:
    """A tensor, cut along each dimension or irregularly, each piece with its dimensions in an order of its own."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    data = np.random.default_rng(0).integers(0, 256, (*shape, itemsize)).astype(np.uint8)
    if draw(st.booleans()):
        cuts = [sorted(draw(st.sets(st.integers(0, n)))) for n in shape]
        spans = [list(itertools.pairwise(sorted({0, *cut, n}))) for cut, n in zip(cuts, shape, strict=True)]
        boxes = list(itertools.product(*spans))
    else:
        boxes = split(draw, tuple((0, n) for n in shape))
    orders = draw(st.lists(st.permutations(range(len(shape))), min_size=1, max_size=3))
    return shape, itemsize, data, boxes, orders


def stored(
    path: Path,
    shape: tuple[int, ...],
    itemsize: int,
    data: npt.NDArray[Any],
    boxes: list[tuple[tuple[int, int], ...]],
    orders: list[list[int]],
) -> StoredPieces:
    """Write each piece with its dimensions in one of these orders, some bytes in between."""
    content, pieces = bytearray(b"head"), []
    for box, order in zip(boxes, itertools.cycle(orders)):
        part = data[tuple(slice(a, b) for a, b in box)]
        sizes = tuple(b - a for a, b in box)
        strides = [0] * len(shape)
        step = 1
        for dimension in reversed(order):
            strides[dimension] = step
            step *= sizes[dimension]
        pieces.append((len(content), tuple(a for a, _ in box), sizes, tuple(strides)))
        content += part.transpose(*order, len(shape)).tobytes() + b"gap"
    path.write_bytes(content)
    file = StoredFile(path, len(content))
    return StoredPieces(shape, itemsize, tuple(Piece(file, *piece) for piece in pieces))


@given(tiling=tilings(), limit=st.sampled_from([1, 16, 64, 1 << 20]), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_any_range_of_any_tiling(
    tmp_path_factory: pytest.TempPathFactory, tiling: Any, limit: int, ends: tuple[float, float]
) -> None:
    shape, itemsize, data, boxes, orders = tiling
    found = stored(tmp_path_factory.mktemp("pieces") / "x", shape, itemsize, data, boxes, orders)
    assert check_pieces(shape, found.pieces) is None
    count = math.prod(shape)
    low, high = sorted(round(end * count) for end in ends)
    buffer = bytearray((high - low) * itemsize)
    before, pieces_module._LARGEST_RANGE = pieces_module._LARGEST_RANGE, limit
    try:
        with OpenFiles(2) as files:
            found.read_into(files, memoryview(buffer), low * itemsize)
    finally:
        pieces_module._LARGEST_RANGE = before
    assert bytes(buffer) == data.tobytes()[low * itemsize : high * itemsize]


def box(starts: tuple[int, ...], sizes: tuple[int, ...]) -> Piece:
    file: Any = None  # which is not looked at
    return Piece(file, 0, starts, sizes, (1,) * len(sizes))


@pytest.mark.parametrize(
    ("pieces", "wrong"),
    [
        ([box((0, 0), (2, 3)), box((2, 0), (2, 3))], None),
        ([box((0, 0), (4, 1)), box((0, 1), (4, 2))], None),
        ([box((0, 0), (2, 3))], "a piece is missing"),
        ([box((0, 0), (2, 3)), box((1, 0), (2, 3))], "two pieces overlap"),
        ([box((0, 0), (4, 2)), box((0, 1), (4, 1))], "two pieces overlap"),
        ([box((0, 0), (5, 3))], "a piece reaches outside it"),
        ([box((-1, 0), (4, 3))], "a piece reaches outside it"),
        ([box((0,), (4,))], "a piece has another number of dimensions"),
        ([], "a piece is missing"),
        ([box((0, 0), (2, 2)), box((2, 0), (2, 2)), box((0, 1), (4, 1))], "two pieces overlap"),
        ([box((0, 0), (3, 4))], "a piece reaches outside it"),
        ([box((0, 0), (-4, -3))], "a piece reaches outside it"),
        ([box((0, 0), (4, 3)), box((9, 9), (0, 3))], None),
    ],
)
def test_pieces_that_do_not_cover(pieces: list[Piece], wrong: str | None) -> None:
    assert check_pieces((4, 3), pieces) == wrong


def test_scalars_and_thousands_of_pieces() -> None:
    assert check_pieces((), [box((), ())]) is None
    assert check_pieces((), [box((), ()), box((), ())]) == "two pieces overlap"
    assert check_pieces((20_000, 4), [box((i, 0), (1, 4)) for i in range(20_000)]) is None
    columns = [box((0, i), (4, 1)) for i in range(20_000)]
    assert check_pieces((4, 20_000), columns) is None
    assert check_pieces((4, 20_000), [*columns[:-1], columns[0]]) == "two pieces overlap"
    grid = [box((i, j), (1, 1)) for i in range(100) for j in range(100)]
    assert check_pieces((100, 100), grid) is None
    assert check_pieces((0, 4), []) is None
    assert check_pieces((0, 4), [box((0, 0), (0, 4))]) is None


def test_more_cuts_than_a_mesh_has_dimensions() -> None:
    parts = [box((i, *(0,) * 63), (1,) * 64) for i in range(2)]
    assert check_pieces((2,) + (1,) * 63, parts) is None
    wrong = "the pieces are cut along more than 6 dimensions"
    assert check_pieces((2,) * 6, [box(c, (1,) * 6) for c in itertools.product((0, 1), repeat=6)]) is None
    assert check_pieces((2,) * 7, [box(c, (1,) * 7) for c in itertools.product((0, 1), repeat=7)]) == wrong


@given(data=st.data())
def test_boxes_cover_a_tensor_as_counting_says(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    span = st.integers(0, 4).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 4)))
    whole = data.draw(st.booleans())
    boxes: list[Any] = split(data.draw, tuple((0, n) for n in shape)) if whole and all(shape) else []
    boxes = [(tuple(a for a, _ in b), tuple(e - a for a, e in b)) for b in boxes]
    boxes = [b for b in boxes if data.draw(st.integers(0, 5))]
    extra = data.draw(st.lists(st.tuples(*(span for _ in shape)), max_size=2))
    boxes += [(tuple(a for a, _ in b), tuple(n for _, n in b)) for b in extra]
    count = np.zeros(tuple(n + 9 for n in shape), int)
    for starts, sizes in boxes:
        count[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))] += 1
    inside = tuple(slice(0, n) for n in shape)
    good = (count[inside] == 1).all() and count.sum() == count[inside].sum()
    assert (check_pieces(shape, [box(*b) for b in boxes]) is None) == good


def test_one_run_of_bytes_is_one(tmp_path: Path) -> None:
    file = StoredFile(tmp_path / "x", 100)
    assert simplest((2, 3), 4, [Piece(file, 8, (0, 0), (2, 3), (3, 1))]) == Stored(file, 8)
    assert isinstance(simplest((2, 3), 4, [Piece(file, 8, (0, 0), (2, 3), (1, 2))]), StoredPieces)


def test_an_expanded_tensor(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcd")
    found = StoredPieces((3, 2), 2, (Piece(StoredFile(tmp_path / "x", 4), 0, (0, 0), (3, 2), (0, 1)),))
    buffer = bytearray(12)
    with OpenFiles(1) as files:
        found.read_into(files, memoryview(buffer), 0)
    assert buffer == b"abcd" * 3


class Reads(OpenFiles):
    """Open files that remember what is read of them: offset and count, in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.made: list[tuple[int, int]] = []

    def read_into(self, file: StoredFile, buffer: memoryview, offset: int) -> None:
        self.made.append((offset, buffer.nbytes))
        super().read_into(file, buffer, offset)


def laid_out(path: Path, shape: tuple[int, ...], boxes: Any, strides: tuple[int, ...] | None = None) -> StoredPieces:
    """A tensor of float32 in a sparse file, in pieces one after the other."""
    count = math.prod(shape)
    with open(path, "wb") as sparse:
        sparse.truncate(4 * count)
    file, pieces, at = StoredFile(path, 4 * count), [], 0
    for starts, sizes in boxes:
        rows = tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))
        pieces.append(Piece(file, at, starts, sizes, strides or rows))
        at += 4 * math.prod(sizes)
    return StoredPieces(shape, 4, tuple(pieces))


def test_what_is_read_of_the_usual_layouts(tmp_path: Path) -> None:
    buffer = bytearray(4 * 6 * 8)
    sharded = laid_out(tmp_path / "a", (8, 8), [((0, 0), (4, 8)), ((4, 0), (4, 8))])
    parallel = laid_out(tmp_path / "b", (8, 8), [((0, 0), (8, 5)), ((0, 5), (8, 3))])
    last = laid_out(tmp_path / "c", (8, 2, 2, 2), [((0, 0, 0, 0), (8, 2, 2, 2))], (8, 1, 4, 2))
    files = Reads(1)
    with files:
        for found in (sharded, parallel, last):
            found.read_into(files, memoryview(buffer), 4 * 8)  # the rows 1 to 6
    assert files.made == [(32, 96), (128, 96), (20, 120), (172, 72), (32, 192)]


@pytest.mark.parametrize(
    ("shape", "strides"), [((4096, 4096), (1, 4096)), ((1, 1 << 24), (1, 1)), ((64, 512, 512), (1, 64, 1 << 15))]
)
def test_memory_is_bounded_whatever_the_order(tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    found = laid_out(tmp_path / "x", shape, [((0,) * len(shape), shape)], strides)
    buffer = bytearray(4 << 20)
    tracemalloc.start()
    try:
        with OpenFiles(1) as files:
            found.read_into(files, memoryview(buffer), 12 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
