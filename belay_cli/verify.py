"""Verify an output: its structure, its digests, its coefficients, and its values by the recursion.

Three things are independent of what wrote it: the digests are taken again over every byte; the coefficients
are derived again from the rule; and the values are made again from the checkpoints by the recursion, in
float64, never by the coefficients.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.adapters.config import is_linear
from belay_cli.checkpoints.adapters.lora import Pair, gain, pairs_in
from belay_cli.checkpoints.aliases import untied
from belay_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import BelayError, CheckpointError, SeriesError, UsageError
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import BY_NAME, DTYPES
from belay_cli.plan.policies import AVERAGE, Policies
from belay_cli.provenance import DOCUMENT, Record, document, read_record
from belay_cli.rules.dynamics import Float64Array, debiased_ema_coefficients, dynamics_coefficients
from belay_cli.rules.recursion import replay_intervals
from belay_cli.storage.files import OpenFiles
from belay_cli.storage.json_file import read_json

_AS_IT_IS = Opening(allow_averages=True, as_it_is=True)  # whatever an output is called

HELD, FAILED, NOT_CHECKED = "held", "failed", "not checked"

BLOCK = 4096  # elements of one sample
_DIGEST_BYTES = 4 << 20  # read at a time
_COEFFICIENT_TOLERANCE = 1e-9
_RECURSION_TOLERANCE = 1e-10  # of the largest weight: what the recursion itself may round, tick after tick

_MANTISSA = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}  # bits, with the leading one
_SMALLEST = {"F64": -1074, "F32": -149, "F16": -24, "BF16": -133}  # exponent of the smallest number above 0


@dataclass(frozen=True)
class Check:
    """One thing that was asked of an output. `status` is HELD, FAILED or NOT_CHECKED."""

    name: str
    status: str
    detail: str
    tensor: str | None = None


Progress = Callable[[float], None]  # called with the share of the bytes that is done


def verify(
    output: Path, series: Series | str, share: float, threads: int, progress: Progress = lambda done: None
) -> list[Check]:
    """Every check of an output, in order; `share` of each tensor's values is sampled, 1 for all of them.

    Without the series, in place of which there is the reason, only the output itself is checked. Raises
    CheckpointError if the output cannot be read at all, or has no record.
    """
    of_values = 0.0 if isinstance(series, str) else _share_of_values(len(series.checkpoints), share)
    average, records, checks = check_alone(output, threads, lambda done: progress(done * (1 - of_values)))
    record = records[0]
    if isinstance(series, str):
        without = "without the checkpoints they cannot be"
        return [*checks, Check("inputs", NOT_CHECKED, series), Check("values", NOT_CHECKED, without)]
    try:
        inputs = _recorded_inputs(record, series)
    except BelayError as error:
        return [*checks, Check("inputs", FAILED, str(error)), Check("values", NOT_CHECKED, "the inputs are others")]
    checks.append(Check("inputs", HELD, f"the {len(inputs)} checkpoints are those recorded"))
    so_far = _Counter(average, lambda done: progress(1 - of_values + done * of_values))
    return [*checks, _check_values(average, record, inputs, share, threads, so_far)]


def _share_of_values(checkpoints: int, share: float) -> float:
    """How much of the reading the values take: so much of each checkpoint, against the output once."""
    return share * checkpoints / (1 + share * checkpoints)


def check_alone(
    output: Path, threads: int, progress: Progress = lambda done: None
) -> tuple[Checkpoint, list[Record], list[Check]]:
    """What can be checked of an output without its checkpoints: that it is whole, and as it was written.

    Raises CheckpointError if it cannot be read at all, or has no record.
    """
    average = open_checkpoint(output, _AS_IT_IS, needs_step=False)
    records = [read_record(file.metadata, str(file.path)) for file in average.files]
    checks = [
        _check_structure(average, records[0]),
        _check_record(average, records),
        _check_digests(average, records, threads, _Counter(average, progress)),
        _check_coefficients(records[0]),
    ]
    return average, records, checks


def recorded(output: Path) -> Record | None:
    """What an output says of itself; None if it cannot be read, which is said when it is checked."""
    try:
        average = open_checkpoint(output, _AS_IT_IS, needs_step=False)
        return read_record(average.files[0].metadata, str(output))
    except BelayError:
        return None


class _Counter:
    """Tensors that are done, as a share of all bytes. Threads count together."""

    def __init__(self, average: Checkpoint, progress: Progress) -> None:
        self._sizes = {name: tensor.nbytes for name, tensor in average.tensors.items()}
        self._total, self._done, self._progress = sum(self._sizes.values()) or 1, 0, progress
        self._lock = threading.Lock()

    def done(self, name: str) -> None:
        with self._lock:
            self._done += self._sizes.get(name, 0)
            self._progress(self._done / self._total)


def _check_structure(average: Checkpoint, record: Record) -> Check:
    if average.directory is not None:
        for name in (DOCUMENT, *record.copies):
            if not (average.directory / name).is_file():
                return Check("structure", FAILED, f"{name} is missing")
    files = f"{len(average.files)} file{'' if len(average.files) == 1 else 's'}"
    return Check("structure", HELD, f"{len(average.tensors)} tensors in {files}")


def _check_record(average: Checkpoint, records: Sequence[Record]) -> Check:
    """Every file says the same, and belay.json says what they say."""
    if any(replace(record, digests={}) != replace(records[0], digests={}) for record in records):
        return Check("record", FAILED, "the files of the output record different averages")
    if average.directory is None:
        return Check("record", HELD, "in the metadata of the file")
    try:
        told = read_json(average.directory / DOCUMENT)
    except CheckpointError:
        return Check("record", FAILED, f"{DOCUMENT} cannot be read")
    if told != whole_record(average, records):
        return Check("record", FAILED, f"{DOCUMENT} says something else than the metadata of the weights")
    return Check("record", HELD, f"{DOCUMENT} and the metadata of the weights agree")


def whole_record(average: Checkpoint, records: Sequence[Record]) -> dict[str, Any]:
    """What the files of an output say together: the content of its belay.json."""
    digests = {name: digest for record in records for name, digest in record.digests.items()}
    try:
        return document(average.files[0].metadata, digests)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("has a damaged record of how it was made", file=average.files[0].path) from error


def _check_digests(average: Checkpoint, records: Sequence[Record], threads: int, counter: _Counter) -> Check:
    recorded = {name: digest for record in records for name, digest in record.digests.items()}
    if recorded.keys() != average.tensors.keys():
        name = min(recorded.keys() ^ average.tensors.keys())
        return Check("digests", FAILED, f"{name!r} is only in one of record and weights", name)
    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(recorded, pool.map(lambda name: _digest(average, name, counter), recorded), strict=True))
    for name, digest in recorded.items():
        if found[name] != digest:
            return Check("digests", FAILED, f"the bytes of {name!r} are not those that were written", name)
    return Check("digests", HELD, f"every byte of {len(recorded)} tensors")


def _digest(average: Checkpoint, name: str, counter: _Counter) -> str:
    stored, nbytes = average.stored(name), average.tensors[name].nbytes
    buffer, digest = memoryview(bytearray(min(nbytes, _DIGEST_BYTES))), hashlib.sha256()
    with OpenFiles(limit=1) as files:
        for begin in range(0, nbytes, _DIGEST_BYTES):
            part = buffer[: nbytes - begin]
            stored.read_into(files, part, begin)
            digest.update(part)
    counter.done(name)
    return digest.hexdigest()


def _check_coefficients(record: Record) -> Check:
    ticks = [entry.tick for entry in record.series]
    try:
        derive = debiased_ema_coefficients(record.dynamics.a, ticks) if record.debias else None
        c = dynamics_coefficients(record.dynamics, ticks) if derive is None else derive
    except UsageError as error:
        return Check("coefficients", FAILED, f"the recorded rule is none: {error}")
    for entry, expected in zip(record.series, c.tolist(), strict=True):
        if not abs(entry.coefficient - expected) <= _COEFFICIENT_TOLERANCE:
            what = f"{entry.name} is recorded with {entry.coefficient:.9g}; the rule gives {expected:.9g}"
            return Check("coefficients", FAILED, what)
    return Check("coefficients", HELD, "those of the recorded rule")


def _recorded_inputs(record: Record, series: Series) -> list[Checkpoint]:
    """The checkpoints in the recorded order, whatever they are called now. Raises SeriesError if one is missing."""
    found = dict(zip(fingerprints(series.checkpoints), series.checkpoints, strict=True))
    for entry in record.series:
        if entry.fingerprint not in found:
            named = any(checkpoint.name == entry.name for checkpoint in series.checkpoints)
            what = "is not the one that was recorded" if named else "is not among the checkpoints given"
            raise SeriesError(f"{entry.name} {what}")
    return [found[entry.fingerprint] for entry in record.series]


def _check_values(
    average: Checkpoint,
    record: Record,
    inputs: Sequence[Checkpoint],
    share: float,
    threads: int,
    counter: _Counter,
) -> Check:
    policies = Policies(**record.policies)
    inputs = untied(inputs, policies.action)
    wanted = {n: policies.action(n, t.dtype) for n, t in inputs[-1].tensors.items()}
    wanted = {name: action for name, action in wanted.items() if action != "drop"}
    if wanted.keys() != average.tensors.keys():
        name = min(wanted.keys() ^ average.tensors.keys())
        return Check("values", FAILED, f"{name!r} should{'' if name in wanted else ' not'} be there", name)

    updates = _updates(record, inputs, policies)
    factors = {name: pair for pair in updates for name in pair}

    def one(name: str) -> tuple[int, str]:
        if name in factors:
            result = _check_update(average, record, inputs, factors[name]) if name == factors[name].a else (0, "")
        else:
            result = _check_tensor(average, record, inputs, name, wanted[name] == AVERAGE, share)
        counter.done(name)
        return result

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(one, wanted))
    for name, (_, bad) in zip(wanted, results, strict=True):
        if bad:
            return Check("values", FAILED, f"{name!r} {bad}", name)
    checked = sum(count for count, _ in results)
    total = sum(tensor.elements for tensor in average.tensors.values())
    return Check("values", HELD, f"{checked} of {total} values, by the recursion")


def _updates(record: Record, inputs: Sequence[Checkpoint], policies: Policies) -> list[Pair]:
    """The updates that were averaged as products."""
    if record.lora != "delta" or is_linear(inputs[-1]):
        return []
    tensors = inputs[-1].tensors
    return list(pairs_in(tensors, inputs[-1], lambda name: policies.action(name, tensors[name].dtype) == AVERAGE))


def _check_update(average: Checkpoint, record: Record, inputs: Sequence[Checkpoint], pair: Pair) -> tuple[int, str]:
    """Compare a whole update, B·A, with that of the checkpoints, cut to the same rank."""
    import torch

    from belay_cli.engine.low_rank import average_update, relative_error

    ticks = [entry.tick for entry in record.series]
    rank = average.tensors[pair.a].shape[0]
    c = replay_intervals(record.dynamics, ticks, list(np.eye(len(ticks))), debias=record.debias)
    c = c * gain(inputs[-1].tensors, pair, rank)
    count = sum(average.tensors[name].elements for name in pair)
    with OpenFiles(limit=16) as files:

        def matrix(checkpoint: Checkpoint, name: str) -> torch.Tensor:
            tensor = checkpoint.tensors[name]
            return torch.from_numpy(_numbers(checkpoint, name, 0, tensor.elements, files).reshape(tensor.shape[0], -1))

        exact = average_update(
            ((float(k), matrix(source, pair.b), matrix(source, pair.a)) for k, source in zip(c, inputs, strict=True)),
            rank,
        )
        error = relative_error((matrix(average, pair.b), matrix(average, pair.a)), (exact.b, exact.a))
    limit = max(1e-6, 8 * 2.0 ** -_MANTISSA[average.tensors[pair.a].dtype])
    return count, "" if error <= limit else f"is {error:.1e} off the average of the updates"


def _check_tensor(
    average: Checkpoint, record: Record, inputs: Sequence[Checkpoint], name: str, averaged: bool, share: float
) -> tuple[int, str]:
    """How many values were checked, and what is wrong with the first bad one."""
    tensor, checked = average.tensors[name], 0
    sources = inputs if averaged else inputs[-1:]
    for source in sources:
        if name not in source.tensors:
            return 0, f"is not in {source.name}"
    if any(source.tensors[name].shape != tensor.shape for source in sources):
        return 0, "has another shape than in the checkpoints"
    if tensor.dtype != _recorded_dtype(record, inputs[-1].tensors[name].dtype):
        return 0, f"is {DTYPES[tensor.dtype].name}, which is not what the record says"
    with OpenFiles(limit=16) as files:
        for start, count in blocks(name, tensor.elements, share):
            written = _raw(average, name, start, count, files)
            if not averaged and tensor.dtype == inputs[-1].tensors[name].dtype:
                if written.tobytes() != _raw(inputs[-1], name, start, count, files).tobytes():
                    return checked, f"is not that of the last checkpoint, near element {start}"
            else:
                rows = [_numbers(source, name, start, count, files) for source in sources]
                bad = _first_bad(_as_float64(written, tensor.dtype), rows, record, averaged, tensor)
                if bad is not None:
                    return checked, f"differs from the recursion at element {start + bad}"
            checked += count
    return checked, ""


def _recorded_dtype(record: Record, source: str) -> str:
    """The dtype code that a tensor of this source dtype has in the output."""
    converted = record.dtype in BY_NAME and DTYPES[source].averageable
    return BY_NAME[record.dtype].code if converted else source


def _first_bad(
    written: Float64Array, rows: list[Float64Array], record: Record, averaged: bool, tensor: Tensor
) -> int | None:
    ticks = [entry.tick for entry in record.series]
    with np.errstate(all="ignore"):
        exact = replay_intervals(record.dynamics, ticks, rows, debias=record.debias) if averaged else rows[-1]
        slack = _RECURSION_TOLERANCE * np.max(np.abs(rows), axis=0)
        within = np.abs(written - exact) <= 0.51 * _ulp(exact, tensor.dtype) + slack
        same = (written == exact) | (np.isnan(written) & np.isnan(exact))
    bad = np.flatnonzero(~(within | same))
    return int(bad[0]) if bad.size else None


def _ulp(exact: Float64Array, dtype: str) -> Float64Array:
    """The distance of neighbouring numbers of the dtype near each value."""
    exponent = np.frexp(exact)[1] - _MANTISSA[dtype]
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, _SMALLEST[dtype])))


def blocks(name: str, elements: int, share: float) -> Iterator[tuple[int, int]]:
    """Start and length of the samples of a tensor: evenly spread, shifted by its name, at least one block."""
    count = math.ceil(elements / BLOCK)
    wanted = count if share >= 1 else max(1, math.ceil(count * share))
    shift = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    chosen = sorted({(i * count // wanted + shift) % count for i in range(wanted)}) if count else []
    for block in chosen:
        yield block * BLOCK, min(BLOCK, elements - block * BLOCK)


def _raw(
    checkpoint: Checkpoint, name: str, start: int, count: int, files: OpenFiles
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    bits = DTYPES[checkpoint.tensors[name].dtype].bits
    begin = start * bits // 8
    data = np.empty((start + count) * bits // 8 - begin, np.uint8)
    checkpoint.stored(name).read_into(files, data.data, begin)
    return data


def _numbers(checkpoint: Checkpoint, name: str, start: int, count: int, files: OpenFiles) -> Float64Array:
    return _as_float64(_raw(checkpoint, name, start, count, files), checkpoint.tensors[name].dtype)


def _as_float64(raw: np.ndarray[tuple[int], np.dtype[np.uint8]], dtype: str) -> Float64Array:
    """Exact. bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return raw.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float64)
