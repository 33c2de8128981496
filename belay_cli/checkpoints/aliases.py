"""Several names of one tensor, as tied weights have: one tensor for a plan, as long as all names are meant alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.weights import Weights


def untied(checkpoints: Sequence[Checkpoint], action: Callable[[str, str], str]) -> tuple[Checkpoint, ...]:
    """Checkpoints in which a name has a tensor of its own if it is not tied everywhere, or other things become of it.

    action: what becomes of a tensor of this name and dtype code.
    """
    alone = {name for checkpoint in checkpoints for name in _alone(checkpoint, checkpoints, action)}
    return tuple(_with_own(checkpoint, alone) if alone else checkpoint for checkpoint in checkpoints)


def _alone(checkpoint: Checkpoint, others: Sequence[Checkpoint], action: Callable[[str, str], str]) -> list[str]:
    weights = checkpoint.weights
    found = []
    for name, kept in weights.aliases.items():
        dtype = weights.tensors[kept].dtype if kept in weights.tensors else None
        separate = any(name in other.tensors or other.weights.aliases.get(name, kept) != kept for other in others)
        if dtype is not None and (separate or action(name, dtype) != action(kept, dtype)):
            found.append(name)
    return found


def _with_own(checkpoint: Checkpoint, names: set[str]) -> Checkpoint:
    found = {name: kept for name, kept in checkpoint.weights.aliases.items() if name in names}
    return replace(checkpoint, weights=_own(checkpoint.weights, found)) if found else checkpoint


def _own(weights: Weights, names: dict[str, str]) -> Weights:
    if not names:
        return weights
    parts = {folder: _own(part, weights.within(folder, names)) for folder, part in weights.parts.items()}
    tensors = {name: weights.tensors[kept]._replace(name=name) for name, kept in names.items()}
    places = None if weights.places is None else {n: weights.places[kept] for n, kept in names.items()}
    return replace(
        weights,
        tensors={**weights.tensors, **tensors},
        places=None if weights.places is None or places is None else {**weights.places, **places},
        aliases={name: kept for name, kept in weights.aliases.items() if name not in names},
        parts=parts,
    )
