"""The header of a safetensors file, read with distrust: nothing it claims is believed before it is checked.

Layout: u64 little-endian length of the header, the header (JSON), the data. The header maps each name to
dtype, shape and data_offsets [begin, end) relative to the data; `__metadata__` maps string to string.
The data has no holes and no overlaps, so the size of the file follows from the header.

Ours, because the safetensors library opens files of this machine only.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeGuard

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Contents, Layout, Places, Tensor
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.foreign import SAFETENSORS, SNIFFED, by_first_bytes
from belay_cli.formats.text import shape_text
from belay_cli.storage.files import AnyPath, ReadAt, StoredFile, open_file

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_NO_SIZE = 1 << 63
_MOST_BRACKETS = 10_000_000  # three a tensor; an empty list takes thirty times as much memory as text
METADATA = "__metadata__"


@dataclass(frozen=True, eq=False)
class WeightFile(StoredFile):
    """One safetensors file, known from its header."""

    tensors: tuple[Tensor, ...] = ()  # in the order of their bytes; shared between files with the same layout


def read_header(path: AnyPath) -> WeightFile:
    """Read and check the header of a safetensors file. Raises CheckpointError, which names the file and the tensor."""
    with open_file(path) as file:
        try:
            found = parse_header(path, file.size, _header_text(file.read_at, file.size, path))
        except CheckpointError as error:
            beginning = by_first_bytes(file.read_at(0, min(SNIFFED, file.size)))
            if beginning is None or beginning == SAFETENSORS:
                raise
            raise CheckpointError(beginning.what, file=path, hint=beginning.mend) from error
        return replace(found, modified=file.modified)


@contextlib.contextmanager
def read_safetensors(paths: Sequence[AnyPath]) -> Iterator[Contents]:
    """What one file holds, or the shards of one checkpoint together. Raises CheckpointError."""
    files = tuple(read_header(path) for path in paths)
    yield Contents(
        format="safetensors",
        path=paths[0] if len(paths) == 1 else paths[0].parent,
        root=_layout(tuple(file.tensors for file in files)),
        leaves=(Tensor,),
        locate=lambda named: Places(files, _renamed(named)),
        held=lambda: {(tensor.name, file.path.name) for file in files for tensor in file.tensors},
        metadata=_agreed(files),
    )


@lru_cache(maxsize=64)
def _layout(files: tuple[tuple[Tensor, ...], ...]) -> Layout:
    """By name, from all files."""
    numbered = enumerate(files)
    return Layout((t.name, t._replace(file=which) if which else t) for which, file in numbered for t in file)


@lru_cache(maxsize=64)
def _renamed(named: Layout) -> Mapping[str, Tensor]:
    return MappingProxyType({name: tensor._replace(name=name) for name, tensor in named.items()})


def _agreed(files: Sequence[WeightFile]) -> dict[str, str]:
    """The metadata that all shards have."""
    first, *rest = (file.metadata for file in files)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def _header_text(read_at: ReadAt, size: int, path: AnyPath) -> bytes:
    if size < 8:
        raise CheckpointError(f"is {size} bytes, too short for a safetensors file", file=path, hint=_COPY_AGAIN)
    length = int.from_bytes(read_at(0, 8), "little")
    if length > LARGEST_HEADER:
        raise CheckpointError(
            f"claims a header of {length} bytes; safetensors allows {LARGEST_HEADER}",
            file=path,
            hint="it is not a safetensors file, or it is damaged",
        )
    if length > size - 8:
        raise CheckpointError(
            f"is cut short: its header of {length} bytes does not fit in {size} bytes",
            file=path,
            hint=_COPY_AGAIN,
        )
    return read_at(8, length)


_COPY_AGAIN = "the file is incomplete; copy or save it again, or leave the checkpoint out"


def parse_header(path: AnyPath, size: int, text: bytes) -> WeightFile:
    """Check the header `text` of a file of `size` bytes."""
    metadata, tensors, end = _KNOWN.get(text) or _understood(path, text)
    data_start = 8 + len(text)
    _check_size(path, size - data_start, end)
    return WeightFile(path, size, data_start=data_start, metadata=dict(metadata), tensors=tensors)


# Checkpoints of one series have the same header as a rule, which is understood once; a few, for several at a time.
_KNOWN: dict[bytes, tuple[dict[str, str], tuple[Tensor, ...], int]] = {}
_MOST_KNOWN, _LONGEST_KNOWN = 16, 2 << 20


def _understood(path: AnyPath, text: bytes) -> tuple[dict[str, str], tuple[Tensor, ...], int]:
    """The metadata and the tensors that a header tells of, and where the last of these ends."""
    header = _parse_json(path, text)
    metadata = header.pop(METADATA, None)
    if metadata is None:  # null too, as safetensors itself reads it
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("has a header whose __metadata__ is not text by text", file=path)
    ordered = sorted((_tensor(path, name, entry) for name, entry in header.items()), key=lambda t: (t.begin, t.nbytes))
    found = metadata, _shared(tuple(ordered)), _check_layout(path, ordered)
    if len(text) <= _LONGEST_KNOWN:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[text] = found
    return found


def _parse_json(path: AnyPath, text: bytes) -> dict[str, Any]:
    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with {")
        if text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
            raise ValueError("it has more brackets than any model has tensors")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(
            f"has a header that is not valid JSON: {why}",
            file=path,
            hint="it is not a safetensors file, or damaged",
        ) from error
    return dict(header)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{_short(twice)} appears twice")
    return result


def _tensor(path: AnyPath, name: str, entry: Any) -> Tensor:
    def lie(what: str) -> CheckpointError:
        return CheckpointError(f"has a header that cannot be right: {_short(name)} {what}", file=path, tensor=name)

    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
        raise lie("is not a name in Unicode")
    if not isinstance(entry, dict):
        raise lie("is not described by an object")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise lie(f"has the unknown dtype {_short(code)}")
    if not _are_sizes(shape):
        raise lie(f"has the shape {_short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise lie(f"has the data_offsets {_short(offsets)}")
    begin, nbytes = offsets[0], offsets[1] - offsets[0]
    bits = math.prod(shape) * DTYPES[code].bits
    if bits != 8 * nbytes:
        raise lie(f"is {shape_text(shape)} of {DTYPES[code].name}, {-(-bits // 8)} bytes, but has {nbytes}")
    return Tensor(name, code, tuple(shape), begin, nbytes)


def _short(value: Any) -> str:
    """A value from a header as text that fits on a line, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    # Bounded, so that a product of sizes stays cheap whatever a header claims. A loop, since a series has many headers.
    if not isinstance(value, list) or len(value) > 64:
        return False
    for n in value:  # noqa: SIM110 - all() takes twice as long
        if type(n) is not int or not 0 <= n < _NO_SIZE:
            return False
    return True


def _check_layout(path: AnyPath, tensors: Iterable[Tensor]) -> int:
    """Where the last tensor ends. Raises CheckpointError if they do not lie side by side."""
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            what = "overlaps the tensor before it" if tensor.begin < end else "leaves a hole before it"
            raise CheckpointError(
                f"has a header that cannot be right: {tensor.name!r} {what}", file=path, tensor=tensor.name
            )
        end += tensor.nbytes
    return end


def _check_size(path: AnyPath, data_size: int, end: int) -> None:
    if end > data_size:
        raise CheckpointError(
            f"is cut short: its tensors take {end} bytes, and {max(data_size, 0)} are there",
            file=path,
            hint=_COPY_AGAIN,
        )
    if end < data_size:
        raise CheckpointError(f"has {data_size - end} bytes after its last tensor", file=path, hint=_COPY_AGAIN)


@lru_cache(maxsize=512)
def _shared(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first tuple that equals this one: a series of many checkpoints keeps one copy of its layout."""
    return tensors
