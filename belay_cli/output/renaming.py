"""Renames that the system makes in one step, where it can: never over something else, and two that change places."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# The kernel, or the file system, does not know such renames.
_CANNOT = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_AT_FDCWD = -100

_LINUX = {"new": 1, "exchange": 2}  # RENAME_NOREPLACE, RENAME_EXCHANGE of linux/fs.h
_DARWIN = {"new": 4, "exchange": 2}  # RENAME_EXCL, RENAME_SWAP of sys/stdio.h


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places at once. Returns False where that cannot be. Raises OSError."""
    return _renamed(one, other, "exchange")


def rename_new(source: Path, target: Path) -> None:
    """Rename a file, never over one that is there. Raises FileExistsError, and OSError with nothing changed."""
    if _renamed(source, target, "new"):
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        source.rename(target)
        return
    try:
        source.unlink()
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def _renamed(source: Path, target: Path, how: str) -> bool:
    rename = _system_rename()
    if rename is None:
        return False
    number = rename(os.fsencode(source), os.fsencode(target), how)
    if number in _CANNOT:
        return False
    if number:
        raise OSError(number, os.strerror(number), os.fspath(target))
    return True


@cache
def _system_rename() -> Callable[[bytes, bytes, str], int] | None:
    """The system's rename with a choice: paths and which of the two -> 0 or errno. None where there is none."""
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    name = "renameat2" if sys.platform == "linux" else "renamex_np"
    function = getattr(library, name, None)
    if function is None:  # a C library older than the kernel
        return None

    def rename(source: bytes, target: bytes, how: str) -> int:
        if sys.platform == "linux":
            failed = function(_AT_FDCWD, source, _AT_FDCWD, target, ctypes.c_uint(_LINUX[how]))
        else:
            failed = function(source, target, ctypes.c_uint(_DARWIN[how]))
        return ctypes.get_errno() if failed else 0

    return rename
