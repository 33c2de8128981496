"""Positioned reads from the files that hold checkpoints.

How many stay open at once is bounded, because a series of two hundred checkpoints of thirty shards is more than
a process may have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias

from belay_cli.checkpoints.remote import RemoteFile, open_remote
from belay_cli.checkpoints.remote.path import RemotePath
from belay_cli.errors import CheckpointError

# One call moves at most 2,147,479,552 bytes on Linux.
_LARGEST_READ = 1 << 30

AnyPath: TypeAlias = Path | RemotePath
ReadAt = Callable[[int, int], bytes]  # offset, count -> exactly `count` bytes, or a CheckpointError


@dataclass(frozen=True, eq=False)
class StoredFile:
    """A file that holds weights; sizes in bytes. Equal to itself alone, so that it is a quick key.

    `data_start` is the length of its header, and `metadata` what that says beside the tensors, for safetensors.
    """

    path: AnyPath
    size: int
    data_start: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


class LocalFile:
    """A file of this machine, open for positioned reads by one thread or several."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError with the reason in words."""
        if path.exists() and not path.is_file():  # a pipe would block for ever
            raise CheckpointError("is not a file", file=path)
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise CheckpointError(f"cannot be opened: {reason(error)}", file=path) from error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
        done, total = 0, buffer.nbytes
        while done < total:
            # As a rule one call fills the buffer whole: threads share the interpreter, so each step here counts.
            part = buffer if not done and total <= _LARGEST_READ else buffer[done : done + _LARGEST_READ]
            try:
                count = os.preadv(self._descriptor, [part], offset + done)
            except OSError as error:
                raise CheckpointError(f"cannot be read: {reason(error)}", file=self._path) from error
            if count == 0:
                raise CheckpointError(
                    f"ends at byte {offset + done}, though its header promises more",
                    file=self._path,
                    hint="the file changed or is cut short; copy it again",
                )
            done += count

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from byte `offset`. The caller has checked that the file is that long."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def close(self) -> None:
        """Close it, once."""
        os.close(self._descriptor)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: AnyPath) -> LocalFile | RemoteFile:
    """The file for reading. Raises CheckpointError."""
    return open_remote(path) if isinstance(path, RemotePath) else LocalFile(path)


def is_remote(path: AnyPath) -> bool:
    """Whether a file is read over a network."""
    return isinstance(path, RemotePath)


def reason(error: OSError) -> str:
    """What the operating system says, without the path and the number."""
    return (error.strerror or str(error)).lower()


class OpenFiles:
    """The files that one thread reads, kept open: at most `limit`, then the one opened first is closed.

    Each thread has its own, so that none closes what another is reading.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[StoredFile, LocalFile | RemoteFile] = {}

    def read_into(self, file: StoredFile, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
        found = self._open.get(file)
        if found is None:
            if len(self._open) >= self._limit:
                self._open.pop(next(iter(self._open))).close()
            found = self._open[file] = open_file(file.path)
        found.read_into(buffer, offset)

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            self._open.popitem()[1].close()


class Stored(NamedTuple):
    """Where the bytes of one tensor lie, row after row: from byte `offset` of a file on."""

    file: StoredFile
    offset: int

    def read_into(self, files: OpenFiles, buffer: memoryview, begin: int) -> None:
        """Fill `buffer` from byte `begin` of the tensor. Raises CheckpointError."""
        files.read_into(self.file, buffer, self.offset + begin)


def open_files(threads: int) -> int:
    """How many files each of so many threads may keep open: half of what the process may, shared out."""
    try:
        import resource
    except ImportError:  # Windows
        return max(1, 256 // threads)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    whole = 4096 if soft == resource.RLIM_INFINITY else min(4096, soft // 2)
    return max(1, whole // threads)
