"""A directory of torch.distributed.checkpoint: the model's tensors, by position, without torch, and nothing executed.

`.metadata` is a pickle that says which tensors there are, cut into which pieces, and where in the `*.distcp` files each
piece lies. A piece is a file of torch.save by itself, so its bytes are found as in any torch file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from belay_cli.checkpoints.dcp.metadata import read_metadata
from belay_cli.checkpoints.dcp.model import model_names
from belay_cli.checkpoints.dcp.piece_reader import PieceReader, Place
from belay_cli.checkpoints.dcp.tensors import DcpTensor, find_places, read_tensor
from belay_cli.checkpoints.directory import DCP_METADATA
from belay_cli.checkpoints.storage import AnyPath, ReadAt, StoredFile
from belay_cli.checkpoints.torch_zip import short
from belay_cli.errors import CheckpointError

READERS = 8  # small reads, one after the other in each piece


@dataclass(frozen=True)
class DcpWeights:
    """The model's tensors, the files that hold them, and what a person should know."""

    files: tuple[StoredFile, ...]
    tensors: tuple[DcpTensor, ...]
    notes: tuple[str, ...] = ()


def read_dcp(
    directory: AnyPath, read: Callable[[str], tuple[StoredFile, ReadAt]], *, state_key: str | None = None
) -> DcpWeights:
    """The model in a directory of torch.distributed.checkpoint. Reads `.metadata` and the header of each piece.

    read: opens a file of the directory by its name. state_key: where in what was saved the model lies, its parts joined
    by dots. Raises CheckpointError, which names the file, the tensor and the mend.
    """
    if not (directory / DCP_METADATA).is_file():
        raise CheckpointError(
            f"holds *.distcp files but no {DCP_METADATA}",
            file=directory,
            hint="the save did not finish; leave the checkpoint out",
        )
    file, read_at = read(DCP_METADATA)
    entries, paths, storage = read_metadata(file, read_at)
    names, notes = model_names(file, directory, entries, paths, state_key)
    places = find_places(file, storage, set(names.values()))
    opened = _opened(file, directory, read, places)
    reader = PieceReader(opened)
    with ThreadPoolExecutor(READERS) as readers:
        tensors = readers.map(
            lambda name, fqn: read_tensor(file, name, fqn, entries[fqn], places.get(fqn, {}), reader),
            names.keys(),
            names.values(),
        )
        return DcpWeights((file, *(stored for stored, _ in opened.values())), tuple(tensors), tuple(notes))


def _opened(
    file: StoredFile,
    directory: AnyPath,
    read: Callable[[str], tuple[StoredFile, ReadAt]],
    places: Mapping[str, Mapping[Any, Place]],
) -> dict[str, tuple[StoredFile, ReadAt]]:
    """The files that hold pieces, by name."""
    first: dict[str, str] = {}
    for fqn, pieces in places.items():
        for place in pieces.values():
            first.setdefault(place.name, fqn)
    for name, fqn in sorted(first.items()):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"puts {short(fqn)} into {name}, which is not there",
                file=file.path,
                tensor=fqn,
                hint="copy the missing file, or leave the checkpoint out",
            )
    return {name: read(name) for name in sorted(first)}
