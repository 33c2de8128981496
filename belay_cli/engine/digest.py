"""SHA-256 of every tensor of an output, taken of each chunk while it is in the cache that it was made in."""

from __future__ import annotations

import hashlib
import threading

from belay_cli.engine.chunks import Chunk
from belay_cli.plan.layout import PlannedTensor


class TensorDigests:
    """Digests of one output's tensors. Chunks come from several threads, and a digest wants them in order.

    A chunk that comes early is left here, a copy of its bytes, for the thread whose chunk it waits for; at most
    `room` of them, then a thread waits. Chunks are handed out in order, so the one before is always in
    somebody's hands already.
    """

    def __init__(self, room: int) -> None:
        self._turn = threading.Condition()
        self._next: dict[str, int] = {}  # tensor name -> the element that comes next
        self._early: dict[int, tuple[Chunk, bytes]] = {}  # by the number of the chunk
        self._room = room
        self._running: dict[str, hashlib._Hash] = {}
        self._done: dict[str, str] = {}
        self._stopped = False

    def update(self, chunk: Chunk, data: memoryview) -> None:
        """Take a chunk's bytes, now or when everything before it in its tensor has been taken."""
        name = chunk.tensor.name
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._is_next(chunk) or len(self._early) < self._room)
            if self._stopped:
                return
            if not self._is_next(chunk):
                self._early[chunk.number] = (chunk, bytes(data))
                return
            digest = self._running.setdefault(name, hashlib.sha256())
        digest.update(data)  # others may go on with other tensors; for this one it is nobody else's turn
        while early := self._taken(chunk):
            chunk, content = early
            digest.update(content)

    def _is_next(self, chunk: Chunk) -> bool:
        return self._next.get(chunk.tensor.name, 0) == chunk.start

    def _taken(self, chunk: Chunk) -> tuple[Chunk, bytes] | None:
        """Note that a chunk was taken. Returns the one after it, if that came early."""
        name = chunk.tensor.name
        with self._turn:
            self._turn.notify_all()
            self._next[name] = chunk.start + chunk.elements
            if self._next[name] < chunk.tensor.elements:
                return self._early.pop(chunk.number + 1, None)
            self._done[name] = self._running.pop(name).hexdigest()
            return None

    def stop(self) -> None:
        """Let nobody wait any longer: a chunk that somebody waits for will not come."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def of(self, tensor: PlannedTensor) -> str:
        """The digest (hex) of a tensor all of whose chunks were taken."""
        return self._done[tensor.name] if tensor.elements else hashlib.sha256().hexdigest()
