"""Where an output is built until it is whole: a hidden directory on its disk, of one writer at a time.

    lock       held while somebody writes
    new/       the output, as far as it is built
    journal-*  which ranges of it are finished
    moves.json what is about to be put in place, see placement
    old/       files of an older output, on their way out

Its name follows from the output's, so that a run that was killed is found by the next.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from belay_cli.output.lock import NAME as LOCK
from belay_cli.output.lock import Lock
from belay_cli.planning.target import workplace_name


class Workplace:
    """The hidden directory for one output, locked. Raises OutputError if another process has it, and OSError."""

    def __init__(self, place: Path, output: Path) -> None:
        self.path = place / workplace_name(output)
        is_new = False
        while True:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
                is_new = True
            try:
                self._lock = Lock(self.path, output)
                break
            except FileNotFoundError:  # whoever had it was done, and removed it
                if not place.is_dir():
                    raise
            except BaseException:
                if is_new:
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    @property
    def new(self) -> Path:
        """What is built."""
        return self.path / "new"

    @property
    def old(self) -> Path:
        """What it replaces, on its way out."""
        return self.path / "old"

    @property
    def moves(self) -> Path:
        """What is about to be moved."""
        return self.path / "moves.json"

    def empty(self) -> None:
        """Remove all that is in it but the lock."""
        for entry in list(self.path.iterdir()):
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def remove(self) -> None:
        """Remove it and let others write, as far as that can be done. May be called again."""
        if not self._lock.held:  # removed before; by now it may be that of somebody else
            return
        # What says that this is over goes first, and the lock last.
        with contextlib.suppress(OSError):
            self.new.rename(self.old)
        with contextlib.suppress(OSError):
            self.moves.unlink()
        for entry in sorted(self._entries(), key=lambda entry: entry.name == LOCK):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    entry.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self.release()

    def _entries(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return list(self.path.iterdir())
        return []

    def release(self) -> None:
        """Let others write; what is there is left to them."""
        self._lock.release()


def left_for(target: Path) -> Workplace | None:
    """The workplace that an earlier run left for this output, locked; None if there is none.

    Raises OutputError if another process has it.
    """
    for place in dict.fromkeys((target.absolute().parent, target.resolve().parent, target.resolve())):
        if (place / workplace_name(target)).is_dir():
            return Workplace(place, target)
    return None


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a directory, are on the disk. Raises OSError."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
