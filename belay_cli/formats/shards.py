"""Weights in several files under an index: which files, and whether index and files agree. Reads the index only."""

from __future__ import annotations

import re

from belay_cli.errors import CheckpointError
from belay_cli.storage.files import AnyPath, is_plain_name
from belay_cli.storage.json_file import read_json

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)?(\.safetensors|\.bin)")  # stem, variant if it stands here, suffix


def is_shard(path: AnyPath) -> bool:
    """Whether a file's name says that it is one of several."""
    return SHARD.fullmatch(path.name) is not None


def shards_of(index: AnyPath, suffix: str) -> dict[str, str]:
    """weight_map of an index: tensor name -> file name, each a file that is there, in the same directory."""
    owners = _read_index(index, suffix)
    named = set(owners.values())
    there = {entry.name for entry in index.parent.iterdir() if entry.is_file()}
    for name in sorted(named - there):
        raise CheckpointError(f"names the shard {name}, which is not there", file=index, hint="copy the missing shard")
    for name in sorted(there - named):
        if _beside(name, named):
            raise CheckpointError(
                f"does not name {name}, which lies beside the shards that it names",
                file=index,
                hint="index and shards come from different saves; copy the checkpoint again",
            )
    return owners


def _beside(name: str, shards: set[str]) -> bool:
    """Whether a file is by its name one more shard of the same number of them."""

    def family(shard: str) -> str:
        return re.sub(r"-\d{5}(?=-of-)", "", shard)

    return SHARD.fullmatch(name) is not None and family(name) in set(map(family, shards))


def check_index(index: AnyPath, owners: dict[str, str], held: set[tuple[str, str]]) -> None:
    """Raise CheckpointError if index and shards disagree; held: (tensor, file) as the shards have it."""
    for name, owner in sorted(owners.items() - held):
        raise _index_lies(index, name, f"is not in {owner}")
    for name, owner in sorted(held - owners.items()):
        raise _index_lies(index, name, f"lies in {owner}, which the index does not say")


def _index_lies(index: AnyPath, tensor: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"does not fit its shards: {tensor!r} {where}",
        file=index,
        tensor=tensor,
        hint="index and shards come from different saves; copy the checkpoint again",
    )


def _read_index(path: AnyPath, suffix: str) -> dict[str, str]:
    index = read_json(path)
    owners = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(owners, dict) or not owners or not all(isinstance(name, str) for name in owners.values()):
        raise CheckpointError("has no weight_map from tensor names to file names", file=path)
    for tensor, name in owners.items():
        if not is_plain_name(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"puts {tensor!r} into {name!r}, which is not a {suffix} file of this directory",
                file=path,
                tensor=tensor,
                hint="the index is damaged, or not to be trusted; copy the checkpoint again",
            )
    return owners
