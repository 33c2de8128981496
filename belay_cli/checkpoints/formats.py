"""One file or directory of weights, opened by whichever format it has. Headers only."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from belay_cli.checkpoints.dcp import READERS, read_dcp
from belay_cli.checkpoints.directory import (
    STANDARD_STEMS,
    SUFFIX,
    TORCH_SUFFIXES,
    WeightSet,
    check_index,
    choose_weights,
    is_dcp,
    shards_of,
    weight_sets,
)
from belay_cli.checkpoints.dtypes import DTYPES
from belay_cli.checkpoints.foreign import no_weights, not_a_checkpoint, recognise
from belay_cli.checkpoints.pieces import StoredPieces
from belay_cli.checkpoints.safetensors_header import Tensor, read_header
from belay_cli.checkpoints.storage import AnyPath, OpenFiles, ReadAt, Stored, StoredFile, open_file, open_files
from belay_cli.checkpoints.torch_file import plain_names, read_torch_file
from belay_cli.checkpoints.weights import Opening, Weights, safetensors_weights
from belay_cli.errors import CheckpointError, UsageError

# The stem under which loaders look for safetensors, where torch files have another.
_STEMS = {"pytorch_model": "model"}


def read_file(path: AnyPath, opening: Opening) -> Weights:
    """The weights in one file. Raises CheckpointError."""
    if path.suffix == SUFFIX:
        _refuse_torch_options(path, opening)
        return safetensors_weights((read_header(path),), path.stem, None)
    if path.suffix in TORCH_SUFFIXES:
        return _torch_weights([path], path.stem, None, opening)
    raise not_a_checkpoint(path)


def read_directory(directory: AnyPath, opening: Opening) -> Weights:
    """The weights that lie in a directory itself. Raises CheckpointError."""
    if is_dcp(directory):
        return _dcp_weights(directory, opening)
    sets = weight_sets(directory)
    if not any(s.stem in STANDARD_STEMS for s in sets) and recognise([s.entry.name for s in sets]):
        raise no_weights(directory)  # rank files, which would be taken for several models
    chosen = choose_weights(directory)
    if chosen is None:
        raise no_weights(directory)
    if chosen.suffix == SUFFIX:
        _refuse_torch_options(directory, opening)
        return _safetensors(chosen)
    stem = _STEMS.get(chosen.stem, chosen.stem)
    if chosen.index is None:
        return _torch_weights([chosen.entry], stem, directory, opening)
    owners = shards_of(chosen.index, chosen.suffix)
    weights = _torch_weights([directory / name for name in sorted(set(owners.values()))], stem, directory, opening)
    names = plain_names(list(owners))[0]
    held = {(name, weights.files[tensor.file].path.name) for name, tensor in weights.tensors.items()}
    held |= {(name, weights.files[weights.tensors[kept].file].path.name) for name, kept in weights.aliases.items()}
    check_index(chosen.index, dict(zip(names, owners.values(), strict=True)), held)
    return weights


def _refuse_torch_options(path: AnyPath, opening: Opening) -> None:
    if opening.state_key is not None:
        raise UsageError(f"--state-key is for torch files, and {path} is safetensors", hint="leave it out")


def _safetensors(chosen: WeightSet) -> Weights:
    if chosen.index is None:
        return safetensors_weights((read_header(chosen.entry),), chosen.stem, chosen.directory)
    owners = shards_of(chosen.index, SUFFIX)
    files = tuple(read_header(chosen.directory / name) for name in sorted(set(owners.values())))
    check_index(chosen.index, owners, {(tensor.name, file.path.name) for file in files for tensor in file.tensors})
    return safetensors_weights(files, chosen.stem, chosen.directory)


def _torch_weights(paths: list[AnyPath], stem: str, directory: AnyPath | None, opening: Opening) -> Weights:
    files, parts = [], []
    for path in paths:
        with open_file(path) as opened:
            files.append(StoredFile(path, opened.size, opened.modified))
            parts.append(read_torch_file(files[-1], opened.read_at, state_key=opening.state_key, source=opening.source))
    return _weights(tuple(files), parts, stem, directory, step=_only({p.step for p in parts}))


def _dcp_weights(directory: AnyPath, opening: Opening) -> Weights:
    with contextlib.ExitStack() as opened:
        threads = threading.local()

        def files() -> OpenFiles:  # a run of hundreds of ranks has more files than may be open at once
            if not hasattr(threads, "files"):
                threads.files = opened.enter_context(OpenFiles(open_files(READERS + 1)))
            found: OpenFiles = threads.files
            return found

        def read(name: str) -> tuple[StoredFile, ReadAt]:
            path = directory / name
            with open_file(path) as file:
                stored = StoredFile(path, file.size, file.modified)

            def read_at(offset: int, count: int) -> bytes:
                buffer = bytearray(count)
                files().read_into(stored, memoryview(buffer), offset)
                return bytes(buffer)

            return stored, read_at

        found = read_dcp(directory, read, state_key=opening.state_key)
    return _weights(found.files, [found], "model", directory, step=None)


def _weights(
    files: tuple[StoredFile, ...], parts: list[Any], stem: str, directory: AnyPath | None, *, step: int | None
) -> Weights:
    tensors: dict[str, Tensor] = {}
    places: dict[str, Stored | StoredPieces] = {}
    aliases: dict[str, str] = {}
    notes: dict[str, None] = {}
    for number, part in enumerate(parts):
        for found in part.tensors:
            if found.name in tensors:
                raise CheckpointError(f"{found.name!r} lies in two of the files", file=directory, tensor=found.name)
            tensor = Tensor(found.name, found.dtype, found.shape, 0, 0, number)
            tensors[found.name] = tensor._replace(nbytes=tensor.elements * DTYPES[found.dtype].bits // 8)
            places[found.name] = found.stored
        aliases.update(getattr(part, "aliases", {}))
        notes.update(dict.fromkeys(part.notes))
    return Weights(files, tensors, stem, directory, places, step, aliases, tuple(notes))


def _only(steps: set[int | None]) -> int | None:
    return steps.pop() if len(steps) == 1 else None
