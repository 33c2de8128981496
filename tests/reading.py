"""Weights as tests look at them: each tensor with where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from belay_cli.checkpoints.unreadable import refuse_unreadable
from belay_cli.checkpoints.weights import Weights
from belay_cli.storage.files import Stored, StoredFile
from belay_cli.storage.pieces import StoredPieces


class FoundTensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: Stored | StoredPieces


@dataclass
class Found:
    tensors: list[FoundTensor]
    files: tuple[StoredFile, ...]
    step: int | None
    aliases: dict[str, str]
    notes: tuple[str, ...]
    beside: tuple[str, ...]


def plainly(weights: Weights, path: Path) -> Found:
    """What was read. Raises CheckpointError for what a plan would refuse, since nobody drops anything."""
    refuse_unreadable(path, weights.unreadable)
    tensors = [FoundTensor(t.name, t.dtype, t.shape, weights.stored(t.name)) for t in weights.tensors.values()]
    step = weights.step.step if weights.step else None
    return Found(tensors, weights.files, step, dict(weights.aliases), weights.notes, weights.beside)
