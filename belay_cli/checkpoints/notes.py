"""Notes about checkpoints: what holds for many of them is said once."""

from __future__ import annotations

from collections.abc import Sequence

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.formats.text import listed

_APART = 2  # notes of one kind that are said one by one


def notes_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The notes of all checkpoints, each once; of one that does not hold for all, with the names of those it is of."""
    names: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        for note in dict.fromkeys(checkpoint.notes):
            names.setdefault(note, []).append(checkpoint.name)
    return [note if len(own) == len(checkpoints) else f"{note} (in {listed(own)})" for note, own in names.items()]


def counted_once(pairs: Sequence[tuple[Checkpoint, Checkpoint]], said: str) -> list[str]:
    """Notes about checkpoints that are given as others too, one by one, or about many in one sentence.

    said: a sentence with two places, such as `{} is {} again`.
    """
    if len(pairs) <= _APART:
        return [f"{said.format(one.path, other.path)}; it counts once" for one, other in pairs]
    names = listed([one.name for one, _ in pairs])
    return [f"{len(pairs)} checkpoints are others again, and count once: {names}"]
