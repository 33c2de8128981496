"""Dicts, lists and the like, however they nest or loop: which of them hold tensors. Each is looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

CONTAINERS = (dict, list, tuple, set, frozenset)


def holds_tensors(value: Any, leaves: tuple[type, ...]) -> bool:
    """Whether a tensor lies in a container, however deep."""
    seen, stack = {id(value)}, [value]
    while stack:
        for entry in _entries(stack.pop()):
            if isinstance(entry, leaves):
                return True
            if isinstance(entry, CONTAINERS) and id(entry) not in seen:
                seen.add(id(entry))
                stack.append(entry)
    return False


def state_dicts_in(root: dict[Any, Any], leaves: tuple[type, ...]) -> set[int]:
    """The identity of each dict inside that maps names to tensors, and has no tensors further down."""
    named: set[int] = set()  # dicts from text to something, tensors among it
    holders: list[int] = []  # containers with a tensor in them, then those with such a container in them
    parents: dict[int, list[int]] = {id(root): []}
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        if any(isinstance(entry, leaves) for entry in _entries(value)):
            holders.append(id(value))
            if isinstance(value, dict) and all(type(key) is str for key in value):
                named.add(id(value))
        for entry in _inner(value, leaves):
            if id(entry) not in parents:
                parents[id(entry)] = []
                stack.append(entry)
            parents[id(entry)].append(id(value))
    deep: set[int] = set()
    while holders:
        above = set(parents[holders.pop()]) - deep
        deep |= above
        holders += above
    return named - deep


def _entries(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _inner(value: Any, leaves: tuple[type, ...]) -> Iterator[Any]:
    """The containers in a container that may hold weights; what a module keeps for itself is none."""
    if isinstance(value, dict):
        yield from (
            entry
            for key, entry in value.items()
            if isinstance(entry, CONTAINERS)
            and not isinstance(entry, leaves)
            and not (type(key) is str and key.endswith("_extra_state"))
        )
    else:
        yield from (e for e in value if isinstance(e, CONTAINERS) and not isinstance(e, leaves))
