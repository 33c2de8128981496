"""What can be checked of an output without its checkpoints: that it is whole, and as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from belay_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import BelayError, CheckpointError, UsageError
from belay_cli.record import DOCUMENT, Record, document, document_values, read_record, told_by
from belay_cli.storage.files import OpenFiles
from belay_cli.verification.beside import check_files, content, missing, wrong_copy, wrong_index
from belay_cli.verification.checks import FAILED, HELD, Check, Counter, Progress
from belay_cli.verification.headers import check_headers
from belay_cli.verification.same import check_same, check_same_unread, same_record

_AS_IT_IS = Opening(allow_averages=True, as_it_is=True)  # whatever an output is called
_DIGEST_BYTES = 4 << 20  # read at a time
_COEFFICIENT_TOLERANCE = 1e-9


def check_alone(
    output: Path, threads: int, progress: Progress = lambda done: None
) -> tuple[Checkpoint, list[Record], list[Check]]:
    """What can be checked of an output without its checkpoints: that it is whole, and as it was written.

    Raises CheckpointError if it cannot be read at all, or has no record.
    """
    if (same := same_record(output)) is not None:
        average, checks = check_same(output, same, _check_coefficients(same), threads, progress)
        return average, [same], checks
    try:
        average = open_checkpoint(output, _AS_IT_IS, needs_step=False)
    except CheckpointError as error:
        if wrong := wrong_copy(output):
            raise CheckpointError(wrong, file=output, hint="make it again from its checkpoints") from error
        raise
    records, (structure, record, coefficients) = check_unread(average)
    if structure.status == HELD and (wrong := wrong_index(average)):
        structure = Check("structure", FAILED, wrong)
    headers, files = check_headers(average, records[0]), check_files(average, records[0])
    digests = _check_digests(average, records, threads, Counter(average, progress))
    return average, records, [structure, headers, record, files, digests, coefficients]


def check_unread(average: Checkpoint) -> tuple[list[Record], tuple[Check, Check, Check]]:
    """What can be checked without reading a weight: files, record, coefficients. Raises CheckpointError."""
    if isinstance(average.path, Path) and (same := same_record(average.path)) is not None:
        record = Check("record", HELD, "lies beside the weights")
        return [same], (check_same_unread(average.path, same), record, _check_coefficients(same))
    records = [read_record(file.metadata, str(file.path)) for file in average.files]
    first = records[0]
    return records, (_check_structure(average, first), _check_record(average, records), _check_coefficients(first))


def recorded(output: Path) -> Record | None:
    """What an output says of itself; None if it cannot be read, which is said when it is checked."""
    try:
        if (same := same_record(output)) is not None:
            return same
        average = open_checkpoint(output, _AS_IT_IS, needs_step=False)
        return read_record(average.files[0].metadata, str(output))
    except BelayError:
        return None


def _check_structure(average: Checkpoint, record: Record) -> Check:
    if average.directory is not None:
        for name in (DOCUMENT, *record.copies):
            if wrong := missing(average.directory, name):
                return Check("structure", FAILED, f"{name} {wrong}")
    files = f"{len(average.files)} file{'' if len(average.files) == 1 else 's'}"
    return Check("structure", HELD, f"{len(average.tensors)} tensors in {files}")


def _check_record(average: Checkpoint, records: Sequence[Record]) -> Check:
    """Every file says the same, and belay.json says what they say."""
    if any(replace(record, digests={}) != replace(records[0], digests={}) for record in records):
        return Check("record", FAILED, "the files of the output record different averages")
    if average.directory is None:
        return Check("record", HELD, "in the metadata of the file")
    weights = document_values(told_by(average.files[0].metadata, average.files[0].path), whole_record(records).digests)
    try:
        written = content(average.directory / DOCUMENT)
        says_the_same, as_written = json.loads(written) == weights, written == document(weights)
    except CheckpointError as error:
        return Check("record", FAILED, f"{DOCUMENT} {error.message}")
    except (ValueError, RecursionError):
        return Check("record", FAILED, f"{DOCUMENT} is not valid JSON")
    if not says_the_same:
        return Check("record", FAILED, f"{DOCUMENT} says something else than the metadata of the weights")
    if not as_written:
        return Check("record", FAILED, f"{DOCUMENT} is not what was written")
    return Check("record", HELD, f"{DOCUMENT} and the metadata of the weights agree")


def whole_record(records: Sequence[Record]) -> Record:
    """What the files of an output say together: one record, with the digests of all of them."""
    return records[0].with_digests({name: digest for one in records for name, digest in one.digests.items()})


def _check_digests(average: Checkpoint, records: Sequence[Record], threads: int, counter: Counter) -> Check:
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


def _digest(average: Checkpoint, name: str, counter: Counter) -> str:
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
    try:
        c = record.rule.coefficients(record.ticks)
    except UsageError as error:
        return Check("coefficients", FAILED, f"the recorded rule is none: {error}")
    for entry, expected in zip(record.series, c.tolist(), strict=True):
        if not abs(entry.coefficient - expected) <= _COEFFICIENT_TOLERANCE:
            what = f"{entry.name} is recorded with {entry.coefficient:.9g}; the rule gives {expected:.9g}"
            return Check("coefficients", FAILED, what)
    return Check("coefficients", HELD, "those of the recorded rule")
