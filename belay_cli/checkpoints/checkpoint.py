"""One checkpoint: its weights by tensor name, its step, and where they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

from belay_cli.checkpoints.directory import (
    SUFFIX,
    choose_weights,
    component_with_weights,
    is_shard,
    no_weights,
    read_weights,
)
from belay_cli.checkpoints.safetensors_header import Tensor, WeightFile, read_header
from belay_cli.checkpoints.steps import agreed_step, last_integer, recorded_step, step_in_name
from belay_cli.checkpoints.storage import Stored
from belay_cli.errors import CheckpointError

# A file of one of these stems is named after nothing; its directory's name says which checkpoint it is.
_IMPERSONAL = re.compile(r"(?:diffusion_pytorch_|adapter_|pytorch_)?model(?:\.[a-z0-9]+)?|consolidated|weights")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint known from its headers.

    `name` identifies it to people (never the path that was typed); `number` is the last integer of that
    name, which orders checkpoints without a step.
    """

    name: str
    path: Path
    directory: Path | None  # None if the checkpoint was given as a file
    files: tuple[WeightFile, ...]
    stem: str
    step: int | None
    number: int | None
    notes: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, Tensor]]:
        """Tensor name -> (which of `files`, the tensor), in the order of the bytes. Equal layouts share one mapping."""
        return _by_name(tuple(file.tensors for file in self.files))

    @property
    def bytes(self) -> int:
        """Size of the weight files in bytes."""
        return sum(file.size for file in self.files)

    def stored(self, tensor: str) -> Stored:
        """Where a tensor's bytes lie."""
        which, found = self.tensors[tensor]
        return Stored(self.files[which], self.files[which].data_start + found.begin)


@lru_cache(maxsize=64)
def _by_name(files: tuple[tuple[Tensor, ...], ...]) -> Mapping[str, tuple[int, Tensor]]:
    return MappingProxyType({tensor.name: (which, tensor) for which, file in enumerate(files) for tensor in file})


def open_checkpoint(path: Path, *, needs_step: bool = True) -> Checkpoint:
    """Read the headers of a checkpoint: a safetensors file, or a directory with weights in it.

    Raises CheckpointError if it is absent, incomplete or untrue, and SeriesError if its record and its name
    contradict each other about the step; where no step is needed, such a checkpoint has none.
    """
    if not path.exists():
        raise CheckpointError("does not exist", file=path)
    return _open_directory(path, needs_step) if path.is_dir() else _open_file(path, needs_step)


def _open_file(path: Path, needs_step: bool) -> Checkpoint:
    if path.suffix != SUFFIX:
        raise CheckpointError(
            "is not a safetensors file",
            file=path,
            hint="belay reads *.safetensors files and directories that hold them",
        )
    if is_shard(path):
        raise CheckpointError(
            "is one shard of several", file=path, hint=f"the checkpoint is its directory: {path.parent}"
        )
    file = read_header(path)
    parent = path.absolute().parent
    if _IMPERSONAL.fullmatch(path.stem) and step_in_name(parent.name) is not None:
        named_by, name = parent.name, f"{parent.name}/{path.name}"
    else:
        named_by, name = path.stem, path.name
    step = agreed_step(recorded_step(file.metadata, None), step_in_name(named_by), path, needs_step)
    return Checkpoint(_as_text(name), path, None, (file,), path.stem, step, last_integer(named_by))


def _open_directory(path: Path, needs_step: bool) -> Checkpoint:
    weights = choose_weights(path)
    notes: tuple[str, ...] = ()
    named_by = _own_name(path)
    if weights is None:
        component, passed_over = component_with_weights(path)
        weights = choose_weights(component) if component else None
        if weights is None:
            raise no_weights(path)
        notes = tuple(f"{named_by}: takes {weights.directory.name}, not {name}" for name in passed_over)
    name = named_by
    if step_in_name(named_by) is None and step_in_name(path.absolute().parent.name) is not None:
        named_by = path.absolute().parent.name  # checkpoint-500/unet
        name = f"{named_by}/{name}"
    files = read_weights(weights)
    step = agreed_step(recorded_step(files[0].metadata, path), step_in_name(named_by), path, needs_step)
    return Checkpoint(_as_text(name), path, weights.directory, files, weights.stem, step, last_integer(named_by), notes)


def _as_text(name: str) -> str:
    """A file's name as text that can be written down, whatever bytes the file system has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _own_name(path: Path) -> str:
    """The directory's name, also for `.` and for a path that ends in `..`; a link keeps its own."""
    return path.absolute().name if path.name not in ("", "..") else path.resolve().name


def is_average(checkpoint: Checkpoint) -> bool:
    """Whether belay wrote these weights."""
    return any("belay.version" in file.metadata for file in checkpoint.files)


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether these are the factors of an adapter (PEFT), whose average is not the average of the updates."""
    if checkpoint.directory and (checkpoint.directory / "adapter_config.json").is_file():
        return True
    return any(".lora_A." in name for name in checkpoint.tensors)


def architecture(checkpoint: Checkpoint) -> str | None:
    """The first entry of `architectures` in config.json, or None."""
    config = checkpoint.directory / "config.json" if checkpoint.directory else None
    if config is None or not config.is_file() or config.stat().st_size > 10_000_000:
        return None
    try:
        names = json.loads(config.read_bytes()).get("architectures")
    except (ValueError, RecursionError, AttributeError):
        return None
    return str(names[0]) if isinstance(names, list) and names else None
