"""A text that carries the SHA-256 of itself, so that it can be told from one in which a bit has changed.

The digest stands in hex at a place that is known beforehand, and is taken with zeros there: whoever reads the text puts
the zeros back and takes it again.
"""

from __future__ import annotations

import hashlib

ZEROS = "0" * 64  # as long as a digest in hex, and in its place while it is taken


def sealed(text: bytes, place: int) -> bytes:
    """The text with its digest from byte `place` on, where ZEROS stand."""
    return _with(text, place, hashlib.sha256(text).hexdigest())


def seal_holds(text: bytes, place: int) -> bool:
    """Whether what stands there is the digest of the rest."""
    return sealed(_with(text, place, ZEROS), place) == text


def _with(text: bytes, place: int, digest: str) -> bytes:
    return b"".join((text[:place], digest.encode(), text[place + len(ZEROS) :]))
