"""Files of torch.save: the object of each, and where its tensors lie, without torch, and nothing executed.

The way in: the zip archive (archive), the object that its pickle describes (objects); here its tensors become dtypes,
shapes and places in the file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Contents, Layout, NoWeights, Places, Tensor, Unreadable
from belay_cli.formats.dtypes import BY_NAME, DTYPES
from belay_cli.formats.restricted_pickle import ForbiddenNames
from belay_cli.formats.text import shape_text, short
from belay_cli.formats.torch.archive import COPY_AGAIN, Archive, open_archive
from belay_cli.formats.torch.hidden import needs_more
from belay_cli.formats.torch.objects import Pickled, View, read_object
from belay_cli.storage.files import AnyPath, Stored, StoredFile, open_file
from belay_cli.storage.pieces import Piece, StoredPieces, simplest

# Names of torch that safetensors writes otherwise.
CODES = {"float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0"}
_LARGEST_VIEW = 1 << 30  # bytes of a tensor that shows its storage many times over
_LEAVES = (View, Unreadable)


@contextlib.contextmanager
def read_torch(paths: Sequence[AnyPath]) -> Iterator[Contents]:
    """What one file of torch.save holds, or the shards of one checkpoint together. Raises CheckpointError."""
    with contextlib.ExitStack() as opened:
        archives: dict[StoredFile, Archive] = {}
        roots: list[Any] = []
        unknown: set[str] = set()
        for path in paths:
            archive = opened.enter_context(_opened(path))
            archives[archive.file] = archive
            root, names = _object(archive)
            roots.append(root)
            unknown.update(names)
        yield Contents(
            format="a torch file" if len(paths) == 1 else "torch files",
            path=paths[0] if len(paths) == 1 else paths[0].parent,
            root=_merged(paths, roots),
            leaves=_LEAVES,
            locate=lambda named: _locate(archives, named),
            identity=_identity,
            held=lambda: {pair for path, root in zip(paths, roots, strict=True) for pair in _held(path, root)},
            unknown=sorted(unknown),
        )


@contextlib.contextmanager
def _opened(path: AnyPath) -> Iterator[Archive]:
    with open_file(path) as file:
        yield open_archive(StoredFile(path, file.size, file.modified), file.read_at)


def _object(archive: Archive) -> Pickled:
    try:
        return read_object(archive)
    except ForbiddenNames as error:
        raise needs_more(archive.file.path, error.names) from error


# ---- several files


def _merged(paths: Sequence[AnyPath], roots: Sequence[Any]) -> Any:
    """The objects of all shards as one: what they all say of the run once, each tensor from the file that has it."""
    if len(roots) == 1:
        return roots[0]
    merged: Any = {}
    for path, root in zip(paths, roots, strict=True):
        if not isinstance(root, dict):
            raise NoWeights("holds no state dict, and is one shard of several", file=path)
        _merge(path, merged, root, depth=0)
    return merged


def _merge(path: AnyPath, merged: dict[Any, Any], root: Mapping[Any, Any], depth: int) -> None:
    for key, value in root.items():
        if key not in merged:
            merged[key] = dict(value) if isinstance(value, dict) and depth < 1 else value
        elif isinstance(value, _LEAVES) or isinstance(merged[key], _LEAVES):
            raise CheckpointError(f"{short(key)} lies in two of the files", file=path, tensor=str(key), hint=COPY_AGAIN)
        elif isinstance(value, dict) and isinstance(merged[key], dict) and depth < 1:
            _merge(path, merged[key], value, depth + 1)


def _held(path: AnyPath, root: Any) -> Iterator[tuple[str, str]]:
    """The names of the tensors of a shard, which lie at the top or one key further in."""
    inside = [root, *(value for value in root.values() if isinstance(value, dict))] if isinstance(root, dict) else []
    for entries in inside:
        yield from ((name, path.name) for name, value in entries.items() if isinstance(value, _LEAVES))


# ---- the places


def _identity(leaf: Any) -> object:
    """A view without the strides that say nothing where there is one element: equal for names of one tensor."""
    if not isinstance(leaf, View):
        return object()
    return leaf._replace(strides=tuple(s if n > 1 else 0 for n, s in zip(leaf.shape, leaf.strides, strict=True)))


def _locate(archives: Mapping[StoredFile, Archive], named: Layout) -> Places:
    files = {file: number for number, file in enumerate(archives)}
    tensors: dict[str, Tensor] = {}
    stored: dict[str, Stored | StoredPieces] = {}
    unreadable: dict[str, str] = {}
    for name, leaf in named.items():
        what = leaf.what if isinstance(leaf, Unreadable) else _unknown_dtype(leaf)
        if what is not None:
            unreadable[name] = what
            continue
        dtype = DTYPES[CODES[leaf.dtype]] if leaf.dtype in CODES else BY_NAME[leaf.dtype]
        stored[name] = _stored(archives[leaf.storage.file], name, leaf, dtype.bits // 8)
        nbytes = math.prod(leaf.shape) * dtype.bits // 8
        tensors[name] = Tensor(name, dtype.code, leaf.shape, 0, nbytes, files[leaf.storage.file])
    return Places(tuple(files), tensors, stored, unreadable)


def _unknown_dtype(view: View) -> str | None:
    known = view.dtype in CODES or view.dtype in BY_NAME
    return None if known else f"of dtype {view.dtype}, which safetensors does not have"


def _stored(archive: Archive, name: str, view: View, itemsize: int) -> Stored | StoredPieces:
    file = archive.file
    _check_bounds(file, name, view, itemsize)
    begin, record = archive.offset(f"data/{view.storage.key}"), archive.records[f"data/{view.storage.key}"]
    if record.crc:
        file.checksums[begin] = (record.size, record.crc)
    if 0 in view.shape:
        return Stored(file, begin)
    strides = tuple(s if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True))
    piece = Piece(file, begin + view.offset * itemsize, (0,) * len(view.shape), view.shape, strides)
    return simplest(view.shape, itemsize, (piece,))


def _check_bounds(file: StoredFile, name: str, view: View, itemsize: int) -> None:
    """Raise CheckpointError unless every element of the view lies in its storage."""
    shape, strides = view.shape, view.strides
    # Bounded one by one, so that their products stay small whatever a file claims.
    if not all(0 <= n < 1 << 63 for n in (view.offset, *shape, *strides)):
        raise _lie(
            file, name, f"has the shape {short(shape)}, strides {short(strides)} and offset {short(view.offset)}"
        )
    elements = math.prod(shape)
    last = view.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if elements and (last + 1) * itemsize > view.storage.nbytes:
        raise _lie(
            file,
            name,
            f"is {shape_text(shape)} of {view.dtype} up to byte {(last + 1) * itemsize} "
            f"of a storage that has {view.storage.nbytes}",
        )
    if elements * itemsize > max(file.size, _LARGEST_VIEW):
        raise _lie(file, name, f"is {shape_text(shape)} of {view.dtype}, many times what the file holds")


def _lie(file: StoredFile, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"has a data.pkl that cannot be right: {short(name)} {what}", file=file.path, tensor=name, hint=COPY_AGAIN
    )
