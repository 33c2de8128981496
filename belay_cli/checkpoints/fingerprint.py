"""What identifies a checkpoint's content: a digest that costs 4 MiB of reading, whatever its size."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.storage.files import StoredFile, available_cores, is_remote, open_file

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


def fingerprinted_bytes(file: StoredFile) -> int:
    """How many bytes of a file its fingerprint takes."""
    return file.data_start + sum(count for _, count in _blocks(file.data_start, file.size - file.data_start))


def _blocks(start: int, data: int) -> list[tuple[int, int]]:
    if data <= BLOCKS * BLOCK_BYTES:
        return [(start, data)]
    return [(start + k * (data - BLOCK_BYTES) // (BLOCKS - 1), BLOCK_BYTES) for k in range(BLOCKS)]


class Fingerprints:
    """The fingerprints of checkpoints, taken by threads of their own while somebody opens more and plans.

    Hashing needs no interpreter, so that it costs little beside that; until somebody waits for it, it leaves them a
    core.
    """

    def __init__(self) -> None:
        self._readers = ThreadPoolExecutor(_READERS)
        self._turns = threading.Semaphore(max(1, available_cores() - 1))
        self._taken: dict[StoredFile, Future[str]] = {}

    def take(self, checkpoint: Checkpoint) -> None:
        """Begin with a checkpoint, unless its files are far away: these are not read before it is known what for."""
        for file in checkpoint.files:
            if not is_remote(file.path):
                self._of_file(file)

    def of(self, checkpoints: Iterable[Checkpoint]) -> list[str]:
        """The fingerprint of each. Raises CheckpointError."""
        checkpoints = list(checkpoints)
        self._turns.release(_READERS)
        for checkpoint in checkpoints:
            for file in checkpoint.files:
                self._of_file(file)
        return [_of_files(checkpoint, lambda file: self._of_file(file).result()) for checkpoint in checkpoints]

    def _of_file(self, file: StoredFile) -> Future[str]:
        if file not in self._taken:
            self._taken[file] = self._readers.submit(self._in_turn, file)
        return self._taken[file]

    def _in_turn(self, file: StoredFile) -> str:
        with self._turns:
            return file_fingerprint(file)

    def __enter__(self) -> Fingerprints:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)


def fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint of its one file, or the SHA-256 over `name fingerprint` lines of its shards in name order.

    Of several models the names begin with the folders.
    """
    return _of_files(checkpoint, file_fingerprint)


def _of_files(checkpoint: Checkpoint, of_file: Callable[[StoredFile], str]) -> str:
    if len(checkpoint.files) == 1:
        return of_file(checkpoint.files[0])
    lines = [f"{name} {of_file(file)}\n" for name, file in checkpoint.weights.named_files()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fingerprints(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The fingerprint of each checkpoint, several read at a time."""
    with Fingerprints() as taken:
        return taken.of(checkpoints)
