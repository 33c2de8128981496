"""Whether what a replay reads is what was saved: torch files have a CRC-32 for each of their storages.

Chunks come from several threads, and in any order. The CRC-32 of each is taken while it is in the cache; when all bytes
of a storage have been read, theirs are put together. A storage of which a run reads only a part is not checked (a view,
the share of one of several processes, what an earlier run has left), nor are tensors that lie in several pieces.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict

from belay_cli.engine.checksum import combine
from belay_cli.engine.chunks import Chunk
from belay_cli.errors import CheckpointError
from belay_cli.planning import Plan
from belay_cli.storage.files import Stored, StoredFile

_Part = tuple[int, int, int]  # where in the file it begins, its bytes, their CRC-32


class Records:
    """The storages of a plan's checkpoints whose CRC-32 is known, and what has been read of each."""

    def __init__(self, plan: Plan) -> None:
        files = {file for t in (*plan.read_checkpoints, -1) for file in plan.sources[t].files if file.checksums}
        self._begins = {file: sorted(file.checksums) for file in files}
        self._parts: dict[tuple[StoredFile, int], list[_Part]] = defaultdict(list)
        self._taken: dict[tuple[StoredFile, int], int] = defaultdict(int)  # bytes of these
        self._lock = threading.Lock()

    def concern(self, chunk: Chunk) -> bool:
        """Whether a chunk has a source of which that is known."""
        return bool(self._begins) and any(
            isinstance(source.stored, Stored) and source.stored.file in self._begins for source in chunk.run.sources
        )

    def note(self, chunk: Chunk, place: int, crc: int) -> None:
        """Take the CRC-32 of a chunk's bytes in its source at `place`.

        Raises CheckpointError if its storage has been read whole by now, and is not as it was saved.
        """
        stored = chunk.run.sources[place].stored
        if not isinstance(stored, Stored) or stored.file not in self._begins:
            return
        at, count = stored.offset + chunk.begins(chunk.source_dtype), chunk.nbytes(chunk.source_dtype)
        begins = self._begins[stored.file]
        i = bisect_right(begins, at) - 1
        if i < 0:
            return
        nbytes, expected = stored.file.checksums[begins[i]]
        if at + count > begins[i] + nbytes:  # it lies between storages that were looked for
            return
        with self._lock:
            storage = stored.file, begins[i]
            self._parts[storage].append((at, count, crc))
            self._taken[storage] += count
            if self._taken[storage] < nbytes:
                return
            parts = self._parts.pop(storage)
            del self._taken[storage]
        found = _together(sorted(parts), begins[i], nbytes)
        if found is not None and found != expected:
            name = chunk.part.tensor.known_as
            raise CheckpointError(
                f"{name!r} is not as it was saved: the CRC-32 of its bytes is another",
                file=stored.file.path,
                tensor=name,
                hint="copy the file again, or leave the checkpoint out",
            )


def _together(parts: list[_Part], begin: int, nbytes: int) -> int | None:
    """The CRC-32 of parts that lie side by side; None where they are not all of so many bytes, each once."""
    crc, at = 0, begin
    for start, count, own in parts:
        if start != at:
            return None
        crc, at = combine(crc, own, count), at + count
    return crc if at == begin + nbytes else None
