"""Positioned reads from the files that hold checkpoints.

How many stay open at once is bounded, because a series of two hundred checkpoints of thirty shards is more than
a process may have.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from belay_cli.storage.local import LocalFile
from belay_cli.storage.remote import RemoteFile, open_remote
from belay_cli.storage.remote.path import RemotePath

AnyPath: TypeAlias = Path | RemotePath

LONGEST_NAME = 255  # bytes, on every file system that is in use
_LONGEST_PATH = 4096
ReadAt = Callable[[int, int], bytes]  # offset, count -> exactly `count` bytes, or a CheckpointError


@dataclass(frozen=True, eq=False)
class StoredFile:
    """A file that holds weights; sizes in bytes. Equal to itself alone, so that it is a quick key.

    `modified` is when it was last written to, in nanoseconds, for a file of this machine. `data_start` is the length
    of its header, and `metadata` what that says beside the tensors, for safetensors. `checksums`: for torch files, by
    where the bytes of a storage begin, how many they are, and their CRC-32; of those that were looked for.
    """

    path: AnyPath
    size: int
    modified: int | None = None
    data_start: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    checksums: dict[int, tuple[int, int]] = field(default_factory=dict)


def open_file(path: AnyPath) -> LocalFile | RemoteFile:
    """The file for reading. Raises CheckpointError."""
    return open_remote(path) if isinstance(path, RemotePath) else LocalFile(path)


def names_in(directory: AnyPath) -> list[str]:
    """The names of what lies in a directory, in no order."""
    if isinstance(directory, Path):
        return os.listdir(directory)  # noqa: PTH208 - no path is made of each: a series has thousands of directories
    return [entry.name for entry in directory.iterdir()]


def is_remote(path: AnyPath) -> bool:
    """Whether a file is read over a network."""
    return isinstance(path, RemotePath)


def is_plain_name(name: str) -> bool:
    """Whether a name stays inside its directory, on any system, and is none that no file can have."""
    return name not in ("", ".", "..") and not any(c in name for c in '/\\:"\0\n') and can_be(name)


def can_be(path: str) -> bool:
    """Whether there can be a file of this path: systems raise an error for others, in place of saying that none is."""
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return b"\0" not in data and len(data) < _LONGEST_PATH and max(map(len, data.split(b"/"))) <= LONGEST_NAME


class OpenFiles:
    """The files that one thread reads, kept open: at most `limit`, then the one not used for longest is closed.

    Each thread has its own, so that none closes what another is reading.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[StoredFile, LocalFile | RemoteFile] = {}

    def read_into(self, file: StoredFile, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
        self._opened(file).read_into(buffer, offset)

    def descriptors(self, files: Sequence[StoredFile]) -> list[int] | None:
        """Those of files of this machine, good until the next call; None if they cannot all be open at once."""
        if len(files) > self._limit:
            return None
        found = [self._opened(file) for file in files]
        descriptors = [file.descriptor for file in found if isinstance(file, LocalFile)]
        return descriptors if len(descriptors) == len(files) else None

    def _opened(self, file: StoredFile) -> LocalFile | RemoteFile:
        found = self._open.pop(file, None)
        if found is None:
            if len(self._open) >= self._limit:
                self._open.pop(next(iter(self._open))).close()
            found = open_file(file.path)
        self._open[file] = found
        return found

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
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


def open_files(threads: int, wanted: int = 0) -> int:
    """How many files each of so many threads may keep open: half of what the process may, shared out.

    wanted: how many each will read in turn. If the process may have that many open, it is made so.
    """
    try:
        import resource
    except ImportError:  # Windows
        return max(1, 256 // threads)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * threads * wanted
    if soft not in (hard, resource.RLIM_INFINITY) and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has a limit below the one it tells of
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    most = max(4096, needed // 2)  # nobody needs more
    whole = most if soft == resource.RLIM_INFINITY else min(most, soft // 2)
    return max(1, whole // threads)


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
