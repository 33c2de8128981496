"""One writer at a time: a lock that ends with the process that holds it.

It is a lock of the system (flock) on a file in the directory that an output is built in. On NFS Linux makes it a lock
of the server, known to all its clients, and freed when a client is gone. Where a file system has no locks at all
(Lustre mounted without them), the file's text says who holds it: on this machine that is checked against the processes
that live, and of another machine belay cannot know, so it asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from belay_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock"
_ELSEWHERE = "wait until it is done, or write somewhere else: -o"


class Lock:
    """The lock of a directory, held from the moment it is made until `release`."""

    def __init__(self, directory: Path, output: Path) -> None:
        """Raises OutputError for `output` if another process holds it, OSError if there can be no such file."""
        self._path, self._output = directory / NAME, output
        while not self._opened():
            pass  # the one who held it was done, and removed it

    def _opened(self) -> bool:
        """Open and take it; False if it is no longer the file of that name."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            self._take()
            if self._is_still_there():
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(_this_process()).encode() + b"\n", 0)
                return True
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    def _take(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._held(self._owner()) from None
            except OSError:  # no locks here
                pass
            else:
                return
        owner = self._owner()
        if owner and owner.get("host") != socket.gethostname():
            raise OutputError(
                f"may be being written by belay on {owner.get('host')}, and this file system has no locks to tell by",
                file=self._output,
                hint=f"if nothing writes it: rm -r {self._path.parent}",
            )
        if owner and owner != _this_process() and _started(owner.get("process")) == owner.get("started") is not None:
            raise self._held(owner)

    def _owner(self) -> dict[str, object]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(os.pread(self._descriptor, 4096, 0))
            return found if isinstance(found, dict) else {}
        return {}

    def _held(self, owner: dict[str, object]) -> OutputError:
        who = f" (process {owner['process']} on {owner.get('host')})" if "process" in owner else ""
        return OutputError(f"is being written by another belay{who}", file=self._output, hint=_ELSEWHERE)

    def _is_still_there(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        return False

    @property
    def held(self) -> bool:
        """Whether it is held still."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let others write. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _this_process() -> dict[str, object]:
    return {"host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid())}


def _started(process: object) -> str | None:
    """When a process of this machine started, in its own count; None if it does not live, or that cannot be known."""
    if not isinstance(process, int):
        return None
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return "?"
    return "?"
