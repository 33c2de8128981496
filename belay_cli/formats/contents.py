"""What a format gives of the files that hold one checkpoint: what was saved, and where its tensors lie. No meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.storage.files import AnyPath, Stored, StoredFile
from belay_cli.storage.pieces import StoredPieces


class Tensor(NamedTuple):
    """A tensor of a checkpoint: dtype code, shape, size in bytes; in safetensors, where its bytes begin in the data.

    `file` counts the files of the checkpoint.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    file: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Unreadable(NamedTuple):
    """A tensor that is no plain array of a dtype that safetensors has. `what` completes a sentence: 'is quantized'."""

    what: str


class NoWeights(CheckpointError):  # noqa: N818 - it reads as what it is
    """No weights where they are looked for."""


class Layout(dict[str, Any]):
    """Names to tensors, one instance for all files of one layout. It equals itself alone, so that it is a quick key."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Places(NamedTuple):
    """Where tensors lie: the files that hold them, each tensor by name, and where it is stored.

    `stored` is None where `begin` and `file` of a tensor say it. `unreadable` are those that are no plain arrays, by
    name, and what they are.
    """

    files: tuple[StoredFile, ...]
    tensors: Mapping[str, Tensor]
    stored: Mapping[str, Stored | StoredPieces] | None = None
    unreadable: Mapping[str, str] = MappingProxyType({})


def itself(leaf: Any) -> object:
    """Two names are of one tensor if what lies under them is equal."""
    return leaf


@dataclass(frozen=True, eq=False)
class Contents:
    """What the files of one checkpoint hold. It can be asked while they are open.

    `root` is what was saved: a dict of names to tensors (a Layout, where files may share it), or one in which such
    dicts lie somewhere. Its tensors are of the types in `leaves`; everything else is plain. `locate` takes tensors of
    it by the names that they are to have, and says where each lies; what it is not given is not looked at.

    `format` is its name for people. `keys_known` is False where dots in a name may be those between keys of what was
    saved. `identity` is equal for tensors that share their bytes. `held` is each tensor's name with that of its file.
    `metadata` is text by text, of safetensors. `unknown` are the classes of which nothing was made.
    """

    format: str
    path: AnyPath
    root: Any
    leaves: tuple[type, ...]
    locate: Callable[[Layout], Places]
    identity: Callable[[Any], object] = itself
    held: Callable[[], set[tuple[str, str]]] = set
    keys_known: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    unknown: Sequence[str] = ()
