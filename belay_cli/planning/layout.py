"""The bytes of the output before there are any: which tensor lies in which file, where, and every header."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from belay_cli.checkpoints.weights import inside, without
from belay_cli.errors import UsageError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning.policies import AVERAGE, DELTA
from belay_cli.record import HEADER
from belay_cli.storage.seal import ZEROS, sealed

DEFAULT_SHARD_SIZE = "5GB"

# How a header that is sealed begins, after its length field of 8 bytes; then its seal.
SEALED_BEGINS = f'{{"__metadata__":{{"{HEADER}":"'.encode()
SEAL_PLACE = 8 + len(SEALED_BEGINS)

_SIZE = re.compile(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


class PlannedTensor(NamedTuple):
    """One tensor of the output: what becomes of it, and where it goes. `dtype` is a safetensors code.

    `offset` counts bytes from the start of the data of its shard. `folder` is that of its model, where an output is
    several; `name` begins with it. `of`: the name of the tensor of which this is a part, if it is one of several.
    """

    name: str
    action: str
    source_dtype: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    shard: int = 0
    offset: int = 0
    folder: str = ""
    of: str = ""

    @property
    def known_as(self) -> str:
        """The name of the tensor that a person knows."""
        return self.of or self.name

    @property
    def averaged(self) -> bool:
        """Whether its values come from several checkpoints, by themselves or as a factor of an update."""
        return self.action in (AVERAGE, DELTA)

    @property
    def copied(self) -> bool:
        """Whether the bytes of the last checkpoint are taken as they are."""
        return self.action == "last" and self.source_dtype == self.dtype


@dataclass(frozen=True)
class Shard:
    """One weight file: its name, below the output's directory, its folder there, and the size of its data in bytes."""

    name: str
    nbytes: int
    folder: str = ""


def parse_size(text: str, option: str) -> int:
    """`5GB`, `500MB`, `2GiB`, `1000000` -> bytes, above 0. Raises UsageError, naming `option`."""
    match = _SIZE.fullmatch(text)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not 0 < number < math.inf:
        raise UsageError(f"{option} '{text}' is not a size", hint="write 5GB, 500MB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(number * base ** " KMGT".index(match[2].upper() or " "))


def lay_out(
    tensors: Sequence[PlannedTensor], stem: str, largest: int | None
) -> tuple[list[PlannedTensor], list[Shard]]:
    """Place tensors into shards of at most `largest` bytes of data (None: one file), in the order given.

    The Hub's convention: a shard is filled until the next tensor does not fit; a tensor larger than
    `largest` has a shard to itself. Inside a shard wide dtypes go first, so that every tensor is aligned.
    """
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if largest is not None and groups[-1] and filled + tensor.nbytes > largest:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    placed, shards = [], []
    for number, group in enumerate(groups):
        offset = 0
        for tensor in sorted(group, key=lambda tensor: -DTYPES[tensor.dtype].bits):
            placed.append(tensor._replace(shard=number, offset=offset))
            offset += tensor.nbytes
        name = f"{stem}.safetensors"
        if len(groups) > 1:
            name = f"{stem}-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        shards.append(Shard(name, offset))
    return placed, shards


def lay_out_folders(
    tensors: Sequence[PlannedTensor], stems: Mapping[str, str], largest: int | None
) -> tuple[list[PlannedTensor], list[Shard]]:
    """The same for every model by itself, in its folder: `stems` has what its files are called."""
    placed: list[PlannedTensor] = []
    shards: list[Shard] = []
    for folder, stem in stems.items():
        own, files = lay_out([tensor for tensor in tensors if tensor.folder == folder], inside(folder, stem), largest)
        if own:  # else --drop leaves nothing of it
            placed += [tensor._replace(shard=len(shards) + tensor.shard) for tensor in own]
            shards += [replace(file, folder=folder) for file in files]
    return placed, shards


def header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header with its length field, padded with spaces so that the data is aligned to 8 bytes.

    Names in it are those that loaders look for, without the folder.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    for tensor in tensors:
        entries[without(tensor.folder, tensor.name)] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [tensor.offset, tensor.offset + tensor.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def sealed_header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """The same with the SHA-256 of all of it as the first entry of the metadata."""
    return sealed(header(tensors, {HEADER: ZEROS, **metadata}), SEAL_PLACE)


def index(tensors: Sequence[PlannedTensor], shards: Sequence[Shard], folder: str = "") -> bytes:
    """The index of the shards of one folder, in the Hub's form; tensors and shards are those of all."""
    own = [tensor for tensor in tensors if tensor.folder == folder]
    owners = {without(folder, tensor.name): without(folder, shards[tensor.shard].name) for tensor in own}
    return index_text(owners, sum(shard.nbytes for shard in shards if shard.folder == folder))


def index_text(owners: Mapping[str, str], total: int) -> bytes:
    """An index: by the name of each tensor the file that holds it, and the bytes of all of them."""
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
