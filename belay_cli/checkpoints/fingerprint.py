"""What identifies a checkpoint's content: a digest that costs 4 MiB of reading, whatever its size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.storage.files import StoredFile, open_file

BLOCKS = 64
BLOCK_BYTES = 64 * 1024
_READERS = 8  # small scattered reads wait for the disk, not for a core


def file_fingerprint(file: StoredFile) -> str:
    """SHA-256 (hex) over the header of safetensors with its length field, the size (u64, little-endian), and 64 blocks.

    Block k begins at data_start + ⌊k · (data − block) / 63⌋, each of 64 KiB;
    data of at most 4 MiB is taken whole.
    """
    digest = hashlib.sha256()
    with open_file(file.path) as opened:
        digest.update(opened.read_at(0, file.data_start))
        digest.update(file.size.to_bytes(8, "little"))
        for offset, count in _blocks(file.data_start, file.size - file.data_start):
            digest.update(opened.read_at(offset, count))
    return digest.hexdigest()


def _blocks(start: int, data: int) -> list[tuple[int, int]]:
    if data <= BLOCKS * BLOCK_BYTES:
        return [(start, data)]
    return [(start + k * (data - BLOCK_BYTES) // (BLOCKS - 1), BLOCK_BYTES) for k in range(BLOCKS)]


def fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint of its one file, or the SHA-256 over `name fingerprint` lines of its shards in name order.

    Of several models the names begin with the folders.
    """
    if len(checkpoint.files) == 1:
        return file_fingerprint(checkpoint.files[0])
    lines = [f"{name} {file_fingerprint(file)}\n" for name, file in checkpoint.weights.named_files()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprints(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The fingerprint of each checkpoint, several read at a time."""
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(fingerprint, checkpoints))
