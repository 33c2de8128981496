"""Streams that are terminals, for screens to be looked at in this process."""

from __future__ import annotations

import io
import re

import pytest


class Terminal(io.StringIO):
    """What was printed to a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """Without colors and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def terminals(monkeypatch: pytest.MonkeyPatch, columns: int, **environment: str) -> tuple[Terminal, Terminal]:
    """stdout and stderr as terminals of so many columns."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    for name, value in {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    return out, err
