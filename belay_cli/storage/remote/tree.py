"""What lies below a URL, as one listing had it."""

from __future__ import annotations

import threading
from pathlib import Path

from belay_cli.storage.remote.source import Entry, Reader, Refusal, RemoteSource

_KEPT_TEXT = 1_000_000  # bytes of a file that stays in memory


class Tree:
    """What lies below one URL, listed once. `given` is False for what nobody named, such as what holds a checkpoint."""

    def __init__(self, source: RemoteSource, *, given: bool = True) -> None:
        self.source, self.given = source, given
        self._lock = threading.RLock()
        self._files: dict[str, Entry] | None = None
        self._directories: dict[str, set[str]] = {}
        self._readers: dict[str, Reader | Path] = {}
        self._texts: dict[str, bytes] = {}

    @property
    def files(self) -> dict[str, Entry]:
        """By name relative to the URL, `""` if that is a file. Raises CheckpointError."""
        with self._lock:
            if self._files is None:
                found = self._listed()
                for name in found:
                    self._enter(name)
                self._files = found
            return self._files

    def _listed(self) -> dict[str, Entry]:
        try:
            return self.source.listing()
        except Refusal as refusal:
            if refusal.absent or not self.given:
                return {}
            raise

    def _enter(self, name: str) -> None:
        while name:
            holder, _, last = name.rpartition("/")
            below = self._directories.setdefault(holder, set())
            if last in below:
                return
            below.add(last)
            name = holder

    def directory(self, name: str) -> set[str] | None:
        """The names in a directory, None if it is none."""
        found = self._directories.get(name) if self.files else None
        return None if name in self.files else found

    def reader(self, name: str) -> Reader | Path:
        """Of a file that is there: one for everybody, so that it is found once."""
        with self._lock:
            if name not in self._readers:
                self._readers[name] = self.source.reader(name, self.files[name])
            return self._readers[name]

    def read(self, name: str) -> bytes:
        """A file whole. A small one is kept, because configurations are read more than once."""
        if name in self._texts:
            return self._texts[name]
        reader, buffer = self.reader(name), bytearray(self.files[name].size)
        if isinstance(reader, Path):
            return reader.read_bytes()
        reader.read_into(memoryview(buffer), 0)
        text = bytes(buffer)
        if len(text) <= _KEPT_TEXT:
            self._texts[name] = text
        return text
