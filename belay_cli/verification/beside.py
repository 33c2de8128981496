"""Whether the files beside the weights of an output are those that were written.

The record has digests of those that were copied, .belay/local.json carries one of itself, and an index is made anew.
What belay 0.1 wrote has none of these digests, which is said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePath

from belay_cli import words
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.companions import LARGEST
from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.checkpoints.weights import inside
from belay_cli.errors import CheckpointError
from belay_cli.formats.safetensors import WeightFile
from belay_cli.planning.layout import index_text
from belay_cli.record import DOCUMENT, LOCAL, LOCAL_BEGINS, Record, parse
from belay_cli.storage.files import AnyPath, open_file
from belay_cli.storage.local import reason
from belay_cli.storage.seal import seal_holds
from belay_cli.verification.checks import FAILED, HELD, NOT_CHECKED, Check

_LARGEST = 2 * LARGEST  # bytes of a file beside the weights: one that is copied with an edit may be longer than it was
_LARGEST_INDEX = 1_000_000_000
_READ_BYTES = 4 << 20  # at a time


def wrong_index(average: Checkpoint) -> str | None:
    """What is wrong with the first index that is not the one that was written; None if all are."""
    for folder, part in average.weights.components.items():
        if average.directory is None or len(part.files) < 2:
            continue
        owners = {t.name: f.path.name for f in part.files if isinstance(f, WeightFile) for t in f.tensors}
        expected = index_text(owners, sum(file.size - file.data_start for file in part.files))
        name = inside(folder, part.stem + INDEX_SUFFIX)
        if wrong := _differs(average.directory, name, hashlib.sha256(expected).hexdigest(), _LARGEST_INDEX):
            return wrong
    return None


def check_files(average: Checkpoint, record: Record) -> Check:
    """Every byte of the files beside the weights, but for the index and belay.json."""
    directory = average.directory
    if not isinstance(directory, Path):
        return Check("files", HELD, "there are none beside the weights")
    copies = record.copies if not isinstance(record.copies, tuple) else {}
    for name, digest in copies.items():
        if wrong := _differs(directory, name, digest, _LARGEST):
            return Check("files", FAILED, wrong)
    has_local = _is_there(directory / LOCAL)  # which is not published
    if has_local and record.is_sealed and (wrong := wrong_local(directory / LOCAL)):
        return Check("files", FAILED, f"{LOCAL} {wrong}")
    if not record.is_sealed:
        return Check("files", NOT_CHECKED, "an older belay wrote it, with no digests of the files beside the weights")
    count = len(copies) + has_local
    return Check("files", HELD, f"every byte of {words.plural(count, 'file')} beside the weights")


def wrong_copy(output: Path) -> str | None:
    """What is wrong with a file beside the weights of a directory that cannot be opened, by its belay.json.

    Weights are found by some of these files, so that one that is damaged makes them look like something else. Files
    that are missing went with a folder as a rule, which is said better.
    """
    try:
        copies = parse(json.loads(content(output / DOCUMENT)), output / DOCUMENT).copies
    except (CheckpointError, ValueError, RecursionError):
        return None
    digests = copies.items() if not isinstance(copies, tuple) else ()
    there = [(name, digest) for name, digest in digests if not missing(output, name)]
    return next((wrong for name, digest in there if (wrong := _differs(output, name, digest, _LARGEST))), None)


def _is_there(path: Path) -> bool:
    """Whether anything is, even a link to nothing, or what cannot be looked at."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def wrong_local(path: Path) -> str:
    """What is wrong with .belay/local.json; empty if it is as it was written."""
    try:
        text = content(path)
    except CheckpointError as error:
        return error.message
    whole = text.startswith(LOCAL_BEGINS) and seal_holds(text, len(LOCAL_BEGINS))
    return "" if whole else "is not what was written"


def missing(directory: AnyPath, name: str) -> str:
    """What is wrong with a file that should be there, as it follows its name; empty if it is there."""
    if not _lies_inside(name):
        return "would lie outside of the output"
    try:
        return "" if (directory / name).is_file() else "is missing"
    except OSError as error:
        return f"cannot be read: {reason(error)}"


def _lies_inside(name: str) -> bool:
    path = PurePath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _differs(directory: AnyPath, name: str, digest: str, largest: int) -> str | None:
    """What is wrong with a file whose content has another digest, or that cannot be read."""
    if wrong := missing(directory, name):
        return f"{name} {wrong}"
    found = hashlib.sha256()
    try:
        for part in _parts(directory / name, largest):
            found.update(part)
    except CheckpointError as error:
        return f"{name} {error.message}"
    return None if found.hexdigest() == digest else f"{name} is not what was written"


def content(path: AnyPath, largest: int = _LARGEST) -> bytes:
    """A whole file. Raises CheckpointError if it cannot be read, is none, or is larger."""
    return b"".join(_parts(path, largest))


def _parts(path: AnyPath, largest: int) -> Iterator[bytes]:
    with open_file(path) as file:
        if file.size > largest:
            raise CheckpointError("is larger than anything that was written", file=path)
        for offset in range(0, file.size, _READ_BYTES):
            yield file.read_at(offset, min(_READ_BYTES, file.size - offset))
