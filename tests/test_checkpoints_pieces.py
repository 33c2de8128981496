"""Tensors in pieces and in other orders come back as numpy has them, in bounded reads."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.checkpoints import pieces as pieces_module
from belay_cli.checkpoints.pieces import Piece, StoredPieces, check_pieces, simplest
from belay_cli.checkpoints.storage import OpenFiles, Stored, StoredFile


@st.composite
def tilings(draw):
    """A tensor, cut along each dimension, each piece stored in an order of its own."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    data = np.random.default_rng(0).integers(0, 256, (*shape, itemsize)).astype(np.uint8)
    cuts = [sorted(draw(st.sets(st.integers(0, n)))) for n in shape]
    spans = [list(itertools.pairwise(sorted({0, *cut, n}))) for cut, n in zip(cuts, shape, strict=True)]
    order = draw(st.permutations(range(len(shape))))
    return shape, itemsize, data, list(itertools.product(*spans)), tuple(order)


def stored(path, shape, itemsize, data, boxes, order):
    """Write each piece with its dimensions in this order, some bytes in between."""
    content, pieces, file = bytearray(b"head"), [], None
    for box in boxes:
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
def test_any_range_of_any_tiling(tmp_path_factory, tiling, limit, ends):
    shape, itemsize, data, boxes, order = tiling
    found = stored(tmp_path_factory.mktemp("pieces") / "x", shape, itemsize, data, boxes, order)
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


def box(starts, sizes):
    return Piece(None, 0, starts, sizes, (1,) * len(sizes))


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
    ],
)
def test_pieces_that_do_not_cover(pieces, wrong):
    assert check_pieces((4, 3), pieces) == wrong


def test_scalars_and_thousands_of_pieces():
    assert check_pieces((), [box((), ())]) is None
    assert check_pieces((), [box((), ()), box((), ())]) == "two pieces overlap"
    assert check_pieces((20_000, 4), [box((i, 0), (1, 4)) for i in range(20_000)]) is None


def test_one_run_of_bytes_is_one(tmp_path):
    file = StoredFile(tmp_path / "x", 100)
    assert simplest((2, 3), 4, [Piece(file, 8, (0, 0), (2, 3), (3, 1))]) == Stored(file, 8)
    assert isinstance(simplest((2, 3), 4, [Piece(file, 8, (0, 0), (2, 3), (1, 2))]), StoredPieces)


def test_an_expanded_tensor(tmp_path):
    (tmp_path / "x").write_bytes(b"abcd")
    found = StoredPieces((3, 2), 2, (Piece(StoredFile(tmp_path / "x", 4), 0, (0, 0), (3, 2), (0, 1)),))
    buffer = bytearray(12)
    with OpenFiles(1) as files:
        found.read_into(files, memoryview(buffer), 0)
    assert buffer == b"abcd" * 3
