"""A file of this machine, read by position."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from belay_cli.errors import CheckpointError

# One call moves at most 2,147,479,552 bytes on Linux.
_LARGEST_READ = 1 << 30

# Without O_NONBLOCK a pipe would be waited for until somebody writes to it; a file does not mind.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))


class LocalFile:
    """A file of this machine, open for positioned reads by one thread or several."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError with the reason in words."""
        self._path = path
        try:
            self.descriptor = os.open(path, _FLAGS)
        except OSError as error:
            raise CheckpointError(f"cannot be opened: {reason(error)}", file=path) from error
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError("is not a file", file=path)
        self.size, self.modified = status.st_size, status.st_mtime_ns

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it ends before that."""
        done, total = 0, buffer.nbytes
        while done < total:
            # As a rule one call fills the buffer whole: threads share the interpreter, so each step here counts.
            part = buffer if not done and total <= _LARGEST_READ else buffer[done : done + _LARGEST_READ]
            try:
                count = os.preadv(self.descriptor, [part], offset + done)
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
        try:
            data = os.pread(self.descriptor, count, offset)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {reason(error)}", file=self._path) from error
        if len(data) < count:  # more than one call moves, or more than there is
            buffer = bytearray(count)
            self.read_into(memoryview(buffer), offset)
            data = bytes(buffer)
        return data

    def close(self) -> None:
        """Close it, once."""
        os.close(self.descriptor)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reason(error: OSError) -> str:
    """What the operating system says, without the path and the number."""
    return (error.strerror or str(error)).lower()
