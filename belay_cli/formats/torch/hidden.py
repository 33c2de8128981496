"""Tensors that lie in what is not understood: they may be weights, but nobody knows what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from belay_cli.formats.contents import NoWeights, Unreadable
from belay_cli.formats.text import listed
from belay_cli.formats.torch.objects import Storage, View
from belay_cli.formats.unknown import Unknown
from belay_cli.storage.files import AnyPath

_SHARDED = "torch.distributed."
_GATHER = "it is one rank's part; save the whole: get_model_state_dict with StateDictOptions(full_state_dict=True)"
_SAVE_ALONE = (
    "load it where you trust it, and save the weights alone: torch.save(model.state_dict(), path); "
    "belay never runs what a file contains"
)

_MAY_HOLD = (dict, list, tuple, set, frozenset, Unknown)


def holds_tensors(value: Any, seen: set[int] | None = None) -> bool:
    """Whether tensors lie anywhere in a value, also in what is unknown: there they may be weights that nobody reads.

    seen: what was looked at before, by identity, and held none; one set for all values of an object keeps this linear.
    """
    seen = set() if seen is None else seen
    stack = [value] if id(value) not in seen else []
    seen.add(id(value))
    while stack:
        value = stack.pop()
        if isinstance(value, (View, Unreadable, Storage)):
            return True
        for part in _parts(value):
            if id(part) not in seen and isinstance(part, _MAY_HOLD):
                seen.add(id(part))
                stack.append(part)
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Unknown):
        return value.inside or ()
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def first_names(names: Sequence[str]) -> str:
    """Names of a file's own, the first few of many."""
    return listed(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def needs_more(path: AnyPath, names: Sequence[str]) -> NoWeights:
    """The error that only objects of classes that are not known, or that must not be made, lead to weights."""
    what = f"needs more than weights to be read: it would import {first_names(names)}"
    sharded = any(name.startswith(_SHARDED) for name in names)
    return NoWeights(what, file=path, hint=_GATHER if sharded else _SAVE_ALONE)
