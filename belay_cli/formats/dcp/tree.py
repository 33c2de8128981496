"""What was saved as torch.distributed.checkpoint, nested as it was: dicts of names to tensors and to other things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from belay_cli.formats.dcp.metadata import BytesEntry, DcpMetadata, TensorEntry, lie
from belay_cli.formats.text import short
from belay_cli.storage.files import StoredFile

_MOST_DEEP = 32  # keys that lead to one tensor; parts beyond it stay joined by dots


class DcpLeaf(NamedTuple):
    """A tensor by its name in the checkpoint."""

    fqn: str


class Other(NamedTuple):
    """Something that is no tensor: its name in the checkpoint."""

    fqn: str


def tree(file: StoredFile, metadata: DcpMetadata) -> dict[str, Any]:
    """The entries by the keys that led to each. Raises CheckpointError if one lies inside another.

    Where nothing is said of keys, the names are those of one dict.
    """
    root: dict[str, Any] = {}
    for fqn, entry in metadata.entries.items():
        if not isinstance(fqn, str) or not isinstance(entry, TensorEntry | BytesEntry):
            continue
        *keys, name = _path(fqn, metadata.paths) if metadata.paths else (fqn,)
        inner = root
        for key in keys:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise lie(file, f"{short(fqn)} lies inside another tensor", fqn)
        if name in inner:
            held = inner[name].fqn if isinstance(inner[name], DcpLeaf | Other) else name
            raise lie(file, f"{short(held)} and {short(fqn)} have one name", name)
        inner[name] = DcpLeaf(fqn) if isinstance(entry, TensorEntry) else Other(fqn)
    return root


def _path(fqn: str, paths: Mapping[Any, Any]) -> tuple[str, ...]:
    """Where in what was saved an entry lay; a name may hold dots of its own."""
    found = paths.get(fqn)
    if isinstance(found, tuple) and found and all(type(part) in (str, int) for part in found):
        keys = tuple(part if isinstance(part, str) else short(part) for part in found)
    else:
        keys = tuple(fqn.split("."))
    return (*keys[:_MOST_DEEP], ".".join(keys[_MOST_DEEP:])) if len(keys) > _MOST_DEEP else keys
