"""A directory of torch.distributed.checkpoint: the model's tensors, by position, without torch, and nothing executed.

`.metadata` is a pickle that says which tensors there are, cut into which pieces, and where in the `*.distcp` files each
piece lies. A piece is a file of torch.save by itself, so its bytes are found as in any torch file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from belay_cli.checkpoints.directory import DCP_METADATA, is_plain_name
from belay_cli.checkpoints.dtypes import BY_NAME, DTYPES, Dtype
from belay_cli.checkpoints.pieces import Piece, StoredPieces, check_pieces, simplest
from belay_cli.checkpoints.restricted_pickle import LARGEST, ForbiddenNames, load
from belay_cli.checkpoints.storage import AnyPath, ReadAt, Stored, StoredFile
from belay_cli.checkpoints.torch_file import CODES, plain_names
from belay_cli.checkpoints.torch_pickle import View, read_object
from belay_cli.checkpoints.torch_zip import open_archive
from belay_cli.errors import CheckpointError

_READERS = 8  # small reads, one after the other in each piece
_COPY_AGAIN = "the save is incomplete or damaged; copy it again, or leave the checkpoint out"

# Top-level names of what a trainer saves beside the model, and of the model itself.
_TRAINER = re.compile(
    r"(.*_)?(optim|optimizers?|lr_?schedulers?|schedulers?|rng(_states?)?|train(er)?_state|data_?loaders?|scaler|sampler)"
    r"(_\d+|_states?)?",
    re.IGNORECASE,
)
_MODEL = ("model", "app", "state_dict", "model_state_dict", "module", "net", "weights")


class DcpTensor(NamedTuple):
    """A tensor of the model; dtype by its safetensors code."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: Stored | StoredPieces


@dataclass(frozen=True)
class DcpWeights:
    """The model's tensors, the files that hold them, and what a person should know."""

    files: tuple[StoredFile, ...]
    tensors: tuple[DcpTensor, ...]
    notes: tuple[str, ...] = ()


class _Record:
    """An object of `.metadata` as it is pickled: its kind, and the fields it is given, once."""

    __slots__ = ("fields",)

    def __init__(self, *fields: Any) -> None:
        self.fields: Any = fields

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict | tuple):
            raise ValueError("an object has no fields")
        self.fields = state


def _kind(name: str) -> type[_Record]:
    return type(name, (_Record,), {"__slots__": ()})


_Metadata, _Tensor, _Bytes, _Chunk, _Properties, _Index, _Info, _Opaque = map(
    _kind, ("Metadata", "Tensor", "Bytes", "Chunk", "Properties", "Index", "Info", "Opaque")
)


