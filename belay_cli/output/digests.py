"""SHA-256 of every tensor of an output, taken of most chunks while they are in the cache that they were made in."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

from belay_cli.engine.chunks import Part
from belay_cli.planning.layout import PlannedTensor

# Little enough to be in the page cache still, and what two cores hash while a fast disk takes half a gigabyte.
_LATER_BYTES = 384 << 20

ReadBack = Callable[[PlannedTensor, int, int], Iterable[bytes]]  # a tensor's bytes in its file, from one to another


class _Running:
    """The digest of a tensor so far, and the chunks that were written before their turn."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.taken = 0  # elements
        self.early: dict[int, Part] = {}  # by their first element


class TensorDigests:
    """Digests of one output's tensors. Chunks come from several threads, and a digest wants them in order.

    A chunk in its turn is taken from memory. One that comes early is read back from its file, where it is already, by
    the thread whose chunk it waited for; so no thread waits for another. The tensors in `later` are not taken until
    they are asked for.
    """

    def __init__(self, read_back: ReadBack, later: Collection[str] = ()) -> None:
        self._read_back = read_back
        self._later = later
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._whole: dict[str, str] = {}  # of tensors that came in one piece

    def update(self, part: Part, data: memoryview) -> None:
        """Take a chunk that has been written, now or when everything before it in its tensor has been taken."""
        if part.elements == part.tensor.elements:
            self._whole[part.tensor.name] = hashlib.sha256(data).hexdigest()
            return
        if part.tensor.name in self._later:
            return
        with self._lock:
            running = self._running.setdefault(part.tensor.name, _Running())
            if running.taken < part.start:
                running.early[part.start] = part
                return
        running.sha.update(data)  # others may go on with other tensors; for this one it is nobody else's turn
        while early := self._after(part, running):
            part = early
            self._take_back(running, part.tensor, part.start, part.start + part.elements)

    def _after(self, part: Part, running: _Running) -> Part | None:
        """Note that a chunk was taken. Returns the one after it, if that was written before."""
        with self._lock:
            running.taken = part.start + part.elements
            return running.early.pop(running.taken, None)

    def _take_back(self, running: _Running, tensor: PlannedTensor, start: int, end: int) -> None:
        for data in self._read_back(tensor, start, end):
            running.sha.update(data)

    def known(self, tensor: PlannedTensor) -> str:
        """The digest of a tensor that came in one piece; empty for others."""
        return self._whole.get(tensor.name, "")

    def of(self, tensor: PlannedTensor) -> str:
        """The digest (hex) of a tensor that is written whole; what was not taken of it is read back."""
        if whole := self.known(tensor):
            return whole
        running = self._running.get(tensor.name) or _Running()
        if running.taken < tensor.elements:
            self._take_back(running, tensor, running.taken, tensor.elements)
        return running.sha.hexdigest()


def to_take_later(tensors: Sequence[PlannedTensor]) -> frozenset[str]:
    """The last tensors of an output: their digests cost next to nothing while a disk is being waited for."""
    names: set[str] = set()
    room = _LATER_BYTES
    for tensor in reversed(tensors):
        room -= tensor.nbytes
        if room < 0:
            break
        names.add(tensor.name)
    return frozenset(names)
