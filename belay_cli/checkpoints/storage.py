"""Positioned reads from the files that hold checkpoints.

One descriptor serves all threads; how many stay open at once is bounded, because a series of two hundred
checkpoints of thirty shards is more than a process may have.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from belay_cli.errors import CheckpointError

# One call moves at most 2,147,479,552 bytes on Linux.
_LARGEST_READ = 1 << 30


def open_to_read(path: Path) -> int:
    """A descriptor of the file. Raises CheckpointError with the reason in words."""
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
    """Descriptors of files being read, shared by threads; at most `limit` of the idle ones are kept open."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = _descriptors_to_keep() if limit is None else limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, tuple[int, int]] = OrderedDict()  # path -> descriptor, users

    @contextlib.contextmanager
    def descriptor(self, path: Path) -> Iterator[int]:
        """The file's descriptor, valid inside the `with`."""
        with self._lock:
            descriptor, users = self._open.pop(path, (-1, 0))
            if descriptor < 0:
                descriptor = open_to_read(path)
            self._open[path] = (descriptor, users + 1)
            self._close_idle(self._limit)
        try:
            yield descriptor
        finally:
            with self._lock:
                descriptor, users = self._open[path]
                self._open[path] = (descriptor, users - 1)

    def _close_idle(self, keep: int) -> None:
        excess = len(self._open) - keep
        idle = [path for path, (_, users) in self._open.items() if users == 0] if excess > 0 else []
        for path in idle[:excess]:
            os.close(self._open.pop(path)[0])

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._close_idle(0)


def _descriptors_to_keep() -> int:
    """Half of what the process may have open, the rest being the caller's."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))