class _Function:
    """A stand-in that is called, and cannot be changed as a function could."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _DtypeName(str):
    """A dtype of torch, by its name there."""

    __slots__ = ()


_PLACE = "torch.distributed.checkpoint."
_ALLOWED: Mapping[str, Any] = MappingProxyType(
    {
        f"{_PLACE}metadata.Metadata": _Metadata,
        f"{_PLACE}metadata.TensorStorageMetadata": _Tensor,
        f"{_PLACE}metadata.BytesStorageMetadata": _Bytes,
        f"{_PLACE}metadata.ChunkStorageMetadata": _Chunk,
        f"{_PLACE}metadata.TensorProperties": _Properties,
        f"{_PLACE}metadata.MetadataIndex": _Index,
        f"{_PLACE}metadata.StorageMeta": _Opaque,
        f"{_PLACE}metadata._MEM_FORMAT_ENCODING": _Opaque,
        f"{_PLACE}filesystem._StorageInfo": _Info,
        f"{_PLACE}filesystem._StoragePrefix": _Opaque,
        "torch.Size": _Function(lambda shape=(): tuple(shape)),
        "torch.serialization._get_layout": _Function(lambda *_: None),
        "collections.OrderedDict": _Function(dict),
        **{
            f"{module}.{name}": _Opaque
            for module in ("pathlib", "pathlib._local")
            for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        },
        **{f"torch.{name}": _DtypeName(name) for name in [*BY_NAME, *CODES, "complex128", "complex32"]},
    }
)


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
    metadata = _metadata(file, read_at)
    entries, paths, places = (_mapping(file, metadata, name) for name in _FIELDS)
    names, notes = _model_names(directory, entries, paths, state_key)
    wanted = set(names.values())
    infos: dict[str, dict[tuple[int, ...] | None, Any]] = {}
    for index, info in places.items():
        fqn = _field(file, index, "fqn")
        if fqn in wanted:
            infos.setdefault(fqn, {})[_field(file, index, "offset")] = info
    opened = {name: read(name) for name in sorted(_file_names(file, infos))}
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(
            lambda name: _tensor(file, name, names[name], entries[names[name]], infos.get(names[name], {}), opened),
            names,
        )
        tensors = tuple(found)
    return DcpWeights((file, *(stored for stored, _ in opened.values())), tensors, tuple(notes))


_FIELDS = ("state_dict_metadata", "planner_data", "storage_data")


def _metadata(file: StoredFile, read_at: ReadAt) -> _Record:
    if file.size > LARGEST:
        raise CheckpointError(f"is {file.size} bytes, too large for the metadata of a checkpoint", file=file.path)
    try:
        found = load(read_at(0, file.size), _ALLOWED)
    except ForbiddenNames as error:
        raise CheckpointError(
            f"needs more than its own classes to be read: it would import {', '.join(error.names[:5])}",
            file=file.path,
            hint="belay never runs what a file contains; save the model's state dict by itself",
        ) from error
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise CheckpointError(
            f"cannot be read: {' '.join(str(error).split())[:200]}", file=file.path, hint=_COPY_AGAIN
        ) from error
    if not isinstance(found, _Metadata) or not isinstance(found.fields, dict):
        raise _lie(file, "it is not the metadata of a checkpoint")
    return found


def _mapping(file: StoredFile, metadata: _Record, name: str) -> Mapping[Any, Any]:
    found = metadata.fields.get(name)
    if found is None and name == "planner_data":
        return {}
    if not isinstance(found, dict):
        raise _lie(file, f"it has no {name}")
    return found


def _field(file: StoredFile, record: Any, name: str) -> Any:
    if not isinstance(record, _Record) or not isinstance(record.fields, dict) or name not in record.fields:
        raise _lie(file, f"something in it has no {name}")
    return record.fields[name]


def _lie(file: StoredFile, what: str, tensor: str | None = None) -> CheckpointError:
    return CheckpointError(f"cannot be right: {what}", file=file.path, tensor=tensor, hint=_COPY_AGAIN)


# ---- which tensors are the model's


def _model_names(
    directory: AnyPath, entries: Mapping[Any, Any], paths: Mapping[Any, Any], state_key: str | None
) -> tuple[dict[str, str], list[str]]:
    """Name in the model -> name in the checkpoint, and notes."""
    by_path = {
        _path(fqn, paths): fqn for fqn, entry in entries.items() if isinstance(fqn, str) and isinstance(entry, _Tensor)
    }
    if state_key is not None:
        key = tuple(state_key.split("."))
        inside = {
            path[len(key) :]: fqn for path, fqn in by_path.items() if path[: len(key)] == key and path[len(key) :]
        }
        if not inside:
            raise _no_model(directory, f"holds no tensors in {state_key}", by_path)
        return _named(directory, inside, [])
    kept = {path: fqn for path, fqn in by_path.items() if not _TRAINER.fullmatch(path[0])}
    taken: list[str] = []
    while kept and len({path[0] for path in kept}) == 1 and next(iter(kept))[0] in _MODEL:
        if min(map(len, kept)) == 1:
            break
        taken.append(next(iter(kept))[0])
        kept = {path[1:]: fqn for path, fqn in kept.items()}
    groups = {path[0] for path in kept}
    if not kept or (len(groups) > 1 and any(len(path) > 1 and path[0] in _MODEL for path in kept) and paths):
        raise _no_model(directory, "does not say which of its tensors are the model's", by_path)
    notes = [f"names are taken without the {'.'.join(taken)}. under which they were saved"] if taken else []
    return _named(directory, kept, notes)


def _path(fqn: str, paths: Mapping[Any, Any]) -> tuple[str, ...]:
    """Where in what was saved a tensor lay; a name may hold dots of its own."""
    found = paths.get(fqn)
    if isinstance(found, tuple) and found and all(isinstance(part, str | int) for part in found):
        return tuple(map(str, found))
    return tuple(fqn.split("."))


def _no_model(directory: AnyPath, what: str, by_path: Iterable[tuple[str, ...]]) -> CheckpointError:
    counts: dict[str, int] = {}
    for path in by_path:
        counts[path[0]] = counts.get(path[0], 0) + 1
    listed = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:8]) or "nothing"
    return CheckpointError(what, file=directory, hint=f"say where: --state-key NAME; it holds {listed}")


def _named(
    directory: AnyPath, kept: Mapping[tuple[str, ...], str], notes: list[str]
) -> tuple[dict[str, str], list[str]]:
    names, stripped = plain_names([".".join(path) for path in kept])
    found = dict(zip(names, kept.values(), strict=True))
    if len(found) < len(kept):
        raise CheckpointError("has two tensors of one name, with and without a prefix", file=directory)
    return found, [*notes, *stripped]


# ---- where their bytes are


def _file_names(file: StoredFile, infos: Mapping[str, Mapping[Any, Any]]) -> set[str]:
    names = set()
    for fqn, chunks in infos.items():
        for info in chunks.values():
            name = _field(file, info, "relative_path")
            if not isinstance(name, str) or not is_plain_name(name):
                raise CheckpointError(
                    f"puts {fqn!r} into {str(name)[:80]!r}, which is not a file of this directory",
                    file=file.path,
                    tensor=fqn,
                    hint="the metadata is damaged, or not to be trusted; copy the checkpoint again",
                )
            names.add(name)
    return names


def _tensor(
    file: StoredFile,
    name: str,
    fqn: str,
    entry: _Record,
    infos: Mapping[Any, Any],
    opened: Mapping[str, tuple[StoredFile, ReadAt]],
) -> DcpTensor:
    properties = _field(file, entry, "properties")
    kind = properties.fields[0] if isinstance(properties, _Properties) and properties.fields else None
    dtype = _dtype(file, fqn, kind)
    shape = _sizes(file, fqn, _field(file, entry, "size"))
    chunks = _field(file, entry, "chunks")
    if not isinstance(chunks, list) or len(chunks) > 1_000_000:
        raise _lie(file, f"{fqn!r} has no list of pieces", fqn)
    boxes = [
        (_sizes(file, fqn, _field(file, c, "offsets")), _sizes(file, fqn, _field(file, c, "sizes"))) for c in chunks
    ]
    first = next(iter(opened.values()))[0] if opened else file
    wrong = check_pieces(shape, [Piece(first, 0, starts, sizes, ()) for starts, sizes in boxes])
    if wrong:
        raise _lie(file, f"of {fqn!r} {wrong}", fqn)
    pieces = [_piece(file, fqn, dtype, box, infos, opened) for box in boxes if 0 not in box[1]]
    if not pieces:
        return DcpTensor(name, dtype.code, shape, Stored(first, 0))
    return DcpTensor(name, dtype.code, shape, simplest(shape, dtype.bits // 8, pieces))


def _piece(
    file: StoredFile,
    fqn: str,
    dtype: Dtype,
    box: tuple[tuple[int, ...], tuple[int, ...]],
    infos: Mapping[Any, Any],
    opened: Mapping[str, tuple[StoredFile, ReadAt]],
) -> Piece:
    starts, sizes = box
    info = infos.get(starts)
    if info is None:
        raise _lie(file, f"a piece of {fqn!r} is nowhere", fqn)
    if info.fields.get("transform_descriptors"):
        raise CheckpointError(
            f"{fqn!r} is stored in a form of its own: {str(info.fields['transform_descriptors'])[:60]}",
            file=file.path,
            tensor=fqn,
            hint="save it without extensions of the storage",
        )
    stored, read_at = opened[info.fields["relative_path"]]
    begin, length = _field(file, info, "offset"), _field(file, info, "length")
    if type(begin) is not int or type(length) is not int or not 0 <= begin <= begin + length <= stored.size:
        raise CheckpointError(
            f"is cut short: {fqn!r} should lie in it up to byte {begin + length if type(begin) is int else begin}, "
            f"and it has {stored.size}",
            file=stored.path,
            tensor=fqn,
            hint=_COPY_AGAIN,
        )
    archive = open_archive(StoredFile(stored.path, length), lambda offset, count: read_at(begin + offset, count))
    view = read_object(archive)
    if not isinstance(view, View) or view.dtype != _torch_name(dtype) or view.shape != sizes:
        raise CheckpointError(
            f"holds something else than the piece of {fqn!r} that the metadata promises",
            file=stored.path,
            tensor=fqn,
            hint=_COPY_AGAIN,
        )
    last = view.offset + sum((n - 1) * stride for n, stride in zip(sizes, view.strides, strict=True))
    itemsize = dtype.bits // 8
    if min((view.offset, *view.strides)) < 0 or (last + 1) * itemsize > view.storage.nbytes:
        raise _lie(stored, f"the piece of {fqn!r} reaches outside its bytes", fqn)
    offset = begin + archive.offset(f"data/{view.storage.key}") + view.offset * itemsize
    return Piece(stored, offset, starts, sizes, view.strides)


def _dtype(file: StoredFile, fqn: str, kind: Any) -> Dtype:
    name = str(kind) if isinstance(kind, _DtypeName) else ""
    dtype = DTYPES[CODES[name]] if name in CODES else BY_NAME.get(name)
    if dtype is None or dtype.bits % 8:
        raise CheckpointError(
            f"{fqn!r} has the dtype {name or 'none'}, which safetensors does not have", file=file.path, tensor=fqn
        )
    return dtype


def _torch_name(dtype: Dtype) -> str:
    return next((name for name, code in CODES.items() if code == dtype.code), dtype.name)


def _sizes(file: StoredFile, fqn: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in value):
        raise _lie(file, f"a shape of {fqn!r} is none", fqn)
    return value
