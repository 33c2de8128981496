"""The weights in several folders as those of one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from belay_cli.checkpoints.components import Folders
from belay_cli.checkpoints.order.averages import ema_by_name
from belay_cli.checkpoints.read import read_directory
from belay_cli.checkpoints.weights import Opening, Weights, innermost, inside
from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Tensor
from belay_cli.storage.files import AnyPath


def read_folders(directory: AnyPath, folders: Folders, opening: Opening) -> Weights:
    """The weights of every folder. Raises CheckpointError."""
    parts = {folder: _read(directory, folder, opening) for folder in folders.taken}
    return _together(directory, parts, folders.note)


def _read(directory: AnyPath, folder: str, opening: Opening) -> Weights:
    if ema_by_name(folder.rpartition("/")[2]):
        opening = replace(opening, source=opening.source or "ema")  # it is taken because of its name
    return read_directory(directory.joinpath(*folder.split("/")) if folder else directory, opening)


def _together(directory: AnyPath, parts: Mapping[str, Weights], note: str) -> Weights:
    steps = {part.step.step: part.step for part in parts.values() if part.step is not None}
    return Weights(
        files=tuple(file for part in parts.values() for file in part.files),
        tensors=_tensors(directory, tuple((folder, _Same(part.tensors)) for folder, part in parts.items())),
        stem="",
        directory=directory,
        unreadable=_named({folder: part.unreadable for folder, part in parts.items()}),
        step=next(iter(steps.values())) if len(steps) == 1 else None,
        aliases={
            inside(folder, name): inside(folder, kept)
            for folder, part in parts.items()
            for name, kept in part.aliases.items()
        },
        metadata=_agreed([part.metadata for part in parts.values()]),
        notes=(note, *(_of(folder, note) for folder, part in parts.items() for note in part.notes)),
        beside=tuple(inside(folder, where) for folder, part in parts.items() for where in part.beside),
        recognised=_recognised(parts),
        named_low=any(part.named_low for part in parts.values()),
        parts=parts,
    )


class _Same:
    """A mapping as part of a key: equal to itself alone, since formats share one between files of one layout."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tensors is other.tensors

    def __hash__(self) -> int:
        return id(self.tensors)


def _tensors(directory: AnyPath, parts: tuple[tuple[str, _Same], ...]) -> Mapping[str, Tensor]:
    try:
        return _renamed(parts)
    except CheckpointError as error:
        error.file = str(directory)
        raise


@lru_cache(maxsize=64)
def _renamed(parts: tuple[tuple[str, _Same], ...]) -> Mapping[str, Tensor]:
    """The tensors of all parts by their names from the directory on. Raises CheckpointError, without a file."""
    folders, found = [folder for folder, _ in parts], {}
    for folder, part in parts:
        for name, tensor in part.tensors.items():
            whole = inside(folder, name)
            if innermost(whole, folders) != folder:
                raise CheckpointError(
                    f"has a tensor {whole!r} whose name leads into another folder with weights",
                    tensor=whole,
                    hint="take one of its models: --subfolder NAME",
                )
            found[whole] = tensor._replace(name=whole)
    return MappingProxyType(found)


def _named(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {inside(folder, name): value for folder, part in parts.items() for name, value in part.items()}


def _agreed(metadata: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What every part says alike."""
    first, *rest = metadata
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _of(folder: str, text: str) -> str:
    return f"{folder}: {text}" if folder else text


def _recognised(parts: Mapping[str, Weights]) -> dict[str, str]:
    """What was recognised in every part, once where it is the same."""
    listed = ", ".join(f"{folder or '.'} ({len(part.tensors)} tensors)" for folder, part in parts.items())
    found = {"components": listed}
    for what in dict.fromkeys(what for part in parts.values() for what in part.recognised):
        why = {folder: part.recognised[what] for folder, part in parts.items() if what in part.recognised}
        same = len(set(why.values())) == 1 and why.keys() == parts.keys()
        found[what] = next(iter(why.values())) if same else "; ".join(_of(folder, text) for folder, text in why.items())
    return found
