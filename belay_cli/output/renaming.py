"""Renames that the system makes in one step, where it can: never over something else, and two that change places.

A network file system can lose the reply of a call that has done its work. So where one fails, what counts is where the
file is.
"""

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

Identity = tuple[int, int] | None

_LINUX = {"new": 1, "exchange": 2}  # RENAME_NOREPLACE, RENAME_EXCHANGE of linux/fs.h
_DARWIN = {"new": 4, "exchange": 2}  # RENAME_EXCL, RENAME_SWAP of sys/stdio.h


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory, over what may be there. Raises OSError with nothing changed."""
    was = identity(source)
    try:
        source.replace(target)
    except OSError:
        if not _has_moved(was, source, target):
            raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places at once. Returns False where that cannot be.

    Raises OSError with nothing changed.
    """
    was = identity(one), identity(other)
    try:
        return _renamed(one, other, "exchange")
    except OSError:
        if (identity(other), identity(one)) != was:
            raise
        return True


def rename_new(source: Path, target: Path) -> None:
    """Rename a file, never over one that is there. Raises FileExistsError, and OSError with nothing changed."""
    was = identity(source)
    try:
        if _renamed(source, target, "new"):
            return
    except OSError:
        if not _has_moved(was, source, target):
            raise
        return
    _link_and_unlink(source, target, was)


def _link_and_unlink(source: Path, target: Path, was: Identity) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if identity(target) != was:
            if isinstance(error, FileExistsError):
                raise
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            rename(source, target)  # a file system without hard links
            return
    with contextlib.suppress(OSError):  # it lies in a directory that is removed afterwards
        source.unlink()


def identity(path: Path) -> Identity:
    """What a file or directory remains, wherever it is moved on its disk; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_moved(was: Identity, source: Path, target: Path) -> bool:
    return was is not None and identity(target) == was and identity(source) != was


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
