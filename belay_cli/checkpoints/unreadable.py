"""Tensors that are no plain arrays, such as sparse ones: refused by name, unless somebody said to leave them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from belay_cli.errors import CheckpointError, glob_for
from belay_cli.formats.text import short
from belay_cli.storage.files import AnyPath


def refuse_unreadable(
    path: AnyPath, unreadable: Mapping[str, str], dropped: Callable[[str], bool] = lambda name: False
) -> None:
    """Raise CheckpointError for the first of these tensors, by name and what it is, that is not dropped."""
    for name, what in unreadable.items():
        if not dropped(name):
            raise CheckpointError(
                f"has a tensor that belay does not read: {short(name)} is {what}",
                file=path,
                tensor=name,
                hint=f"save a plain tensor in its place, or leave it out: --drop {glob_for(name)}",
            )
