"""The digest of a file that may be as large as a training's state: of its blocks, which several can take at a time.

It is the SHA-256 over the SHA-256s, 32 bytes each, of the file's blocks of 64 MiB in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from belay_cli.storage.files import open_file

BLOCK = 64 << 20  # bytes
_READ = 4 << 20  # at a time


def blocks_of(size: int) -> Iterator[tuple[int, int]]:
    """From where to where each block of a file of this size reaches; an empty one has none."""
    yield from ((begin, min(begin + BLOCK, size)) for begin in range(0, size, BLOCK))


def block_digest(parts: Iterable[bytes]) -> bytes:
    """The SHA-256 of a block that comes in parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def of_blocks(digests: Iterable[bytes]) -> str:
    """The digest of a file, in hex, from those of its blocks."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digests(
    paths: Mapping[str, Path], threads: int, done: Callable[[int], None] = lambda count: None
) -> dict[str, str]:
    """The digest of each file, by the same names; `done` is told the bytes of each block. Raises CheckpointError."""

    def one(block: tuple[str, int, int]) -> bytes:
        name, begin, end = block
        with open_file(paths[name]) as file:
            found = block_digest(file.read_at(at, min(_READ, end - at)) for at in range(begin, end, _READ))
        done(end - begin)
        return found

    blocks = [(name, *block) for name, path in paths.items() for block in blocks_of(_size(path))]
    with ThreadPoolExecutor(threads) as pool:
        taken = zip(blocks, pool.map(one, blocks), strict=True)
        by_file: dict[str, list[bytes]] = {name: [] for name in paths}
        for (name, _, _), digest in taken:
            by_file[name].append(digest)
    return {name: of_blocks(digests) for name, digests in by_file.items()}


def _size(path: Path) -> int:
    with open_file(path) as file:
        return file.size
