"""`--log-file FILE`: what a terminal would show, as plain text with the time of each line."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from belay_cli.errors import OutputError

_LOOKED_AT = 4096  # bytes
_NO_LOGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".yaml", ".yml", ".py", ".png", ".svg")


def _here() -> datetime:
    return datetime.now().astimezone()


def appendable(path: Path, flag: str) -> None:
    """Raise OutputError if the file cannot be appended to, or is not text that grows. No file is made.

    A checkpoint or a configuration that is named by mistake would be ruined by one line more.
    """
    hint = f"give another file: {flag}"
    try:
        begins = _beginning(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", file=path, hint=hint) from error
    if b"\0" in begins or begins.lstrip()[:1] in (b"{", b"[") or path.suffix.lower() in _NO_LOGS:
        raise OutputError("is no text that lines can be added to", file=path, hint=hint)


def _beginning(path: Path) -> bytes:
    """The first bytes of a file that can be appended to; none of a new one. Raises OSError if nothing can."""
    if not path.exists():
        with tempfile.TemporaryFile(dir=path.resolve().parent):  # which has no name: nothing is left of it
            return b""
    with path.open("a+b") as file:
        file.seek(0)
        return file.read(_LOOKED_AT) if path.is_file() else b""  # a device, or a pipe, has no beginning


class Log:
    """A file to which lines are appended, from any thread; it is closed in between, and can be followed or moved.

    now: the time with its zone. Raises OutputError if the file cannot be appended to.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = _here) -> None:
        self._path, self._now, self._lock, self._broken = path, now, threading.Lock(), False
        appendable(path, "--log-file")

    def write(self, text: str) -> None:
        """Append the lines of a text, but for empty ones."""
        stamp = self._now().isoformat(sep=" ", timespec="seconds")
        lines = [f"{stamp}  {line.rstrip()}\n" for line in text.splitlines() if line.strip()]
        with self._lock:
            try:
                with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("".join(lines))
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Say once that the log is cut short; the work that it tells of goes on."""
        if not self._broken:
            self._broken = True
            sys.stderr.write(f"warning: {self._path} cannot be written any more: {error.strerror}\n")
