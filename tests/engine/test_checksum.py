"""CRC-32 by the kernel, against that of zlib."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.engine import kernel
from belay_cli.engine.checksum import combine, crc32


@given(st.binary(max_size=400), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_any_bytes_anywhere(data: bytes, start: int, value: int) -> None:
    view = memoryview(data)[start:]
    assert crc32(view, value) == zlib.crc32(view, value)


@pytest.mark.parametrize("length", [15, 16, 17, 63, 64, 65, 79, 80, 127, 128, 129, 1000, 4096, 65_537, 1_000_003])
def test_lengths_at_which_the_loops_change(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert crc32(data) == zlib.crc32(data)
    assert crc32(data[7:], 12345) == zlib.crc32(data[7:], 12345)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_parts_together(first: bytes, second: bytes) -> None:
    assert combine(crc32(first), crc32(second), len(second)) == zlib.crc32(first + second)


def test_a_part_of_many_bytes() -> None:
    zeros = bytes(3_000_000)
    assert combine(zlib.crc32(b"x"), zlib.crc32(zeros), len(zeros)) == zlib.crc32(b"x" + zeros)


def test_where_it_was_built_it_is_used() -> None:
    assert (kernel.crc32 is zlib.crc32) == (not kernel.KERNELS)
