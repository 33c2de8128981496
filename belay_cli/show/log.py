"""`--log-file FILE`: what a terminal would show, as plain text with the time of each line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from belay_cli.errors import OutputError


def _here() -> datetime:
    return datetime.now().astimezone()


class Log:
    """A file to which lines are appended, from any thread; it is closed in between, and can be followed or moved.

    now: the time with its zone. Raises OutputError if the file cannot be appended to.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = _here) -> None:
        self._path, self._now, self._lock = path, now, threading.Lock()
        try:
            path.open("a").close()
        except OSError as error:
            hint = "write it somewhere else: --log-file"
            raise OutputError(f"cannot be written: {error.strerror}", file=path, hint=hint) from error

    def write(self, text: str) -> None:
        """Append the lines of a text, but for empty ones."""
        stamp = self._now().isoformat(sep=" ", timespec="seconds")
        lines = [f"{stamp}  {line.rstrip()}\n" for line in text.splitlines() if line.strip()]
        with self._lock, self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(lines))
