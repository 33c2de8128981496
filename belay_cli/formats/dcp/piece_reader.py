"""Pieces of tensors in the `*.distcp` files, each a file of torch.save by itself, checked by its own header."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Unreadable
from belay_cli.formats.dcp.metadata import COPY_AGAIN
from belay_cli.formats.dtypes import Dtype
from belay_cli.formats.restricted_pickle import LARGEST, ForbiddenNames
from belay_cli.formats.text import listed, shape_text, short
from belay_cli.formats.torch.archive import Archive, open_archive
from belay_cli.formats.torch.objects import View, read_pickle
from belay_cli.storage.files import ReadAt, StoredFile
from belay_cli.storage.pieces import Piece

_HEAD, _TAIL = 4096, 66_000  # bytes at the ends of a piece that hold its headers, and the directory of its archive
_MOST_KNOWN = 1000
_SAVE_PLAINLY = "the save is damaged, or not of plain tensors by torch's own writer; save it so, or copy it again"


class PiecePlace(NamedTuple):
    """Where a piece lies: the file by its name, and from which byte on, how many bytes."""

    name: str
    begin: int
    length: int


class PieceReader:
    """Reads the headers of pieces, in files that are open, by name. May be used from several threads.

    A model has many pieces of few shapes. Those of one shape have one header, which is understood once: the careful
    reading of a pickle takes longer than everything else.
    """

    def __init__(self, opened: Mapping[str, tuple[StoredFile, ReadAt]]) -> None:
        self._opened = opened
        self._known: dict[tuple[bytes, tuple[tuple[str, int], ...]], View] = {}

    def piece(
        self,
        fqn: str,
        dtype: tuple[str, Dtype],
        starts: tuple[int, ...],
        sizes: tuple[int, ...],
        place: PiecePlace,
    ) -> Piece:
        """A piece of a tensor, that its metadata says to be of this dtype (torch's name, ours) and these sizes.

        Raises CheckpointError if its own header says anything else.
        """
        stored, read_at = self._opened[place.name]
        refuse_cut(stored, place.begin + place.length, fqn)
        view, data = self._view(fqn, stored, place, _from_ends(read_at, place))
        if view.dtype != dtype[0] or view.shape != sizes:
            raise _wrong(stored, fqn, f"is not {shape_text(sizes)} of {dtype[0]}, as the metadata says")
        itemsize = dtype[1].bits // 8
        strides = tuple(stride if n > 1 else 0 for n, stride in zip(sizes, view.strides, strict=True))
        last = view.offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
        # The writer stores each element by itself. Else a few bytes could be said to be a tensor of any size.
        needed = max(last + 1, math.prod(sizes)) * itemsize
        if min((view.offset, *strides)) < 0 or needed > view.storage.nbytes:
            raise _wrong(
                stored, fqn, f"reaches outside its bytes: it needs {short(needed)} and has {view.storage.nbytes}"
            )
        return Piece(stored, place.begin + data + view.offset * itemsize, starts, sizes, strides)

    def _view(self, fqn: str, stored: StoredFile, place: PiecePlace, read: ReadAt) -> tuple[View, int]:
        """The tensor that a piece holds, and at which byte of the piece its storage begins."""
        if read(0, min(4, place.length)) != b"PK\x03\x04":
            raise _wrong(stored, fqn, "is not as torch.save writes it", _SAVE_PLAINLY)
        try:
            archive = open_archive(StoredFile(stored.path, place.length), read)
            view = self._understood(archive)
            if isinstance(view, View):
                begin, record = archive.offset(f"data/{view.storage.key}"), archive.records[f"data/{view.storage.key}"]
                if record.crc:
                    stored.checksums[place.begin + begin] = (record.size, record.crc)
                return view, begin
        except ForbiddenNames as error:
            raise _wrong(stored, fqn, f"would import {listed(error.names[:5])}", _SAVE_PLAINLY) from error
        except CheckpointError as error:
            raise _wrong(stored, fqn, error.message, error.hint) from error
        what = f"is {view.what}" if isinstance(view, Unreadable) else "is no tensor"
        raise _wrong(stored, fqn, what, _SAVE_PLAINLY)

    def _understood(self, archive: Archive) -> Any:
        data = archive.read("data.pkl", LARGEST)
        header = data, tuple((name, record.size) for name, record in archive.records.items())
        found = self._known.get(header)
        if found is not None:
            return found
        view = read_pickle(archive, data)
        if isinstance(view, View) and len(data) <= _HEAD and len(self._known) < _MOST_KNOWN:
            self._known[header] = view
        return view


def refuse_cut(stored: StoredFile, end: int, fqn: str) -> None:
    """Raise CheckpointError if a file ends before something that is said to lie in it."""
    if end > stored.size:
        raise CheckpointError(
            f"is cut short: {short(fqn)} should lie in it up to byte {end}, and it has {stored.size}",
            file=stored.path,
            tensor=fqn,
            hint=COPY_AGAIN,
        )


def _wrong(stored: StoredFile, fqn: str, what: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"holds a piece of {short(fqn)} that {what}", file=stored.path, tensor=fqn, hint=hint or COPY_AGAIN
    )


def _from_ends(read_at: ReadAt, place: PiecePlace) -> ReadAt:
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
