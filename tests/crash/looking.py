"""What a loader finds at a target, and every file that is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

Tree = dict[str, bytes]
View = dict[str, object]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = ("config.json", "tokenizer.json")


def tree(place: Path) -> Tree:
    """Every file, link and empty directory below a directory."""
    found: Tree = {}
    for root, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(root, name)
            relative = str(path.relative_to(place))
            if path.is_symlink():
                found[relative] = b"-> " + os.fsencode(path.readlink())
            else:
                found[relative] = b"/" if path.is_dir() else path.read_bytes()
    return found


def visible(found: Tree, *known: Tree) -> Tree:
    """A tree without what is hidden and belongs to none of the known ones: what is built before it is in place."""
    names = {name for one in known for name in one}
    return {name: data for name, data in found.items() if name in names or not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _tensors(path: Path) -> View:
    with safe_open(path, "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in found.items()}


def _sharded(directory: Path) -> View:
    owners: dict[str, str] = json.loads((directory / INDEX).read_text())["weight_map"]
    shards = {name: _tensors(directory / name) for name in set(owners.values())}
    return {name: shards[owner][name] for name, owner in owners.items()}


def views(target: Path) -> list[View | None]:
    """What loaders get, by each way that they have; None for a way that leads to an error. None at all: no output."""
    if not target.is_dir():
        return [_or_error(target, _tensors)] if target.exists() else []
    beside: View = {name: path.read_bytes() for name in BESIDE if (path := target / name).exists()}
    found = []
    if (target / SINGLE).exists():
        found.append(_or_error(target / SINGLE, _tensors))
    if (target / INDEX).exists():
        found.append(_or_error(target, _sharded))
    return [None if view is None else view | beside for view in found]


def _or_error(path: Path, load: object) -> View | None:
    assert callable(load)
    try:
        loaded: View = load(path)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return loaded


def all_weights(target: Path) -> View | None:
    """What one gets who loads every weight file of a directory, and asks for no index."""
    found: View = {}
    for path in sorted(target.glob("*.safetensors")):
        found |= _or_error(path, _tensors) or {path.name: None}
    return found or None


def without_files(view: View) -> View:
    """The tensors of a view."""
    return {name: value for name, value in view.items() if name not in BESIDE}


def what_loads(target: Path, old: View | None, new: View) -> str:
    """`old`, `new` or `nothing`; anything else is a fault, in words."""
    classes = {_class(view, old, new) for view in views(target)}
    if len(classes) > 1:
        return f"both {' and '.join(sorted(classes))}"
    return classes.pop() if classes else "nothing"


def _class(view: View | None, old: View | None, new: View) -> str:
    if view is None:
        return "a broken output"
    for name, whole in (("new", new), ("old", old)):
        if view == whole:
            return name
        if whole is not None and without_files(view) == without_files(whole):
            return f"{name} weights beside other files"
    return "a mixture"
