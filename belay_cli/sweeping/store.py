"""The directory of a sweep: what is in it, and whether it is of this series.

sweep.json             the result, and of which series it is
sweep.png, sweep.svg   the metric over the mean lag
best, best.safetensors     the winner
candidates/            averages that wait for their evaluation
evaluations/           what each evaluation said: see evaluation
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belay_cli.errors import CheckpointError, OutputError, UsageError
from belay_cli.formats import SUFFIX
from belay_cli.storage.json_file import read_json

try:
    import fcntl
except ImportError:  # Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

RESULT = "sweep.json"
SCHEMA = 1
_PART = f".{RESULT}.part"  # of a result that is being written
_OURS = {RESULT, "sweep.png", "sweep.svg", "best", f"best{SUFFIX}", "candidates", "evaluations"}


@dataclass(frozen=True)
class Store:
    """A sweep's directory. `files`: whether candidates are single files, as average writes them for files."""

    path: Path
    files: bool

    def candidate(self, name: str) -> Path:
        """Where a candidate waits."""
        return self.path / "candidates" / (name + (SUFFIX if self.files else ""))

    @property
    def best(self) -> Path:
        """Where the winner goes."""
        return self.path / ("best" + (SUFFIX if self.files else ""))

    def evaluation(self, name: str, number: int, kind: str = "") -> Path:
        """The directory of one evaluation of a candidate; they count from 1."""
        return self.path / "evaluations" / (f"{name}.{kind}" if kind else name) / str(number)

    @contextlib.contextmanager
    def opened(self, series: str, *, overwrite: bool) -> Iterator[None]:
        """Make the directory, or go on in it, and keep others out for as long as this lasts.

        Raises OutputError if it is another sweep's, or something else's, or if a sweep is at work in it.
        """
        self._make()
        descriptor = os.open(self.path, os.O_RDONLY) if fcntl is not None else -1
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputError("another sweep is at work in it", file=self.path, hint="wait for it") from None
                except OSError:
                    pass  # a file system without locks
            self._begin(series, overwrite)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _make(self) -> None:
        if self.path.is_file() or self.path.suffix == SUFFIX:
            raise UsageError(f"-o {self.path} is a file, and a sweep is a directory", hint="-o sweep")
        self.path.mkdir(parents=True, exist_ok=True)

    def _begin(self, series: str, overwrite: bool) -> None:
        entries = {entry.name for entry in self.path.iterdir()} - {_PART}
        known = self._result()
        if entries and known is None:
            raise OutputError("exists, and is no sweep", file=self.path, hint="write somewhere else: -o")
        if known is not None and known.get("series_id") != series:
            if not overwrite:
                raise OutputError(
                    "holds the sweep of other checkpoints, or of another --dtype or policy",
                    file=self.path,
                    hint="say --overwrite, or write somewhere else: -o",
                )
            self._clear(entries)
        self.write(series, {} if known is None or overwrite else known)

    def _result(self) -> dict[str, Any] | None:
        try:
            found = read_json(self.path / RESULT)
        except CheckpointError:
            return None
        return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None

    def _clear(self, entries: set[str]) -> None:
        """Remove what a sweep wrote, what says so last; anything else stays."""
        for name in sorted(entries & _OURS, key=lambda name: name == RESULT):
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def write(self, series: str, result: Mapping[str, Any]) -> None:
        """Put the result of the sweep of this series in place, whole."""
        part = self.path / _PART
        told = {"schema": SCHEMA, "series_id": series} | dict(result)
        text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self.path / RESULT)

    def remove_candidate(self, name: str) -> None:
        """Let go of a candidate's weights."""
        _remove(self.candidate(name))

    def remove_best(self) -> None:
        """Let go of an earlier winner."""
        _remove(self.best)

    def tidy(self) -> None:
        """Remove the directory of candidates if none is left."""
        place = self.path / "candidates"
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def slug(label: str) -> str:
    """A label as the name of a file: `ema --half-life 10%` is `ema-half-life-10pct`.

    With a digest behind it where signs or an end are lost, so that no two labels have one name.
    """
    text = label.replace("%", "pct").replace(" --", "-").replace(" ", "-")
    kept = re.sub(r"[^A-Za-z0-9.=-]+", "_", text).strip("-._")[:80]
    return kept if kept == text else f"{kept}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
