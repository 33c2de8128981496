"""One checkpoint: its weights by tensor name, its step, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from belay_cli.checkpoints.directory import find_weights, is_shard
from belay_cli.checkpoints.formats import read_directory, read_file
from belay_cli.checkpoints.pieces import StoredPieces
from belay_cli.checkpoints.quantized import read_config
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.checkpoints.steps import agreed_step, last_integer, recorded_step, step_in_name
from belay_cli.checkpoints.storage import AnyPath, Stored, StoredFile
from belay_cli.checkpoints.weights import Opening, Weights
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
    path: AnyPath
    weights: Weights
    step: int | None
    number: int | None
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return self.weights.tensors

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The files that hold the weights."""
        return self.weights.files

    @property
    def directory(self) -> AnyPath | None:
        """Where the weights lie, None if the checkpoint was given as a file."""
        return self.weights.directory

    @property
    def bytes(self) -> int:
        """Size of the weight files in bytes."""
        return sum(file.size for file in self.files)

    def stored(self, tensor: str) -> Stored | StoredPieces:
        """Where a tensor's bytes lie."""
        return self.weights.stored(tensor)


def open_checkpoint(path: AnyPath, opening: Opening = Opening(), *, needs_step: bool = True) -> Checkpoint:  # noqa: B008
    """Read the headers of a checkpoint: a weight file, or a directory with weights in it.

    Raises CheckpointError if it is absent, incomplete or untrue, and SeriesError if its record and its name
    contradict each other about the step; where no step is needed, such a checkpoint has none.
    """
    if not path.exists():
        raise CheckpointError("does not exist", file=path)
    return _open_directory(path, opening, needs_step) if path.is_dir() else _open_file(path, opening, needs_step)


def _open_file(path: AnyPath, opening: Opening, needs_step: bool) -> Checkpoint:
    if is_shard(path):
        raise CheckpointError(
            "is one shard of several", file=path, hint=f"the checkpoint is its directory: {path.parent}"
        )
    weights = read_file(path, opening)
    parent = path.absolute().parent
    if _IMPERSONAL.fullmatch(weights.stem) and step_in_name(parent.name) is not None:
        named_by, name = parent.name, f"{parent.name}/{path.name}"
    else:
        named_by, name = path.stem, path.name
    step = agreed_step(recorded_step(weights, None), step_in_name(named_by), path, needs_step)
    return Checkpoint(_as_text(name), path, weights, step, last_integer(named_by), weights.notes)


def _open_directory(path: AnyPath, opening: Opening, needs_step: bool) -> Checkpoint:
    named_by = _own_name(path)
    inner, passed_over = find_weights(path, opening)
    weights = read_directory(inner, opening)
    notes = [f"{named_by}: takes {inner.name}, not {name}" for name in passed_over]
    name = named_by
    if step_in_name(named_by) is None and step_in_name(path.absolute().parent.name) is not None:
        named_by = path.absolute().parent.name  # checkpoint-500/unet
        name = f"{named_by}/{name}"
    step = agreed_step(recorded_step(weights, path), step_in_name(named_by), path, needs_step)
    return Checkpoint(_as_text(name), path, weights, step, last_integer(named_by), (*notes, *weights.notes))


def _as_text(name: str) -> str:
    """A file's name as text that can be written down, whatever bytes the file system has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _own_name(path: AnyPath) -> str:
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
    names = read_config(checkpoint.directory).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None
