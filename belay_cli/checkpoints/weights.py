"""The weights of one checkpoint, known from headers: what is left when everything has its meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from belay_cli.checkpoints.learning_rate import LearningRate
from belay_cli.checkpoints.meaning.recorded import RecordedStep
from belay_cli.formats.contents import Tensor
from belay_cli.storage.files import AnyPath, Stored, StoredFile
from belay_cli.storage.pieces import StoredPieces


@dataclass(frozen=True)
class Opening:
    """How a checkpoint is opened where it holds more than one thing.

    `subfolder`: which model of several in a directory, a list of them with commas, or `all`; `state_key`: where in a
    checkpoint the state dict lies, its parts joined by dots; `source`: `raw` or `ema`, where a checkpoint holds both;
    `allow_averages`: whether weights that are an average by the name of their file are taken like any others;
    `as_it_is`: whether the names in a safetensors file are taken as they stand, which is right for what belay wrote.
    """

    subfolder: str | None = None
    state_key: str | None = None
    source: str | None = None
    allow_averages: bool = False
    as_it_is: bool = False


@dataclass(frozen=True, eq=False)
class Weights:
    """`stem` is `model` in model.safetensors; `directory` is where loaders look, None for a file by itself.

    `tensors` are in the order of their bytes or of the state dict; `places` says where each lies, for formats in which
    that is no single run of bytes. `unreadable`: tensors that are no plain arrays, and what they are. `aliases`: names
    left out -> the name that holds the same bytes. `step`: what the weights themselves record. `metadata`: of
    safetensors. `recognised`: what was found and why, by what it is, in words for `belay inspect`. `beside`: where
    other weights lie in the same files, which are not taken. `named_low`: whether the writer puts the step before
    the recorded one into names. `learning_rate`: what the weights' own files record of it. `parts`: of a checkpoint
    that is several models, the weights of each by its folder, in which it lies whole; a name in `tensors` is then
    the folder, `/`, and the name that the folder's own files have.
    """

    files: tuple[StoredFile, ...]
    tensors: Mapping[str, Tensor]
    stem: str
    directory: AnyPath | None = None
    places: Mapping[str, Stored | StoredPieces] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    step: RecordedStep | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    recognised: Mapping[str, str] = field(default_factory=dict)
    named_low: bool = False
    learning_rate: LearningRate | None = None
    parts: Mapping[str, Weights] = field(default_factory=dict)

    @property
    def components(self) -> Mapping[str, Weights]:
        """The weights of every model by its folder, that of the directory itself is empty."""
        return self.parts or {"": self}

    def folder_of(self, tensor: str) -> str:
        """The folder that a tensor belongs to."""
        return innermost(tensor, self.parts)

    def within(self, folder: str, aliases: Mapping[str, str]) -> dict[str, str]:
        """Of names, and the tensors whose bytes they share, those in one folder, as its own files have them."""
        return {without(folder, n): without(folder, k) for n, k in aliases.items() if self.folder_of(k) == folder}

    def named_files(self) -> Iterator[tuple[str, StoredFile]]:
        """Every file of weights, with its name as it is below the directory."""
        for folder, part in self.components.items():
            yield from ((inside(folder, file.path.name), file) for file in part.files)

    def stored(self, tensor: str) -> Stored | StoredPieces:
        """Where a tensor's bytes lie."""
        if self.parts:
            folder = self.folder_of(tensor)
            return self.parts[folder].stored(without(folder, tensor))
        if self.places is not None:
            return self.places[tensor]
        found = self.tensors[tensor]
        file = self.files[found.file]
        return Stored(file, file.data_start + found.begin)


def inside(folder: str, name: str) -> str:
    """A name as it is seen from the directory that holds the folder; an empty folder is that directory itself."""
    return f"{folder}/{name}" if folder else name


def without(folder: str, name: str) -> str:
    """The reverse of `inside`."""
    return name.removeprefix(f"{folder}/") if folder else name


def innermost(name: str, folders: Iterable[str]) -> str:
    """The folder of these that a name lies in, the innermost if several do; empty if none does."""
    return max((folder for folder in folders if folder and name.startswith(f"{folder}/")), key=len, default="")
