"""Where an output is built until it is whole: a hidden directory, which a run that was killed leaves to the next."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from pathlib import Path

from belay_cli.planning.target import Target, staging_prefix

try:
    import fcntl
except ImportError:  # Windows: no locks on directories, so nothing is cleaned up after a killed run
    fcntl = None  # type: ignore[assignment]


def staging_directory(target: Target) -> tuple[Path, int]:
    """A new directory on the target's disk, with a lock that says a living process owns it; -1 where there are none."""
    # A lock may be known to one machine only, so the machine is in the name and cleans up after itself alone.
    parent, prefix = target.place, f"{staging_prefix(target.path)}{socket.gethostname()}-"
    _remove_abandoned(parent, prefix)
    while True:
        directory = parent / f"{prefix}{secrets.token_hex(4)}"
        directory.mkdir()
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another run took it for abandoned
            lock = _lock(directory)
            if directory.exists():
                return directory, lock


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what runs that were killed left behind for the same target: nobody holds its lock."""
    for directory in [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]:
        with contextlib.suppress(OSError):
            lock = _lock(directory)
            if lock >= 0:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)


def _lock(directory: Path) -> int:
    """A descriptor that holds the lock, or -1 where there are no locks. Raises BlockingIOError if another holds it."""
    if fcntl is None:
        return -1
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor
