"""Bytes turned, cut, moved, and put where they hurt."""

from __future__ import annotations

import random
from collections.abc import Callable

_NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
]
_TEXTS = [
    *(b"\\ud800", b"null", b"-1", b"1e999", b"NaN", b"[" * 3000, b'{"a":' * 2000, b'""', b"../../x", b"/etc/passwd"),
    *(b"9" * 30, b"9" * 5000, b"true", b"\x00", b"\xff\xfe", b"x" * 300, b"belay.version", b"__metadata__"),
]

Mutation = Callable[[random.Random, bytearray], None]


def _bits(chance: random.Random, data: bytearray) -> None:
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


def _remove(chance: random.Random, data: bytearray) -> None:
    begin = chance.randrange(len(data))
    del data[begin : begin + chance.choice((1, 2, 8, 64, 500))]


def _repeat(chance: random.Random, data: bytearray) -> None:
    begin, at = chance.randrange(len(data)), chance.randrange(len(data))
    data[at:at] = data[begin : begin + chance.choice((1, 8, 64, 500))]


def _number(chance: random.Random, data: bytearray) -> None:
    size = chance.choice((1, 2, 4, 8))
    at = chance.randrange(len(data))
    data[at : at + size] = (chance.choice(_NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")


def _digit(chance: random.Random, data: bytearray) -> None:
    places = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if places:
        data[chance.choice(places)] = chance.randrange(48, 58)


def _text(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    data[at : at + chance.choice((0, 1, 8))] = chance.choice(_TEXTS)


MUTATIONS: tuple[Mutation, ...] = (_bits, _bits, _cut, _remove, _repeat, _number, _digit, _text)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """The bytes with one to three mutations."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if made:
            chance.choice(MUTATIONS)(chance, made)
    return bytes(made)
