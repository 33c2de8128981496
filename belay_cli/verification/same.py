"""What can be checked of an output in the files of its last checkpoint; its record lies beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from belay_cli.checkpoints.checkpoint import Checkpoint, document_beside, open_checkpoint
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError
from belay_cli.record import DOCUMENT, LOCAL, Record, read_beside
from belay_cli.storage.blocks import file_digests
from belay_cli.verification.beside import wrong_local
from belay_cli.verification.checks import FAILED, HELD, Check, Progress

_MAKE_AGAIN = "make it again from its checkpoints"


def same_record(output: Path) -> Record | None:
    """What such an output says of itself; None if it is none. Raises CheckpointError if the record was damaged."""
    return read_beside(output)


def open_same(output: Path, record: Record) -> Checkpoint:
    """Its weights, looked for as in its checkpoints. Raises CheckpointError."""
    told = record.opening
    opening = Opening(told.get("subfolder"), told.get("state_key"), told.get("source"), allow_averages=True)
    return open_checkpoint(output, opening, needs_step=False)


def check_same(
    output: Path, record: Record, coefficients: Check, threads: int, progress: Progress = lambda done: None
) -> tuple[Checkpoint, list[Check]]:
    """What can be checked of it without its checkpoints. Raises CheckpointError if its weights cannot be read."""
    structure, digests = _check_files(output, record, threads, progress)
    try:
        average = open_same(output, record)
    except CheckpointError as error:
        if (wrong := structure if structure.status == FAILED else digests).status == FAILED:
            raise CheckpointError(wrong.detail, file=output, hint=_MAKE_AGAIN) from error
        raise
    where = DOCUMENT if output.is_dir() else document_beside(output).name
    if output.is_dir() and (output / LOCAL).exists() and (other := wrong_local(output / LOCAL)):
        return average, [structure, Check("record", FAILED, f"{LOCAL} {other}"), digests, coefficients]
    return average, [structure, Check("record", HELD, f"{where} is what was written"), digests, coefficients]


def check_same_unread(output: Path, record: Record) -> Check:
    """Whether its files are there, for which none is read."""
    missing = [name for name, path in paths_of(output, record).items() if not path.is_file()]
    if missing:
        return Check("structure", FAILED, f"{missing[0]} is missing")
    return Check("structure", HELD, f"{len(record.files)} file{'' if len(record.files) == 1 else 's'}")


def _check_files(output: Path, record: Record, threads: int, progress: Progress) -> tuple[Check, Check]:
    structure = check_same_unread(output, record)
    paths = {name: path for name, path in paths_of(output, record).items() if path.is_file()}
    found = file_digests(paths, threads, _share(sum(path.stat().st_size for path in paths.values()), progress))
    for name, digest in record.files.items():
        if found.get(name) != digest:
            what = f"{name} is missing" if name not in found else f"the bytes of {name} are not those that were written"
            return structure, Check("digests", FAILED, what)
    return structure, Check("digests", HELD, f"every byte of {structure.detail}")


def _share(total: int, progress: Progress) -> Callable[[int], None]:
    so_far = 0

    def done(count: int) -> None:
        nonlocal so_far
        so_far += count
        progress(so_far / (total or 1))

    return done


def paths_of(output: Path, record: Record) -> dict[str, Path]:
    """The files of an output by their names in its record."""
    if output.is_dir():
        return {name: output / name for name in record.files}
    return dict.fromkeys(record.files, output)
