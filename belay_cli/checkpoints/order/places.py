"""What the order of a checkpoint is read from: the names on its path, and its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.order import names
from belay_cli.storage.files import AnyPath

_LEVELS = 3  # a checkpoint's own name and those of the directories above it: global_step_10/actor/huggingface


class Place(NamedTuple):
    """What the order of a checkpoint is read from: the names on its path, its own first, and its step if known."""

    path: AnyPath
    name: str
    names: tuple[str, ...]
    step: int | None = None


def place_of(path: AnyPath, *, is_file: bool, name: str = "", step: int | None = None) -> Place:
    """The place of what lies there. `.` and what ends in `..` have the names of where they lead."""
    at = path.absolute() if path.name not in ("", "..") else path.resolve()
    own = names.stem_of(at.name) if is_file else at.name
    return Place(path, name or at.name, (own, at.parent.name, at.parent.parent.name)[:_LEVELS], step)


def places_of(checkpoints: Sequence[Checkpoint]) -> list[Place]:
    """The places of checkpoints."""
    return [place_of(c.path, is_file=c.directory is None, name=c.name, step=c.step) for c in checkpoints]
