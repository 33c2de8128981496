"""The tensors of a directory: each in pieces that lie in its files, every one a file of torch.save by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dcp.metadata import PlainObject, Properties, field, lie
from belay_cli.formats.dcp.piece_reader import PiecePlace, PieceReader
from belay_cli.formats.dtypes import DTYPES, Dtype
from belay_cli.formats.text import short
from belay_cli.formats.torch.file import CODES
from belay_cli.formats.torch.objects import ALLOWED
from belay_cli.storage.files import Stored, StoredFile, is_plain_name
from belay_cli.storage.pieces import Piece, StoredPieces, check_pieces, simplest

_MOST_PIECES = 1_000_000  # of one tensor

_TORCH_NAMES = {code: name for name, code in CODES.items()}


def _dtypes() -> list[tuple[Any, str, Dtype]]:
    """The stand-in of each dtype in `.metadata`, its name in torch, and what it is here."""
    names = ((_TORCH_NAMES.get(code, dtype.name), dtype) for code, dtype in DTYPES.items())
    return [(ALLOWED[f"torch.{name}"], name, dtype) for name, dtype in names if f"torch.{name}" in ALLOWED]


_DTYPES = _dtypes()


class FoundTensor(NamedTuple):
    """A tensor by the name that it is to have, and where it lies."""

    tensor: Tensor
    stored: Stored | StoredPieces


def find_places(
    file: StoredFile, storage: Mapping[Any, Any], wanted: set[str]
) -> dict[str, dict[tuple[int, ...], PiecePlace]]:
    """Of each tensor that is wanted, where its pieces lie, by the places of their first elements in it."""
    found: dict[str, dict[tuple[int, ...], PiecePlace]] = {}
    for index, info in storage.items():
        fqn = field(file, index, "fqn")
        if isinstance(fqn, str) and fqn in wanted:
            starts = _sizes(file, fqn, field(file, index, "offset", fqn))
            found.setdefault(fqn, {})[starts] = _place(file, fqn, info)
    return found


def furthest(file: StoredFile, storage: Mapping[Any, Any]) -> dict[str, tuple[int, str]]:
    """By the name of each file, up to which byte something lies in it, tensor or not, and what that is."""
    found: dict[str, tuple[int, str]] = {}
    for index, info in storage.items():
        fields = info.fields if isinstance(info, PlainObject) and isinstance(info.fields, dict) else {}
        name, begin, length = (fields.get(key) for key in ("relative_path", "offset", "length"))
        if isinstance(name, str) and type(begin) is int and type(length) is int:
            fqn = field(file, index, "fqn")
            found[name] = max(found.get(name, (0, "")), (begin + length, fqn if isinstance(fqn, str) else ""))
    return found


def _place(file: StoredFile, fqn: str, info: Any) -> PiecePlace:
    name, begin, length = (field(file, info, key, fqn) for key in ("relative_path", "offset", "length"))
    if not isinstance(name, str) or not is_plain_name(name):
        raise CheckpointError(
            f"puts {short(fqn)} into {_shown(name)}, which is not a file of this directory",
            file=file.path,
            tensor=fqn,
            hint="the metadata is damaged, or not to be trusted; copy the checkpoint again",
        )
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, length)):
        raise lie(file, f"a piece of {short(fqn)} begins or ends nowhere", fqn)
    if info.fields.get("transform_descriptors"):
        raise CheckpointError(
            f"{short(fqn)} is stored in a form of its own: {_shown(info.fields['transform_descriptors'])}",
            file=file.path,
            tensor=fqn,
            hint="save it without extensions of the storage",
        )
    return PiecePlace(name, begin, length)


def _shown(value: Any) -> str:
    """A value that may be anything, as text that fits on a line."""
    try:
        return short(value)
    except RecursionError:
        return "a nest"


def read_tensor(
    file: StoredFile,
    name: str,
    fqn: str,
    entry: PlainObject,
    places: Mapping[tuple[int, ...], PiecePlace],
    reader: PieceReader,
) -> FoundTensor | str:
    """A tensor, checked against the header of each of its pieces, or in words what it is if it is no plain array.

    file: `.metadata`; name: what it is to be called; entry and places: what the file says of the tensor `fqn`. Raises
    CheckpointError.
    """
    found = _dtype(field(file, entry, "properties", fqn))
    if isinstance(found, str):
        return found
    torch_name, dtype = found
    shape = _sizes(file, fqn, field(file, entry, "size", fqn))
    chunks = field(file, entry, "chunks", fqn)
    if not isinstance(chunks, list) or len(chunks) > _MOST_PIECES:
        raise lie(file, f"{short(fqn)} has no list of pieces", fqn)
    boxes = [_box(file, fqn, chunk) for chunk in chunks]
    wrong = check_pieces(shape, [Piece(file, 0, starts, sizes, ()) for starts, sizes in boxes])
    if wrong:
        raise lie(file, f"of {short(fqn)} {wrong}", fqn)
    pieces = []
    for starts, sizes in boxes:
        if 0 in sizes:
            continue
        if starts not in places:
            raise lie(file, f"a piece of {short(fqn)} is nowhere", fqn)
        pieces.append(reader.piece(fqn, (torch_name, dtype), starts, sizes, places[starts]))
    tensor = Tensor(name, dtype.code, shape, 0, math.prod(shape) * dtype.bits // 8)
    return FoundTensor(tensor, simplest(shape, dtype.bits // 8, pieces) if pieces else Stored(file, 0))


def _box(file: StoredFile, fqn: str, chunk: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    starts, sizes = (_sizes(file, fqn, field(file, chunk, key, fqn)) for key in ("offsets", "sizes"))
    return starts, sizes


def _dtype(properties: Any) -> tuple[str, Dtype] | str:
    """The dtype of a tensor: its name in torch, and what it is here; in words, if safetensors does not have it."""
    fields = properties.fields if isinstance(properties, Properties) else None
    kind = fields[0] if isinstance(fields, tuple) and fields else None
    for stand_in, name, dtype in _DTYPES:
        if kind is stand_in:
            return name, dtype
    return f"of dtype {getattr(kind, 'name', 'none')}, which safetensors does not have"


def _sizes(file: StoredFile, fqn: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in value):
        raise lie(file, f"a shape of {short(fqn)} is none", fqn)
    return value
