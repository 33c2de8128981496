"""SHA-256 of every tensor of an output, taken of each chunk while it is in the cache that it was made in."""

from __future__ import annotations

import hashlib
import threading

from belay_cli.engine.chunks import Chunk
from belay_cli.plan.layout import PlannedTensor


class TensorDigests:
    """Digests of one output's tensors. Chunks come from several threads, and a digest wants them in order.

    A thread whose chunk comes early waits for its turn. Chunks are handed out in order, so the one before is
    always in somebody's hands already, and the wait is the time of one hash.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._next: dict[str, int] = {}  # tensor name -> the element that comes next
        self._running: dict[str, hashlib._Hash] = {}
        self._done: dict[str, str] = {}
        self._stopped = False

    def update(self, chunk: Chunk, data: memoryview) -> None:
        """Take a chunk's bytes, when everything before it in its tensor has been taken. Nothing after `stop`."""
        name = chunk.tensor.name
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._next.get(name, 0) == chunk.start)
            if self._stopped:
                return
            digest = self._running.setdefault(name, hashlib.sha256())
        digest.update(data)  # others may go on with other tensors; for this one it is nobody else's turn
        with self._turn:
            self._next[name] = chunk.start + chunk.elements
            if self._next[name] == chunk.tensor.elements:
                self._done[name] = self._running.pop(name).hexdigest()
            self._turn.notify_all()

    def stop(self) -> None:
        """Let nobody wait any longer: a chunk that somebody waits for will not come."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def of(self, tensor: PlannedTensor) -> str:
        """The digest (hex) of a tensor all of whose chunks were taken."""
        return self._done[tensor.name] if tensor.elements else hashlib.sha256().hexdigest()
