"""A directory of torch.distributed.checkpoint: the model's tensors, by position, without torch, and nothing executed.

`.metadata` is a pickle that says which tensors there are, cut into which pieces, and where in the `*.distcp` files each
piece lies. A piece is a file of torch.save by itself, so its bytes are found as in any torch file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from belay_cli.checkpoints.directory import DCP_METADATA, is_plain_name
from belay_cli.checkpoints.dtypes import DTYPES, Dtype
from belay_cli.checkpoints.ema_layouts import says_ema
from belay_cli.checkpoints.pieces import Piece, StoredPieces, check_pieces, simplest
from belay_cli.checkpoints.restricted_pickle import LARGEST, ForbiddenNames, load
from belay_cli.checkpoints.safetensors_header import shape_text
from belay_cli.checkpoints.storage import AnyPath, ReadAt, Stored, StoredFile
from belay_cli.checkpoints.torch_file import CODES, plain_names
from belay_cli.checkpoints.torch_pickle import ALLOWED, Unreadable, View, read_object
from belay_cli.checkpoints.torch_zip import listed, open_archive, short
from belay_cli.errors import CheckpointError

READERS = 8  # small reads, one after the other in each piece
_MOST_PIECES = 1_000_000  # of one tensor
_HEAD, _TAIL = 4096, 66_000  # bytes at the ends of a piece that hold its headers, and the directory of its archive
_COPY_AGAIN = "the save is incomplete or damaged; copy it again, or leave the checkpoint out"

# Names of what a trainer saves beside the model, of the model itself, and of the object that holds them all.
_TRAINER = re.compile(
    r"(.*_)?(optim|optimizers?|lr_?schedulers?|schedulers?|rng(_states?)?|train(er)?_state|data_?loaders?|scaler|sampler)"
    r"(_\d+|_states?)?",
    re.IGNORECASE,
)
_MODEL = frozenset(("model", "app", "state_dict", "model_state_dict", "module", "net", "weights"))
_APP = ("app",)


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
    """An object of `.metadata` as it is pickled: its kind, and its fields (those it is made with, until it is set)."""

    __slots__ = ("fields",)
    fields: Any

    def __new__(cls, *fields: Any) -> _Record:
        made = super().__new__(cls)
        made.fields = fields
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict | tuple):
            raise ValueError("an object has no fields")
        self.fields = state


def _kind(name: str) -> type[_Record]:
    return type(name, (_Record,), {"__slots__": ()})


_Metadata, _Tensor, _Bytes, _Chunk, _Properties, _Index, _Info, _Opaque = map(
    _kind, ("Metadata", "Tensor", "Bytes", "Chunk", "Properties", "Index", "Info", "Opaque")
)


def _allowed() -> Mapping[str, Any]:
    """What `.metadata` may name: its own classes, beside what any torch file may (shapes, dtypes)."""
    place, older = "torch.distributed.checkpoint", "torch.distributed._shard.sharded_tensor.metadata"
    names: dict[str, Any] = {
        f"{place}.metadata.Metadata": _Metadata,
        f"{place}.metadata.TensorStorageMetadata": _Tensor,
        f"{place}.metadata.BytesStorageMetadata": _Bytes,
        f"{place}.metadata.ChunkStorageMetadata": _Chunk,
        f"{place}.metadata.TensorProperties": _Properties,
        f"{older}.TensorProperties": _Properties,
        f"{place}.metadata.MetadataIndex": _Index,
        f"{place}.metadata.StorageMeta": _Opaque,
        f"{place}.metadata._MEM_FORMAT_ENCODING": _Opaque,
        f"{older}.MEM_FORMAT_ENCODING": _Opaque,
        # The second is OLMo-core's, whose writer has a class of its own with the same fields.
        f"{place}.filesystem._StorageInfo": _Info,
        "olmo_core.distributed.checkpoint.filesystem._StorageInfo": _Info,
        f"{place}.filesystem._StoragePrefix": _Opaque,
        # The first releases of Python 3.11 ask for a member of an enumeration in this way. It looks nothing up.
        "builtins.getattr": ALLOWED["torch.serialization._get_layout"],
    }
    systems = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    names |= {f"{module}.{name}": _Opaque for module in ("pathlib", "pathlib._local") for name in systems}
    return MappingProxyType({**ALLOWED, **names})


_ALLOWED = _allowed()

_TORCH_NAMES = {code: name for name, code in CODES.items()}


def _dtypes() -> list[tuple[Any, str, Dtype]]:
    """The stand-in of each dtype in `.metadata`, its name in torch, and what it is here."""
    names = ((_TORCH_NAMES.get(code, dtype.name), dtype) for code, dtype in DTYPES.items())
    return [(ALLOWED[f"torch.{name}"], name, dtype) for name, dtype in names if f"torch.{name}" in ALLOWED]


_DTYPES = _dtypes()


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
    entries, paths, storage = (_mapping(file, metadata, name) for name in _FIELDS)
    names, notes = _model_names(file, directory, entries, paths, state_key)
    places = _places(file, storage, set(names.values()))
    opened = _opened(file, directory, read, places)
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(
            lambda name: _tensor(file, name, names[name], entries[names[name]], places.get(names[name], {}), opened),
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
            f"needs more than its own classes to be read: it would import {listed(error.names[:5])}",
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


def _field(file: StoredFile, record: Any, name: str, fqn: str | None = None) -> Any:
    if not isinstance(record, _Record) or not isinstance(record.fields, dict) or name not in record.fields:
        raise _lie(file, f"something in it has no {name}", fqn)
    return record.fields[name]


def _lie(file: StoredFile, what: str, tensor: str | None = None) -> CheckpointError:
    return CheckpointError(f"cannot be right: {what}", file=file.path, tensor=tensor, hint=_COPY_AGAIN)


# ---- which tensors are the model's

_Path = tuple[str, ...]  # keys that lead to a tensor in what was saved; each may hold dots of its own


def _model_names(
    file: StoredFile, directory: AnyPath, entries: Mapping[Any, Any], paths: Mapping[Any, Any], state_key: str | None
) -> tuple[dict[str, str], list[str]]:
    """Name in the model -> name in the checkpoint, and notes."""
    known = [(_path(fqn, paths), fqn) for fqn in entries if isinstance(fqn, str)]
    tensors = [(path, fqn) for path, fqn in known if isinstance(entries[fqn], _Tensor)]
    if state_key is None:
        taken, kept, notes = _usual(tensors, guessed=not paths)
        emas = _emas_beside(kept) if paths else []
        kept = [(path, fqn) for path, fqn in kept if path[0] not in emas]
        notes += [f"takes the weights at the top, not the EMA under {listed(emas)}"] if emas else []
        if _several(kept, guessed=not paths):
            raise _unclear(directory, "does not say which of its tensors are the model's", taken, kept or tensors)
        prefix = "".join(f"{part}." for part in taken)
        notes += [f"names are taken without the {prefix} under which they were saved"] if taken else []
        notes += [f"takes {top}.* too, an EMA by its name" for top in _tops(kept) if says_ema(top)]
    else:
        prefix, notes = f"{state_key}.", []
        kept = _below(prefix, tensors)
        if not kept:
            raise _unclear(directory, f"holds no tensors in {state_key}", (), tensors)
    others = [".".join(path) for path, fqn in _below(prefix, known) if isinstance(entries[fqn], _Bytes)]
    return _named(file, kept, notes + _left_out(others, whole=bool(prefix)))


def _usual(tensors: list[tuple[_Path, str]], guessed: bool) -> tuple[_Path, list[tuple[_Path, str]], list[str]]:
    """The keys under which the model lies where trainers put it, its tensors by their paths below, and notes.

    guessed: nothing says which dots in a name are those between keys.
    """
    taken: _Path = ()
    notes: list[str] = []
    while True:
        if taken in ((), _APP):  # further in, a model may have parts of such names
            states = [path for path, _ in tensors if _TRAINER.fullmatch(path[0])]
            unsure = dict.fromkeys(path[0] for path in states if guessed or len(path) == 1)
            notes += [f"leaves out {listed(list(unsure))}, by name a trainer's and not the model's"] if unsure else []
            tensors = [(path, fqn) for path, fqn in tensors if not _TRAINER.fullmatch(path[0])]
        tops = {path[0] for path, _ in tensors}
        if len(tops) != 1 or not tops <= _MODEL or any(len(path) == 1 for path, _ in tensors):
            return taken, tensors, notes
        taken += tuple(tops)
        tensors = [(path[1:], fqn) for path, fqn in tensors]


def _emas_beside(tensors: list[tuple[_Path, str]]) -> list[str]:
    """Keys of EMAs beside weights that lie under no key, so that none could be given for those."""
    keys = dict.fromkeys(path[0] for path, _ in tensors if len(path) > 1 and says_ema(path[0]))
    return list(keys) if any(len(path) == 1 for path, _ in tensors) else []


def _several(tensors: list[tuple[_Path, str]], guessed: bool) -> bool:
    """Whether what is left is no model, more than one, or an EMA of one."""
    tops = {path[0] for path, _ in tensors}
    inside = set() if guessed else {path[0] for path, _ in tensors if len(path) > 1}
    return not tops or any(map(says_ema, inside)) or (len(tops) > 1 and not inside.isdisjoint(_MODEL))


def _below(prefix: str, entries: Iterable[tuple[_Path, str]]) -> list[tuple[_Path, str]]:
    """The entries under a prefix of keys and dots, by what follows it."""
    named = ((".".join(path), fqn) for path, fqn in entries)
    return [((name[len(prefix) :],), fqn) for name, fqn in named if name.startswith(prefix) and name != prefix]


def _tops(tensors: Iterable[tuple[_Path, str]]) -> list[str]:
    """The parts before the first dot of the names."""
    return list(dict.fromkeys(top for path, _ in tensors for top, dot, _ in [".".join(path).partition(".")] if dot))


def _left_out(others: list[str], whole: bool) -> list[str]:
    """Notes about entries of a model that are no tensors; beside a model at the top lies what is none of it."""
    states = [name for name in others if "_extra_state" in name.split(".")]
    rest = [name for name in others if name not in set(states)] if whole else []
    notes = [f"leaves out {len(states)} _extra_state, no tensors: {listed(states[:1])}"] if states else []
    return notes + ([f"leaves out what is no tensor: {listed(rest)}"] if rest else [])


def _path(fqn: str, paths: Mapping[Any, Any]) -> _Path:
    """Where in what was saved a tensor lay; a name may hold dots of its own."""
    found = paths.get(fqn)
    if isinstance(found, tuple) and found and all(type(part) in (str, int) for part in found):
        return tuple(part if isinstance(part, str) else short(part) for part in found)
    return tuple(fqn.split("."))


def _unclear(directory: AnyPath, what: str, taken: _Path, tensors: list[tuple[_Path, str]]) -> CheckpointError:
    counts = Counter(".".join((*taken, path[0])) for path, _ in tensors)
    held = listed([f"{name} ({count})" for name, count in counts.items()]) or "no tensors"
    return CheckpointError(what, file=directory, hint=f"say where: --state-key NAME; it holds {held}")


def _named(file: StoredFile, kept: list[tuple[_Path, str]], notes: list[str]) -> tuple[dict[str, str], list[str]]:
    names, stripped = plain_names([".".join(path) for path, _ in kept])
    found: dict[str, str] = {}
    for name, (_, fqn) in zip(names, kept, strict=True):
        if name in found:
            raise _lie(file, f"{short(found[name])} and {short(fqn)} have one name", name)
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise _lie(file, f"{short(name)} is not a name in Unicode", name)
        found[name] = fqn
    return found, [*notes, *stripped]


# ---- where their bytes are


class _Place(NamedTuple):
    """Where a piece lies: the file by its name, and from which byte on, how many bytes."""

    name: str
    begin: int
    length: int


def _places(file: StoredFile, storage: Mapping[Any, Any], wanted: set[str]) -> dict[str, dict[tuple[int, ...], _Place]]:
    """Of each tensor that is wanted, where its pieces lie, by the places of their first elements in it."""
    found: dict[str, dict[tuple[int, ...], _Place]] = {}
    for index, info in storage.items():
        fqn = _field(file, index, "fqn")
        if isinstance(fqn, str) and fqn in wanted:
            starts = _sizes(file, fqn, _field(file, index, "offset", fqn))
            found.setdefault(fqn, {})[starts] = _place(file, fqn, info)
    return found


def _place(file: StoredFile, fqn: str, info: Any) -> _Place:
    name, begin, length = (_field(file, info, field, fqn) for field in ("relative_path", "offset", "length"))
    if not isinstance(name, str) or not is_plain_name(name):
        raise CheckpointError(
            f"puts {short(fqn)} into {_shown(name)}, which is not a file of this directory",
            file=file.path,
            tensor=fqn,
            hint="the metadata is damaged, or not to be trusted; copy the checkpoint again",
        )
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, length)):
        raise _lie(file, f"a piece of {short(fqn)} begins or ends nowhere", fqn)
    if info.fields.get("transform_descriptors"):
        raise CheckpointError(
            f"{short(fqn)} is stored in a form of its own: {_shown(info.fields['transform_descriptors'])}",
            file=file.path,
            tensor=fqn,
            hint="save it without extensions of the storage",
        )
    return _Place(name, begin, length)


def _shown(value: Any) -> str:
    """A value that may be anything, as text that fits on a line."""
    try:
        return short(value)
    except RecursionError:
        return "a nest"


def _opened(
    file: StoredFile,
    directory: AnyPath,
    read: Callable[[str], tuple[StoredFile, ReadAt]],
    places: Mapping[str, Mapping[Any, _Place]],
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


def _tensor(
    file: StoredFile,
    name: str,
    fqn: str,
    entry: _Record,
    places: Mapping[tuple[int, ...], _Place],
    opened: Mapping[str, tuple[StoredFile, ReadAt]],
) -> DcpTensor:
    torch_name, dtype = _dtype(file, fqn, _field(file, entry, "properties", fqn))
    shape = _sizes(file, fqn, _field(file, entry, "size", fqn))
    chunks = _field(file, entry, "chunks", fqn)
    if not isinstance(chunks, list) or len(chunks) > _MOST_PIECES:
        raise _lie(file, f"{short(fqn)} has no list of pieces", fqn)
    boxes = [_box(file, fqn, chunk) for chunk in chunks]
    wrong = check_pieces(shape, [Piece(file, 0, starts, sizes, ()) for starts, sizes in boxes])
    if wrong:
        raise _lie(file, f"of {short(fqn)} {wrong}", fqn)
    pieces = []
    for starts, sizes in boxes:
        if 0 in sizes:
            continue
        if starts not in places:
            raise _lie(file, f"a piece of {short(fqn)} is nowhere", fqn)
        pieces.append(_piece(fqn, torch_name, dtype, starts, sizes, places[starts], opened))
    if not pieces:
        return DcpTensor(name, dtype.code, shape, Stored(file, 0))
    return DcpTensor(name, dtype.code, shape, simplest(shape, dtype.bits // 8, pieces))


def _box(file: StoredFile, fqn: str, chunk: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    starts, sizes = (_sizes(file, fqn, _field(file, chunk, field, fqn)) for field in ("offsets", "sizes"))
    return starts, sizes


def _piece(
    fqn: str,
    torch_name: str,
    dtype: Dtype,
    starts: tuple[int, ...],
    sizes: tuple[int, ...],
    place: _Place,
    opened: Mapping[str, tuple[StoredFile, ReadAt]],
) -> Piece:
    stored, read_at = opened[place.name]
    if place.begin + place.length > stored.size:
        raise CheckpointError(
            f"is cut short: {short(fqn)} should lie in it up to byte {place.begin + place.length}, "
            f"and it has {stored.size}",
            file=stored.path,
            tensor=fqn,
            hint=_COPY_AGAIN,
        )
    view, data = _view(fqn, stored, place, _from_ends(read_at, place))
    if view.dtype != torch_name or view.shape != sizes:
        raise _wrong(stored, fqn, f"is not {shape_text(sizes)} of {torch_name}, as the metadata says")
    itemsize = dtype.bits // 8
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(sizes, view.strides, strict=True))
    last = view.offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    # The writer stores each element by itself. Else a few bytes could be said to be a tensor of any size.
    needed = max(last + 1, math.prod(sizes)) * itemsize
    if min((view.offset, *strides)) < 0 or needed > view.storage.nbytes:
        raise _wrong(stored, fqn, f"reaches outside its bytes: it needs {short(needed)} and has {view.storage.nbytes}")
    return Piece(stored, place.begin + data + view.offset * itemsize, starts, sizes, strides)


def _view(fqn: str, stored: StoredFile, place: _Place, read: ReadAt) -> tuple[View, int]:
    """The tensor that a piece holds, and at which byte of the piece its storage begins."""
    if read(0, min(4, place.length)) != b"PK\x03\x04":
        raise _wrong(stored, fqn, "is not as torch.save writes it", _SAVE_PLAINLY)
    try:
        archive = open_archive(StoredFile(stored.path, place.length), read)
        view = read_object(archive)
        if isinstance(view, View):
            return view, archive.offset(f"data/{view.storage.key}")
    except ForbiddenNames as error:
        raise _wrong(stored, fqn, f"would import {listed(error.names[:5])}", _SAVE_PLAINLY) from error
    except CheckpointError as error:
        raise _wrong(stored, fqn, error.message, error.hint) from error
    what = f"is {view.what}" if isinstance(view, Unreadable) else "is no tensor"
    raise _wrong(stored, fqn, what, _SAVE_PLAINLY)


_SAVE_PLAINLY = "the save is damaged, or not of plain tensors by torch's own writer; save it so, or copy it again"


def _wrong(stored: StoredFile, fqn: str, what: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"holds a piece of {short(fqn)} that {what}", file=stored.path, tensor=fqn, hint=hint or _COPY_AGAIN
    )


def _from_ends(read_at: ReadAt, place: _Place) -> ReadAt:
    """Reads inside a piece. Its headers lie at its ends, each of which is fetched once: a network makes reads dear."""
    tail = max(0, place.length - _TAIL)
    ends = ((tail, place.length), (0, min(_HEAD, place.length)))
    fetched: dict[int, bytes] = {}

    def read(offset: int, count: int) -> bytes:
        for begin, end in ends:
            if begin <= offset and offset + count <= end:
                if begin not in fetched:
                    fetched[begin] = read_at(place.begin + begin, end - begin)
                return fetched[begin][offset - begin : offset - begin + count]
        return read_at(place.begin + offset, count)

    return read


def _dtype(file: StoredFile, fqn: str, properties: Any) -> tuple[str, Dtype]:
    """The dtype of a tensor: its name in torch, and what it is here."""
    fields = properties.fields if isinstance(properties, _Properties) else None
    kind = fields[0] if isinstance(fields, tuple) and fields else None
    for stand_in, name, dtype in _DTYPES:
        if kind is stand_in:
            return name, dtype
    raise CheckpointError(
        f"{short(fqn)} has the dtype {getattr(kind, 'name', 'none')}, which safetensors does not have",
        file=file.path,
        tensor=fqn,
        hint="save the checkpoint with a plain tensor in its place, or without it",
    )


def _sizes(file: StoredFile, fqn: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in value):
        raise _lie(file, f"a shape of {short(fqn)} is none", fqn)
    return value
