"""Which tensors are not the same in every checkpoint, for those that are not averaged: counters, masks, indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.storage import OpenFiles

_LARGEST = 1 << 20  # bytes of a tensor that is compared; integers that mean something by themselves are small


def differing(checkpoints: Sequence[Checkpoint], names: Iterable[str]) -> list[str]:
    """Those of the named tensors that differ in some checkpoint from the last one; large ones are passed over."""
    last = checkpoints[-1]
    found = []
    with OpenFiles(limit=16) as files:
        for name in names:
            if last.tensors[name].nbytes > _LARGEST:
                continue
            kept = _content(last, name, files)
            if any(name in c.tensors and _content(c, name, files) != kept for c in checkpoints[:-1]):
                found.append(name)
    return found


def _content(checkpoint: Checkpoint, name: str, files: OpenFiles) -> bytes:
    buffer = bytearray(checkpoint.tensors[name].nbytes)
    checkpoint.stored(name).read_into(files, memoryview(buffer), 0)
    return bytes(buffer)
