"""Positioned reads from the files that hold checkpoints.

How many stay open at once is bounded, because a series of two hundred checkpoints of thirty shards is more than
a process may have.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

from belay_cli.errors import CheckpointError

# One call moves at most 2,147,479,552 bytes on Linux.
_LARGEST_READ = 1 << 30


def open_to_read(path: Path) -> int:
    """A descriptor of the file. Raises CheckpointError with the reason in words."""
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise CheckpointError("is not a file", file=path)
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {reason(error)}", file=path) from error


def reason(error: OSError) -> str:
    """What the operating system says, without the path and the number."""
    return (error.strerror or str(error)).lower()


def read_into(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done : done + _LARGEST_READ]], offset + done)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {reason(error)}", file=path) from error
        if count == 0:
            raise CheckpointError(
                f"ends at byte {offset + done}, though its header promises more",
                file=path,
                hint="the file changed or is cut short; copy it again",
            )
        done += count


def read_bytes(descriptor: int, count: int, offset: int, path: Path) -> bytes:
    """`count` bytes from byte `offset`. The caller has checked that the file is that long."""
    buffer = bytearray(count)
    read_into(descriptor, memoryview(buffer), offset, path)
    return bytes(buffer)


class OpenFiles:
    """The files that one thread reads, kept open: at most `limit`, then the one used longest ago is closed.

    Each thread has its own, so that none closes what another is reading.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read_into(self, path: Path, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            descriptor = self._open[path] = open_to_read(path)
        self._open.move_to_end(path)
        read_into(descriptor, buffer, offset, path)

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])


def open_files(threads: int) -> int:
    """How many files each of so many threads may keep open: half of what the process may, shared out."""
    try:
        import resource
    except ImportError:  # Windows
        return max(1, 256 // threads)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    whole = 4096 if soft == resource.RLIM_INFINITY else min(4096, soft // 2)
    return max(1, whole // threads)
