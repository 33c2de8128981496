"""The values of an output, made again from the checkpoints by the recursion, in float64, never by the coefficients."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from belay_cli.checkpoints.adapters.config import is_linear
from belay_cli.checkpoints.adapters.lora import Pair, gain, pairs_in
from belay_cli.checkpoints.aliases import untied
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.engine.low_rank import Matrix, average_update, relative_error
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import BY_NAME, DTYPES
from belay_cli.formats.floats import as_float64
from belay_cli.planning.policies import AVERAGE, Policies
from belay_cli.record import Record
from belay_cli.rules import Float64Array
from belay_cli.storage.files import OpenFiles
from belay_cli.verification.checks import FAILED, HELD, Check, Counter

BLOCK = 4096  # elements of one sample
_RECURSION_TOLERANCE = 1e-10  # of the largest weight: what the recursion itself may round, tick after tick

_MANTISSA = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}  # bits, with the leading one
_SMALLEST = {"F64": -1074, "F32": -149, "F16": -24, "BF16": -133}  # exponent of the smallest number above 0


def check_values(
    average: Checkpoint,
    record: Record,
    inputs: Sequence[Checkpoint],
    share: float,
    threads: int,
    counter: Counter,
) -> Check:
    """Compare samples of every tensor, `share` of each, with the checkpoints' values in the recorded order."""
    policies = Policies(**record.policies)
    if record.is_same:  # names share bytes in it as in the last checkpoint
        *inputs, average = untied([*inputs, average], policies.action)
    else:
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
    rank = average.tensors[pair.a].shape[0]
    c = record.rule.replay(record.ticks, list(np.eye(len(record.series))))
    c = c * gain(inputs[-1].tensors, pair, rank)
    count = sum(average.tensors[name].elements for name in pair)
    with OpenFiles(limit=16) as files:

        def matrix(checkpoint: Checkpoint, name: str) -> Matrix:
            tensor = checkpoint.tensors[name]
            return _numbers(checkpoint, name, 0, tensor.elements, files).reshape(tensor.shape[0], -1)

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
                bad = _first_bad(as_float64(written, tensor.dtype), rows, record, averaged, tensor)
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
    with np.errstate(all="ignore"):
        exact = record.rule.replay(record.ticks, rows) if averaged else rows[-1]
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
    return as_float64(_raw(checkpoint, name, start, count, files), checkpoint.tensors[name].dtype)
