"""How a worker gets the bytes of a chunk: from this machine when it asks, from elsewhere before it asks.

A file of this machine is read in one call into the worker's buffer. A remote one answers late, so the parts that come
next are read ahead, several at a time, in memory that the plan has left.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from belay_cli.engine.chunks import Chunk, Source, chunks
from belay_cli.engine.spans import Spans
from belay_cli.errors import CheckpointError
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles, Stored, StoredFile, is_remote
from belay_cli.storage.remote import open_remote
from belay_cli.storage.remote.path import RemotePath

_IN_FLIGHT = 16  # reads at a time: a store far away answers in tenths of a second, and hardly minds
_OPEN = 16  # files that a reader keeps open


class _Part(NamedTuple):
    key: tuple[int, int]  # number of the chunk, place among its sources
    chunk: Chunk
    source: Source


def read_part(chunk: Chunk, source: Source, files: OpenFiles, buffer: memoryview) -> None:
    """Fill `buffer` with the chunk's bytes of one checkpoint. Raises CheckpointError."""
    source.stored.read_into(files, buffer, chunk.begins(chunk.source_dtype))


def places(chunk: Chunk, files: OpenFiles) -> list[tuple[int, int]] | None:
    """Where a chunk begins in every source, as (descriptor, offset), good until `files` is asked again.

    None where that is not in files of this machine, or they cannot all be open at once.
    """
    runs = [source.stored for source in chunk.run.sources if isinstance(source.stored, Stored)]
    if len(runs) < len(chunk.run.sources):
        return None
    descriptors = files.descriptors([where.file for where in runs])
    if descriptors is None:
        return None
    begin = chunk.begins(chunk.source_dtype)
    return [(descriptor, where.offset + begin) for descriptor, where in zip(descriptors, runs, strict=True)]


class Ahead:
    """Parts of chunks of n elements, read in order before they are taken; for a series of this machine, nothing.

    Takers come from several threads. What was not read ahead in time is read by whoever takes it, so nobody waits for
    a turn, and memory stays within what `--max-memory` leaves.
    """

    def __init__(self, plan: Plan, n: int, todo: Spans | None = None) -> None:
        self._pool: ThreadPoolExecutor | None = None
        if not any(is_remote(file.path) for checkpoint in plan.sources for file in checkpoint.files):
            return
        self._local = threading.local()
        self._opened: list[OpenFiles] = []
        self._lock = threading.Lock()
        self._parts = _parts(plan, n, todo)
        self._reading: dict[tuple[int, int], Future[bytearray]] = {}
        self._taken: set[tuple[int, int]] = set()
        self._room = max(_IN_FLIGHT, (plan.buffers.limit - plan.buffers.nbytes) // (n * plan.itemsizes[0]))
        self._pool = ThreadPoolExecutor(_IN_FLIGHT)
        with self._lock:
            self._fill()

    def read_into(self, chunk: Chunk, place: int, files: OpenFiles, buffer: memoryview) -> None:
        """Fill `buffer` with the chunk's bytes of its source at `place`. Raises CheckpointError."""
        if self._pool is None:
            read_part(chunk, chunk.run.sources[place], files, buffer)
            return
        with self._lock:
            reading = self._reading.pop((chunk.number, place), None)
            if reading is None:
                self._taken.add((chunk.number, place))
            self._fill()
        if reading is None:
            read_part(chunk, chunk.run.sources[place], files, buffer)
        else:
            buffer[:] = reading.result()

    def _fill(self) -> None:
        assert self._pool is not None  # noqa: S101
        while len(self._reading) < self._room and (part := next(self._parts, None)):
            if part.key in self._taken:
                self._taken.discard(part.key)
            else:
                self._reading[part.key] = self._pool.submit(self._read, part)

    def _read(self, part: _Part) -> bytearray:
        files = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OpenFiles(_OPEN)
            self._opened.append(files)
        buffer = bytearray(part.chunk.nbytes(part.chunk.source_dtype))
        read_part(part.chunk, part.source, files, memoryview(buffer))
        return buffer

    def close(self) -> None:
        """Let what is being read end, and read no more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for files in self._opened:
                files.close()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def let_go(place: tuple[int, int], count: int) -> None:
    """Let the page cache forget bytes of a file: who else is on this machine has more use for the memory."""
    os.posix_fadvise(*place, count, os.POSIX_FADV_DONTNEED)


def let_go_of_files(plan: Plan) -> None:
    """The same for all that was read, headers and fingerprints included."""
    for file in plan.files_read:
        if isinstance(file.path, Path):
            with contextlib.suppress(OSError), open(file.path, "rb") as opened:
                let_go((opened.fileno(), 0), 0)


def refuse_changed(plan: Plan) -> None:
    """Raise CheckpointError if a file is no longer the one that was planned with: it changed meanwhile."""
    files = plan.files_read
    for file in files:
        if isinstance(file.path, Path) and not _is_still(file.path, file):
            raise CheckpointError(
                "changed while it was read",
                file=file.path,
                hint="run the same command again when nothing writes to it",
            )
    remote = [file.path for file in files if isinstance(file.path, RemotePath)]
    if remote:
        with ThreadPoolExecutor(_IN_FLIGHT) as askers:
            list(askers.map(lambda path: open_remote(path).unchanged(), remote))


def _is_still(path: Path, file: StoredFile) -> bool:
    """Whether nobody wrote to it. A trainer may have removed it, after it was read whole."""
    try:
        status = path.stat()
    except OSError:
        return True
    return (status.st_size, status.st_mtime_ns) == (file.size, file.modified)


def _parts(plan: Plan, n: int, todo: Spans | None) -> Iterator[_Part]:
    for chunk in chunks(plan, n, todo):
        for place, source in enumerate(chunk.run.sources):
            yield _Part((chunk.number, place), chunk, source)
