"""One checkpoint: its weights by tensor name, its step, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from belay_cli.checkpoints.arguments import absent
from belay_cli.checkpoints.components import find_folders
from belay_cli.checkpoints.config import read_config
from belay_cli.checkpoints.directory import find_weights
from belay_cli.checkpoints.learning_rate import LearningRate
from belay_cli.checkpoints.meaning.recorded import RecordedStep
from belay_cli.checkpoints.order.averages import ema_by_name
from belay_cli.checkpoints.order.names import naming, stem_of, step_in_name
from belay_cli.checkpoints.order.steps import agreed_step, recorded_step
from belay_cli.checkpoints.read import read_directory, read_file
from belay_cli.checkpoints.together import read_folders
from belay_cli.checkpoints.weights import Opening, Weights
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.formats.contents import Tensor
from belay_cli.formats.shards import is_shard
from belay_cli.storage.files import AnyPath, Stored, StoredFile
from belay_cli.storage.json_file import read_json
from belay_cli.storage.pieces import StoredPieces

DOCUMENT = "belay.json"  # the record of an output, in its directory
BESIDE = ".belay.json"  # after the name of a file that has no place for a record of its own


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint known from its headers.

    `name` identifies it to people (never the path that was typed). `step_from` says where the step comes from, in
    words; `step_is_recorded` that it is not its name alone that states it. `learning_rate`: what it records of that.
    """

    name: str
    path: AnyPath
    weights: Weights
    step: int | None
    notes: tuple[str, ...] = ()
    step_from: str = ""
    step_is_recorded: bool = False
    learning_rate: LearningRate | None = None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return self.weights.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the header of a safetensors file says beside the tensors, text by text; of shards, what all say."""
        return self.weights.metadata

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
        raise absent(path)
    return _open_directory(path, opening, needs_step) if path.is_dir() else _open_file(path, opening, needs_step)


def _open_file(path: AnyPath, opening: Opening, needs_step: bool) -> Checkpoint:
    if is_shard(path):
        raise CheckpointError(
            "is one shard of several", file=path, hint=f"the checkpoint is its directory: {path.parent}"
        )
    if opening.subfolder is not None:
        raise UsageError(
            f"--subfolder {opening.subfolder} is for directories, and {path} is a file", hint="leave it out"
        )
    weights = read_file(path, opening)
    named_by, name = _named(path, stem_of(path.name), path.name, is_file=True)
    recorded, rate = recorded_step(weights, None)
    step = agreed_step(recorded, step_in_name(named_by), path, needs_step, named_low=weights.named_low)
    return _checkpoint(name, path, weights, step, weights.notes, rate)


def _open_directory(path: AnyPath, opening: Opening, needs_step: bool) -> Checkpoint:
    own = _own_name(path)
    folders = find_folders(path, opening)
    weights, notes = (read_folders(path, folders, opening), []) if folders.taken else _read_one(path, opening)
    named_by, name = _named(path, own, own, is_file=False)
    recorded, rate = recorded_step(weights, path)
    step = agreed_step(recorded, step_in_name(named_by), path, needs_step, named_low=weights.named_low)
    return _checkpoint(name, path, weights, step, (*notes, *weights.notes), rate)


def _read_one(path: AnyPath, opening: Opening) -> tuple[Weights, list[str]]:
    """The weights of a directory that is one model, and notes about others that are passed over."""
    inner, passed_over = find_weights(path, opening)
    if opening.subfolder is not None and ema_by_name(inner.name):
        opening = replace(opening, source=opening.source or "ema")  # named by its folder, so asked for
    return read_directory(inner, opening), [f"takes {inner.name}, not {name}" for name in passed_over]


def _checkpoint(
    name: str,
    path: AnyPath,
    weights: Weights,
    step: RecordedStep | None,
    notes: tuple[str, ...],
    rate: LearningRate | None,
) -> Checkpoint:
    known, where = (step.step, step.where) if step else (None, "")
    return Checkpoint(_as_text(name), path, weights, known, notes, where, step is not None and not step.by_name, rate)


def _named(path: AnyPath, own: str, shown: str, *, is_file: bool) -> tuple[str, str]:
    """The name that says which checkpoint this is, and the one for people, from there on."""
    above = path.absolute().parent
    named_by = naming(own, above.name, above.parent.name, is_file=is_file)
    if named_by is own:
        return own, shown
    return named_by, f"{named_by}/{shown}" if named_by is above.name else f"{named_by}/{above.name}/{shown}"


def _as_text(name: str) -> str:
    """A file's name as text that can be written down, whatever bytes the file system has."""
    return name.encode("utf-8", "backslashreplace").decode()


def _own_name(path: AnyPath) -> str:
    """The directory's name, also for `.` and for a path that ends in `..`; a link keeps its own."""
    return path.absolute().name if path.name not in ("", "..") else path.resolve().name


def architecture(checkpoint: Checkpoint) -> str | None:
    """The first entry of `architectures` in config.json, or None."""
    names = read_config(checkpoint.directory).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def is_average(checkpoint: Checkpoint) -> bool:
    """Whether belay wrote these weights, after training or in it."""
    return is_replayed(checkpoint) or is_of_training(checkpoint)


def is_replayed(checkpoint: Checkpoint) -> bool:
    """Whether `belay average` wrote these weights, with a record of the checkpoints."""
    return any("belay.version" in file.metadata for file in checkpoint.files) or is_same(checkpoint)


def is_same(checkpoint: Checkpoint) -> bool:
    """Whether belay wrote these weights into the files of a last checkpoint; the record then lies beside them."""
    path = checkpoint.path
    if not isinstance(path, Path) or any(p.places is None for p in checkpoint.weights.components.values()):
        return False
    beside = path / DOCUMENT if checkpoint.directory is not None else document_beside(path)
    try:
        told = read_json(beside) if beside.is_file() else None
    except (CheckpointError, OSError):  # such as a name that is too long
        return False
    return isinstance(told, dict) and told.get("format") == "same"


def document_beside(path: Path) -> Path:
    """Where the record of a file lies that has no place for one."""
    return path.with_name(path.name + BESIDE)


def is_of_training(checkpoint: Checkpoint) -> bool:
    """Whether these weights are an average that `belay_cli.training` kept."""
    return any("belay.training" in file.metadata for file in checkpoint.files)
