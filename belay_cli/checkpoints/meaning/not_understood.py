"""Objects of classes that belay does not know: beside the weights they are named, in their place they are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from belay_cli.checkpoints.meaning.saved import KEYS
from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import NoWeights, Unreadable
from belay_cli.formats.text import listed, short
from belay_cli.formats.torch.hidden import first_names, holds_tensors, needs_more
from belay_cli.formats.unknown import Unknown
from belay_cli.storage.files import AnyPath


def in_place_of(error: NoWeights, path: AnyPath, unknown: Sequence[str]) -> NoWeights:
    """The error where no weights are found: that they lie in what is unknown, unless a key would lead to others."""
    return needs_more(path, unknown) if unknown and "--state-key" not in (error.hint or "") else error


def refuse_hidden(root: Any) -> None:
    """Raise CheckpointError, without a file, if what lies under a key of weights is not understood but has tensors."""
    for key in KEYS if isinstance(root, dict) else ():
        value = root.get(key)
        if isinstance(value, Unknown) and holds_tensors(value):
            raise CheckpointError(
                f"holds tensors under {short(key)} in an object of a class that belay does not know: "
                f"{listed([value.name])}",
                hint="say where the weights are: --state-key; or save them alone: torch.save(model.state_dict(), path)",
            )


def with_unreadable(entries: Mapping[str, Any], leaves: tuple[type, ...]) -> Mapping[str, Any]:
    """A state dict in which what may be a tensor, but is not understood, is one that cannot be read."""
    seen: set[int] = set()
    found = {}
    for name, value in entries.items():
        if isinstance(value, leaves) or name == "_metadata" or "_extra_state" in name.split("."):
            continue
        if isinstance(value, Unknown):
            found[name] = Unreadable(f"of a class that belay does not know: {listed([value.name])}")
        elif holds_tensors(value, seen):
            found[name] = Unreadable("inside an object of a class that belay does not know")
    return {name: found.get(name, value) for name, value in entries.items()} if found else entries


def note(names: Sequence[str]) -> list[str]:
    """What was not understood and is not needed, for a person."""
    are = "which is not needed" if len(names) == 1 else "which are not needed"
    return [f"does not understand {first_names(names)}, {are}"] if names else []
