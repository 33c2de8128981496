"""Directories: the weights in them, the files beside the weights, and the checkpoints inside a run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belay_cli.checkpoints.safetensors_header import WeightFile, read_header
from belay_cli.checkpoints.steps import last_integer, names_a_checkpoint, step_in_name
from belay_cli.errors import CheckpointError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_LARGEST_INDEX = 100_000_000  # bytes
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")

# The names under which libraries look for weights: transformers, diffusers, peft.
STANDARD_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")

# Weights in formats that are not read (yet), by how a person would recognise them.
_FOREIGN_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.distcp", "*.gguf", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class WeightSet:
    """The weights of one model in a directory: a single file, or shards under an index."""

    directory: Path
    stem: str  # `model` in model.safetensors and in model-00001-of-00002.safetensors
    index: Path | None

    @property
    def entry(self) -> Path:
        """The file by which a loader finds the weights."""
        return self.index or self.directory / f"{self.stem}{SUFFIX}"


def is_shard(path: Path) -> bool:
    """Whether a file's name says that it is one of several."""
    return _SHARD.fullmatch(path.name) is not None


def weight_sets(directory: Path) -> list[WeightSet]:
    """Every set of weights that lies in the directory itself, in name order."""
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    indexed = {name[: -len(INDEX_SUFFIX)] for name in names if name.endswith(INDEX_SUFFIX)}
    shards = {match[1] for name in names if (match := _SHARD.fullmatch(name))}
    single = {name[: -len(SUFFIX)] for name in names if name.endswith(SUFFIX) and not _SHARD.fullmatch(name)}
    for stem in sorted(single & (indexed | shards)):
        raise CheckpointError(
            f"holds both {stem}{SUFFIX} and shards of the same name",
            file=directory,
            hint="one of them is left over from an older save; remove it",
        )
    for stem in sorted(shards - indexed):
        raise CheckpointError(
            f"holds shards of {stem}{SUFFIX} but no {stem}{INDEX_SUFFIX}",
            file=directory,
            hint="the save is incomplete; copy the index too",
        )
    sets = [WeightSet(directory, stem, None) for stem in single]
    sets += [WeightSet(directory, stem, directory / f"{stem}{INDEX_SUFFIX}") for stem in indexed]
    return sorted(sets, key=lambda s: s.stem)


def choose_weights(directory: Path) -> WeightSet | None:
    """The directory's one set of weights: the only one, or the one with the standard name; None if there is none."""
    sets = weight_sets(directory)
    standard = [s for s in sets if s.stem in STANDARD_STEMS] or sets
    if len(standard) > 1:
        raise CheckpointError(
            f"holds several sets of weights: {', '.join(s.entry.name for s in standard)}",
            file=directory,
            hint="give the files themselves as arguments",
        )
    return standard[0] if standard else None


def read_weights(weights: WeightSet) -> tuple[WeightFile, ...]:
    """The headers of a set's files, shards in name order; the index is checked against them both ways."""
    if weights.index is None:
        return (read_header(weights.entry),)
    owners = _read_index(weights.index)
    files = []
    for name in sorted(set(owners.values())):
        path = weights.directory / name
        if not path.is_file():
            raise CheckpointError(
                f"names the shard {name}, which is not there",
                file=weights.index,
                hint="copy the missing shard",
            )
        files.append(read_header(path))
    held = {(tensor.name, file.path.name) for file in files for tensor in file.tensors}
    for name, owner in sorted(owners.items() - held):
        raise _index_lies(weights.index, name, f"is not in {owner}")
    for name, owner in sorted(held - owners.items()):
        raise _index_lies(weights.index, name, f"lies in {owner}, which the index does not say")
    return tuple(files)


def _index_lies(index: Path, tensor: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"does not fit its shards: {tensor!r} {where}",
        file=index,
        tensor=tensor,
        hint="index and shards come from different saves; copy the checkpoint again",
    )


def _read_index(path: Path) -> dict[str, str]:
    """weight_map of an index: tensor name -> file name, each a plain name in the same directory."""
    if path.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError("is over 100 MB, too large for an index", file=path)
    try:
        index: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError("is not valid JSON", file=path, hint="copy or save it again") from error
    owners = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(owners, dict) or not owners or not all(isinstance(name, str) for name in owners.values()):
        raise CheckpointError("has no weight_map from tensor names to file names", file=path)
    for tensor, name in owners.items():
        if not is_plain_name(name) or not name.endswith(SUFFIX):
            raise CheckpointError(
                f"puts {tensor!r} into {name!r}, which is not a safetensors file of this directory",
                file=path,
                tensor=tensor,
                hint="the index is damaged, or not to be trusted; copy the checkpoint again",
            )
    return owners


def is_plain_name(name: str) -> bool:
    """Whether a name stays inside its directory, on any system."""
    return name not in ("", ".", "..") and not any(c in name for c in '/\\:"\0\n')


def checkpoints_inside(directory: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints of a run directory, in the order of their integers, and the weights beside them, left out.

    They are sub-directories named as checkpoints, else several files with steps.
    """
    sets = _sets_or_none(directory)
    inside = [entry for entry in directory.iterdir() if entry.is_dir() and names_a_checkpoint(entry.name)]
    if not inside:
        inside = [s.entry for s in sets if s.index is None and step_in_name(s.stem) is not None]
    if len(inside) < 2 and not any(entry.is_dir() for entry in inside):
        return [], []
    left_out = [s.entry.name for s in sets if s.entry not in inside]
    return sorted(inside, key=lambda entry: (_number(entry), entry.name)), left_out


def _number(entry: Path) -> int:
    name = entry.name if entry.is_dir() else entry.stem
    step = step_in_name(name)
    return step if step is not None else last_integer(name) or 0


def _sets_or_none(directory: Path) -> list[WeightSet]:
    try:
        return weight_sets(directory)
    except CheckpointError:
        return []  # said when the directory itself is opened


def component_with_weights(directory: Path) -> tuple[Path | None, list[str]]:
    """The one sub-directory that holds the weights, as diffusers saves them, and the EMA twins passed over.

    `checkpoint-500/unet` beside `checkpoint-500/unet_ema` is the raw model and its EMA: the raw one is taken.
    """
    holders = [entry for entry in sorted(directory.iterdir()) if entry.is_dir() and _sets_or_none(entry)]
    raw = [entry for entry in holders if not entry.name.endswith("_ema")]
    if len(raw) > 1:
        raise CheckpointError(
            f"holds several models: {', '.join(entry.name for entry in raw)}",
            file=directory,
            hint=f"give one of them of every checkpoint, such as {raw[0]}",
        )
    return (raw[0] if raw else None), [entry.name for entry in holders if entry not in raw]


def no_weights(directory: Path) -> CheckpointError:
    """The error for a directory without safetensors weights, with what is there instead."""
    foreign = sorted({path.name for pattern in _FOREIGN_WEIGHTS for path in directory.glob(pattern)})
    if foreign:
        return CheckpointError(
            f"holds no safetensors weights, but {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}",
            file=directory,
            hint="belay reads safetensors; save or convert the checkpoint with safe_serialization",
        )
    return CheckpointError(
        "holds no safetensors weights", file=directory, hint="leave it out; a checkpoint or a run directory is needed"
    )
