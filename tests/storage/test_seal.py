"""A text that carries the SHA-256 of itself."""

from __future__ import annotations

import hashlib

from belay_cli.storage.seal import ZEROS, seal_holds, sealed


def test_the_digest_is_of_the_text_with_zeros_in_its_place() -> None:
    text = f"begins {ZEROS} ends".encode()
    digest = hashlib.sha256(text).hexdigest()
    assert sealed(text, 7) == f"begins {digest} ends".encode()
    assert seal_holds(sealed(text, 7), 7)


def test_every_flipped_bit_breaks_it() -> None:
    whole = sealed(f"begins {ZEROS} ends".encode(), 7)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert not seal_holds(bytes(changed), 7)


def test_what_is_too_short_has_none() -> None:
    assert not seal_holds(b"begins", 7)
    assert not seal_holds(b"", 0)
