"""A directory of torch.distributed.checkpoint: what was saved, by position, without torch, and nothing executed.

`.metadata` is a pickle that says which tensors there are, cut into which pieces, and where in the `*.distcp` files each
piece lies. A piece is a file of torch.save by itself, so its bytes are found as in any torch file. Ours, because
torch's own reader unpickles `.metadata` without restrictions, and reads whole tensors.

metadata       what `.metadata` says
tree           what was saved, as nested dicts
tensors        tensors from their pieces
piece_reader   where a piece's bytes are
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Contents, Layout, Places
from belay_cli.formats.dcp.metadata import DcpMetadata, TensorEntry, read_metadata
from belay_cli.formats.dcp.piece_reader import PieceReader, refuse_cut
from belay_cli.formats.dcp.tensors import FoundTensor, find_places, furthest, read_tensor
from belay_cli.formats.dcp.tree import DcpLeaf, tree
from belay_cli.formats.text import short
from belay_cli.storage.files import (
    AnyPath,
    OpenFiles,
    ReadAt,
    StoredFile,
    is_plain_name,
    names_in,
    open_file,
    open_files,
)

METADATA = ".metadata"
READERS = 8  # small reads, one after the other in each piece

Read = Callable[[str], tuple[StoredFile, ReadAt]]  # opens a file of the directory by its name


def is_dcp(directory: AnyPath) -> bool:
    """Whether the directory is one of torch.distributed.checkpoint, whole or not."""
    names = names_in(directory)
    return any(name.endswith(".distcp") for name in names) or (METADATA in names and (directory / METADATA).is_file())


@contextlib.contextmanager
def read_dcp(directory: AnyPath, read: Read | None = None) -> Iterator[Contents]:
    """What a directory of torch.distributed.checkpoint holds. Reads `.metadata`, and the headers of what is located.

    Raises CheckpointError, which names the file, the tensor and the mend.
    """
    if not (directory / METADATA).is_file():
        raise CheckpointError(
            f"holds *.distcp files but no {METADATA}",
            file=directory,
            hint="the save did not finish; leave the checkpoint out",
        )
    with _reader(directory) as usual:
        opens = read or usual
        file, read_at = opens(METADATA)
        metadata = read_metadata(file, read_at)
        yield Contents(
            format="a directory of torch.distributed.checkpoint",
            path=directory,
            root=tree(file, metadata),
            leaves=(DcpLeaf,),
            locate=lambda named: _locate(file, directory, opens, metadata, named),
            keys_known=bool(metadata.paths),
        )


def dcp_archives(directory: AnyPath) -> dict[str, list[tuple[int, int]]]:
    """By the name of each file in a directory, from where to where the pieces in it reach, in order.

    Raises CheckpointError if anything of what was saved is not there, whether a tensor or not.
    """
    with _reader(directory) as opens:
        file, read_at = opens(METADATA)
        metadata = read_metadata(file, read_at)
        ends = furthest(file, metadata.storage)
        _refuse_cut(ends, _opened(file, directory, opens, {name: fqn for name, (_, fqn) in ends.items()}))
    tensors = {fqn for fqn, entry in metadata.entries.items() if isinstance(entry, TensorEntry)}
    found: dict[str, set[tuple[int, int]]] = {}
    for pieces in find_places(file, metadata.storage, tensors).values():
        for place in pieces.values():
            found.setdefault(place.name, set()).add((place.begin, place.begin + place.length))
    return {name: sorted(ranges) for name, ranges in found.items()}


@contextlib.contextmanager
def _reader(directory: AnyPath) -> Iterator[Read]:
    """Opens files by name; each thread keeps a few open, since a run of hundreds of ranks has more than may be."""
    with contextlib.ExitStack() as opened:
        threads = threading.local()

        def files() -> OpenFiles:
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

        yield read


def _locate(file: StoredFile, directory: AnyPath, read: Read, metadata: DcpMetadata, named: Layout) -> Places:
    wanted = {name: leaf.fqn for name, leaf in named.items()}
    places = find_places(file, metadata.storage, set(wanted.values()))
    first: dict[str, str] = {}
    for fqn, pieces in places.items():
        for place in pieces.values():
            first.setdefault(place.name, fqn)
    opened = _opened(file, directory, read, first)
    _refuse_cut(furthest(file, metadata.storage), opened)
    reader = PieceReader(opened)

    def one(name: str) -> FoundTensor | str:
        fqn = wanted[name]
        return read_tensor(file, name, fqn, metadata.entries[fqn], places.get(fqn, {}), reader)

    with ThreadPoolExecutor(READERS) as readers:
        found = dict(zip(wanted, readers.map(one, wanted), strict=True))
    whole = {name: tensor for name, tensor in found.items() if isinstance(tensor, FoundTensor)}
    return Places(
        (file, *(stored for stored, _ in opened.values())),
        {name: tensor.tensor for name, tensor in whole.items()},
        {name: tensor.stored for name, tensor in whole.items()},
        {name: what for name, what in found.items() if isinstance(what, str)},
    )


def _opened(
    file: StoredFile, directory: AnyPath, read: Read, holds: Mapping[str, str]
) -> dict[str, tuple[StoredFile, ReadAt]]:
    """The files that hold something, by name; holds: an example of what lies in each."""
    for name, fqn in sorted(holds.items()):
        if not is_plain_name(name) or not (directory / name).is_file():
            raise CheckpointError(
                f"puts {short(fqn)} into {name if name.isprintable() else short(name)}, which is not there",
                file=file.path,
                tensor=fqn,
                hint="copy the missing file, or leave the checkpoint out",
            )
    return {name: read(name) for name in sorted(holds)}


def _refuse_cut(ends: Mapping[str, tuple[int, str]], opened: Mapping[str, tuple[StoredFile, ReadAt]]) -> None:
    """Raise CheckpointError for a file that ends too early, also where that is none of the weights' business."""
    for name, (stored, _) in opened.items():
        refuse_cut(stored, *ends.get(name, (0, "")))
