"""An output in the files of its last checkpoint: what of them is averaged, and that all else is copied as it is.

The layout of such an output is that of the checkpoint. Each averaged tensor is one or several runs of bytes in a file,
and a piece of the plan for each; whatever lies between them, and every other file, is a piece too, of plain bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.weights import Weights
from belay_cli.errors import CheckpointError, SeriesError
from belay_cli.formats import directory_format
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.torch.checksums import Checksum, checksums
from belay_cli.planning.files import SameFiles
from belay_cli.planning.layout import PlannedTensor, Shard
from belay_cli.planning.policies import AVERAGE, LAST
from belay_cli.storage.boxes import Box, Cuttable, NoRunsError, boxes_of
from belay_cli.storage.files import AnyPath, Stored, StoredFile, open_file
from belay_cli.storage.pieces import StoredPieces

_BYTES = "U8"
_ELSEWHERE = "leave out --format same: the average as safetensors has each tensor by itself"


class Summed(NamedTuple):
    """A record in the output, by the number and the path of its file in the last checkpoint, and its CRC-32 there.

    averaged: whether that is another one now; else it says whether what was copied is what was saved.
    """

    shard: int
    path: AnyPath
    checksum: Checksum
    averaged: bool


class Layout(NamedTuple):
    """The files of an output, its pieces in the order of their bytes, where each checkpoint has these, and checksums.

    Pieces are named by numbers.
    """

    shards: tuple[Shard, ...]
    pieces: tuple[PlannedTensor, ...]
    sources: tuple[Checkpoint, ...]
    summed: tuple[Summed, ...]


class _Run(NamedTuple):
    """A run of bytes of a tensor in a file of the last checkpoint; `skipped`: elements of its box that come before."""

    shard: int
    begin: int
    end: int
    tensor: PlannedTensor
    box: Box
    skipped: int = 0


def lay_out_same(series: Series, tensors: Sequence[PlannedTensor], files: SameFiles) -> Layout:
    """Where everything goes. Raises SeriesError for tensors that cannot be written so, and CheckpointError."""
    stored = _Stored(series)
    runs = _apart(stored, _runs(series.last, tensors, files))
    numbers = count()
    pieces: list[PlannedTensor] = []
    averaged: dict[str, _Run] = {}
    copied: dict[str, Stored] = {}
    by_shard = _by_shard(runs)
    for shard, file in enumerate(files.files):
        at = 0
        for run in (*by_shard.get(shard, ()), None):
            end = file.size if run is None else run.begin
            if at < end:
                piece = _copied(str(next(numbers)), files.names[shard], shard, at, end)
                copied[piece.name] = Stored(file, at)
                pieces.append(piece)
            if run is not None:
                piece = _averaged(str(next(numbers)), run)
                averaged[piece.name] = run
                pieces.append(piece)
                at = run.end
    shards = [
        Shard(name, file.size, name.rpartition("/")[0]) for name, file in zip(files.names, files.files, strict=True)
    ]
    sources = list(stored.sources(averaged))
    sources[-1] = _with(sources[-1], copied, files.files)
    return Layout(tuple(shards), tuple(pieces), tuple(sources), tuple(_summed(series.last, files, by_shard)))


def _copied(name: str, file: str, shard: int, begin: int, end: int) -> PlannedTensor:
    size = end - begin
    return PlannedTensor(name, LAST, _BYTES, _BYTES, (size,), size, size, shard, begin, of=file)


def _averaged(name: str, run: _Run) -> PlannedTensor:
    tensor = run.tensor
    nbytes = run.end - run.begin
    elements = nbytes * 8 // DTYPES[tensor.dtype].bits
    shape = (elements,) if run.skipped else tuple(run.box.sizes[d] for d in run.box.order)
    return PlannedTensor(
        name, AVERAGE, tensor.source_dtype, tensor.dtype, shape, elements, nbytes, run.shard, run.begin, of=tensor.name
    )


def _by_shard(runs: Iterable[_Run]) -> dict[int, list[_Run]]:
    found: dict[int, list[_Run]] = {}
    for run in runs:
        found.setdefault(run.shard, []).append(run)
    return found


# ---- the runs of the last checkpoint


def _runs(last: Checkpoint, tensors: Iterable[PlannedTensor], files: SameFiles) -> Iterator[_Run]:
    """Every run of every tensor; of one that is not averaged, what it spans, where it is no runs of its own."""
    for tensor in tensors:
        itemsize = _itemsize(tensor)
        stored = last.stored(tensor.name)
        try:
            boxes = boxes_of(stored, tensor.shape, itemsize)
        except NoRunsError as error:
            if tensor.action == AVERAGE:
                raise _refused(last, tensor, str(error)) from error
            yield from _spans(tensor, stored, itemsize, files)
            continue
        for box, file, offset in boxes:
            yield _Run(files.number(file), offset, offset + box.elements * itemsize, tensor, box)


def _spans(tensor: PlannedTensor, stored: Stored | StoredPieces, itemsize: int, files: SameFiles) -> Iterator[_Run]:
    for piece in stored.pieces if isinstance(stored, StoredPieces) else ():
        reach = 1 + sum((n - 1) * stride for n, stride in zip(piece.sizes, piece.strides, strict=True))
        box = Box(piece.starts, piece.sizes, tuple(range(len(piece.sizes))))
        yield _Run(files.number(piece.file), piece.offset, piece.offset + reach * itemsize, tensor, box)


def _apart(stored: _Stored, runs: Iterable[_Run]) -> Iterator[_Run]:
    """The averaged runs, no byte of which lies in two of them. Raises SeriesError where two mean different things."""
    furthest: dict[str, _Run] = {}  # by what becomes of a tensor, the run that reaches furthest so far
    for run in sorted(runs, key=lambda run: (run.shard, run.begin, -run.end, run.tensor.name)):
        at = run.begin
        for action, other in furthest.items():
            if other.shard != run.shard or other.end <= run.begin:
                continue
            if action != run.tensor.action:
                raise _shared(stored.last, other.tensor, run.tensor, "one of them is not averaged")
            if action == AVERAGE:
                if not stored.agree(other, run):
                    raise _shared(stored.last, other.tensor, run.tensor, "their averages differ")
                at = max(at, other.end)
        before = furthest.get(run.tensor.action)
        if before is None or (before.shard, before.end) < (run.shard, run.end):
            furthest[run.tensor.action] = run
        if run.tensor.action == AVERAGE and at < run.end:
            yield run._replace(begin=at, skipped=(at - run.begin) // _itemsize(run.tensor))


def _itemsize(tensor: PlannedTensor) -> int:
    return DTYPES[tensor.source_dtype].bits // 8


def _refused(last: Checkpoint, tensor: PlannedTensor, why: str) -> SeriesError:
    return SeriesError(
        f"{tensor.name!r} {why}, so its average cannot be written in its place",
        file=last.path,
        tensor=tensor.name,
        hint=_ELSEWHERE,
    )


def _shared(last: Checkpoint, one: PlannedTensor, other: PlannedTensor, why: str) -> SeriesError:
    return SeriesError(
        f"{one.name!r} and {other.name!r} share bytes, and {why}", file=last.path, tensor=other.name, hint=_ELSEWHERE
    )


# ---- the same in every checkpoint


class _Stored:
    """Where the boxes of tensors are stored in each checkpoint."""

    def __init__(self, series: Series) -> None:
        self._checkpoints = series.checkpoints
        self._known: list[dict[str, Cuttable]] = [{} for _ in series.checkpoints]

    @property
    def last(self) -> Checkpoint:
        """The checkpoint whose files the output has."""
        return self._checkpoints[-1]

    def _at(self, t: int, run: _Run) -> Stored | StoredPieces:
        found = self._known[t].get(run.tensor.name)
        if found is None:
            stored = self._checkpoints[t].stored(run.tensor.name)
            found = self._known[t][run.tensor.name] = Cuttable(stored, run.tensor.shape, _itemsize(run.tensor))
        return found.cut(run.box)

    def agree(self, one: _Run, other: _Run) -> bool:
        """Whether the bytes that two runs share are made of the same numbers, as `other` begins in `one`."""
        distance = other.begin - one.begin
        if one.tensor.dtype != other.tensor.dtype or distance % _itemsize(one.tensor):
            return False
        for t in range(len(self._checkpoints)):
            first, second = self._at(t, one), self._at(t, other)
            if isinstance(first, Stored) and isinstance(second, Stored):
                same = first.file is second.file and first.offset + distance == second.offset
            else:
                same = not distance and first == second
            if not same:
                return False
        return True

    def sources(self, averaged: Mapping[str, _Run]) -> Iterator[Checkpoint]:
        """The checkpoints, in which the averaged pieces are found by their names."""
        for t, checkpoint in enumerate(self._checkpoints):
            places = {name: _behind(self._at(t, run), run) for name, run in averaged.items()}
            self._known[t].clear()
            yield _with(checkpoint, places)


def _behind(stored: Stored | StoredPieces, run: _Run) -> Stored | StoredPieces:
    """Without the elements that another run has."""
    if not run.skipped:
        return stored
    itemsize = _itemsize(run.tensor)
    if isinstance(stored, Stored):
        return Stored(stored.file, stored.offset + run.skipped * itemsize)
    raise AssertionError("runs that share bytes in part lie in runs everywhere")


def _with(
    checkpoint: Checkpoint, places: Mapping[str, Stored | StoredPieces], files: Sequence[StoredFile] = ()
) -> Checkpoint:
    weights: Weights = checkpoint.weights
    known = dict.fromkeys((*weights.files, *files))
    found = {**(weights.places or {}), **places} if files else places
    return replace(checkpoint, weights=replace(weights, places=found, parts={}, aliases={}, files=tuple(known)))


# ---- checksums


def _summed(last: Checkpoint, files: SameFiles, runs: Mapping[int, Sequence[_Run]]) -> Iterator[Summed]:
    """The records of all archives in which something is averaged. Raises CheckpointError."""
    archives = _archives(last, files)
    for shard, own in runs.items():
        begins = [run.begin for run in own]
        found = 0
        path = files.files[shard].path
        with open_file(path) as file:
            for low, high in archives.get(shard, ()):
                if not _between(begins, low, high):
                    continue

                def read_at(offset: int, count: int, low: int = low) -> bytes:
                    return file.read_at(low + offset, count)

                for name, begin, end, places, crc in checksums(StoredFile(path, high - low), read_at):
                    inside = _between(begins, low + begin, low + end)
                    found += inside
                    checksum = Checksum(name, low + begin, low + end, tuple(low + at for at in places), crc)
                    yield Summed(shard, path, checksum, averaged=inside > 0)
        if found < len(own):
            raise CheckpointError("holds weights outside its records", file=path)


def _between(begins: Sequence[int], low: int, high: int) -> int:
    return bisect_left(begins, high) - bisect_left(begins, low)


def _archives(last: Checkpoint, files: SameFiles) -> dict[int, Sequence[tuple[int, int]]]:
    """By the number of each file, from where to where the files of torch.save in it reach."""
    found: dict[int, Sequence[tuple[int, int]]] = {}
    for part in last.weights.components.values():
        whole = None if part.directory is None else directory_format(part.directory)
        if whole is None or part.directory is None:
            found |= {files.number(file): [(0, file.size)] for file in part.files}
        else:
            by_name = {file.path.name: files.number(file) for file in part.files}
            ranges = whole.archives(part.directory)
            found |= {by_name[name]: own for name, own in ranges.items() if name in by_name}
    return found
