"""CRC-32, as zip files have it: of bytes, and of two parts whose checksums are known."""

from __future__ import annotations

from functools import cache

from belay_cli.engine.contract import Bytes
from belay_cli.engine.kernel import crc32 as _crc32

_POLYNOMIAL = 0xEDB88320  # of degree 32; the highest bit of a number stands for x^0


def crc32(data: bytes | bytearray | memoryview | Bytes, value: int = 0) -> int:
    """The CRC-32 of bytes, after others whose CRC-32 is `value`; 0 is that of none."""
    return _crc32(data, value)


def combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of two parts together, the second of which is `length` bytes long.

    That of the first, with so many zero bytes behind it, plus that of the second, since checksums add up bit by bit.
    """
    for power in range(length.bit_length()):
        if length >> power & 1:
            first = _times(first, _zeros(power))
    return first ^ second


@cache
def _zeros(power: int) -> int:
    """x^(8·2^power) modulo the polynomial: what 2^power zero bytes behind a part multiply its checksum by."""
    if power == 0:
        return 0x80000000 >> 8
    half = _zeros(power - 1)
    return _times(half, half)


def _times(one: int, other: int) -> int:
    """The product of two polynomials over bits, modulo the polynomial."""
    product = 0
    while other:
        if other & 0x80000000:
            product ^= one
        other = other << 1 & 0xFFFFFFFF
        one = one >> 1 ^ (_POLYNOMIAL if one & 1 else 0)
    return product
