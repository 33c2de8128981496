"""The weights of one checkpoint as a format gives them, known from headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from belay_cli.checkpoints.pieces import StoredPieces
from belay_cli.checkpoints.safetensors_header import Tensor, WeightFile
from belay_cli.checkpoints.storage import AnyPath, Stored, StoredFile

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is opened where it holds more than one thing.

    `subfolder`: which model of several in a directory; `state_key`: where in a torch file the state dict lies, its
    parts joined by dots; `source`: `raw` or `ema`, where a file holds both.
    """

    subfolder: str | None = None
    state_key: str | None = None
    source: str | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """`stem` is `model` in model.safetensors; `directory` is where loaders look, None for a file by itself.

    `tensors` are in the order of their bytes or of the state dict; `places` says where each lies, for formats in which
    that is no single run of bytes. `aliases`: names left out -> the name that holds the same bytes. `step`: what the
    weights themselves record.
    """

    files: tuple[StoredFile, ...]
    tensors: Mapping[str, Tensor]
    stem: str
    directory: AnyPath | None = None
    places: Mapping[str, Stored | StoredPieces] | None = None
    step: int | None = None
    aliases: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    notes: tuple[str, ...] = ()

    def stored(self, tensor: str) -> Stored | StoredPieces:
        """Where a tensor's bytes lie."""
        if self.places is not None:
            return self.places[tensor]
        found = self.tensors[tensor]
        file = self.files[found.file]
        return Stored(file, file.data_start + found.begin)


def safetensors_weights(files: tuple[WeightFile, ...], stem: str, directory: AnyPath | None) -> Weights:
    """Of one safetensors file, or of all shards. Equal layouts share one mapping."""
    return Weights(files, _by_name(tuple(file.tensors for file in files)), stem, directory)


@lru_cache(maxsize=64)
def _by_name(files: tuple[tuple[Tensor, ...], ...]) -> Mapping[str, Tensor]:
    return MappingProxyType(
        {
            tensor.name: tensor if which == 0 else tensor._replace(file=which)
            for which, file in enumerate(files)
            for tensor in file
        }
    )
