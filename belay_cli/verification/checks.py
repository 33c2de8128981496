"""What is asked of an output, and how far the asking has come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from belay_cli.checkpoints.checkpoint import Checkpoint

HELD, FAILED, NOT_CHECKED = "held", "failed", "not checked"


@dataclass(frozen=True)
class Check:
    """One thing that was asked of an output. `status` is HELD, FAILED or NOT_CHECKED."""

    name: str
    status: str
    detail: str
    tensor: str | None = None


Progress = Callable[[float], None]  # called with the share of the bytes that is done


class Counter:
    """Tensors that are done, as a share of all bytes. Threads count together."""

    def __init__(self, average: Checkpoint, progress: Progress) -> None:
        self._sizes = {name: tensor.nbytes for name, tensor in average.tensors.items()}
        self._total, self._done, self._progress = sum(self._sizes.values()) or 1, 0, progress
        self._lock = threading.Lock()

    def done(self, name: str) -> None:
        """Say that a tensor is done."""
        with self._lock:
            self._done += self._sizes.get(name, 0)
            self._progress(self._done / self._total)
