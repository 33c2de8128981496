"""Weights that lie beside those of a checkpoint and are in no output: what a person who averages should know of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.directory import STATE, holders
from belay_cli.checkpoints.order.averages import ema_by_name
from belay_cli.checkpoints.order.names import names_a_checkpoint
from belay_cli.formats import FILES, is_directory_format
from belay_cli.formats.foreign import recognise
from belay_cli.formats.shards import SHARD
from belay_cli.storage.files import AnyPath

_SUFFIXES = tuple(suffix for found in FILES for suffix in found.suffixes)
_DEPTH = 2  # folders: 2_Dense/, and the modules of a router

# The same model once more, by name: in another format, in another dtype, or as Mistral's and Meta's own tools name it.
_THE_SAME = re.compile(r"(pytorch_model|model|diffusion_pytorch_model)(\.[a-z0-9_]+)?|consolidated(\.\d+)?")
# A second process or a second model of accelerate: model_1.safetensors, pytorch_model_2.bin.
_SECOND = re.compile(r"(?:pytorch_)?model_\d+")

Taken = Mapping[str, set[str]]  # folder, empty for the directory itself -> the names of the files taken there


def left_beside(checkpoint: Checkpoint) -> list[str]:
    """Where weights lie, in a checkpoint's files or beside them, that it does not take: keys, or paths of files."""
    taken = {folder: {file.path.name for file in part.files} for folder, part in checkpoint.weights.components.items()}
    found = weights_beside(checkpoint.directory, taken)
    if checkpoint.weights.parts:  # the EMA of one of them is passed over with a note
        found = [name for name in found if not ema_by_name(name.partition("/")[0])]
    return [*checkpoint.weights.beside, *found, *_other_models(checkpoint)]


def _other_models(checkpoint: Checkpoint) -> list[str]:
    """Folders of the checkpoint's directory that hold other models than the one that was taken; no EMA of it."""
    inner = checkpoint.directory
    if inner is None or inner == checkpoint.path:
        return []
    return [
        f"{entry.name}/"
        for entry in holders(checkpoint.path)
        if entry != inner and not ema_by_name(entry.name) and not ema_by_name(inner.name)
    ]


def weights_beside(directory: AnyPath | None, taken: Taken) -> list[str]:
    """Paths of weights in a checkpoint's directory, relative to it, that are not among the files taken.

    What a trainer keeps for itself, other checkpoints and the same model in another format are none.
    """
    return sorted(_walk(directory, taken, _DEPTH, "")) if directory is not None else []


def _walk(directory: AnyPath, taken: Taken, depth: int, inside: str) -> Iterator[str]:
    here = taken.get(inside.rstrip("/"))
    for entry in directory.iterdir():
        if entry.name.startswith(".") or STATE.fullmatch(entry.name) or recognise([entry.name]):
            continue
        if entry.is_file():
            if _is_weights(entry.name) and not ema_by_name(entry.stem) and not (here and _is_taken(entry, here)):
                yield inside + entry.name
        elif depth and entry.is_dir() and not names_a_checkpoint(entry.name) and not entry.is_symlink():
            yield from _inside(entry, taken, depth, inside)


def _inside(directory: AnyPath, taken: Taken, depth: int, inside: str) -> Iterator[str]:
    """Of a folder that holds a whole checkpoint only its name, else the weights in it."""
    if is_directory_format(directory):
        if inside + directory.name not in taken:
            yield f"{inside}{directory.name}/"
    elif not recognise([entry.name for entry in directory.iterdir()]):
        yield from _walk(directory, taken, depth - 1, f"{inside}{directory.name}/")


def _is_weights(name: str) -> bool:
    return name.endswith(_SUFFIXES)


def _is_taken(entry: AnyPath, taken: set[str]) -> bool:
    """Whether a file is one of those taken, or the same model once more."""
    stem = match[1] if (match := SHARD.fullmatch(entry.name)) else entry.stem
    return entry.name in taken or (_THE_SAME.fullmatch(stem) is not None and not _SECOND.fullmatch(stem))
