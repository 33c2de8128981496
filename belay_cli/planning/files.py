"""The files of the last checkpoint, all of them, where an output has the same ones."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from belay_cli.checkpoints import Checkpoint
from belay_cli.checkpoints.companions import roots
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.record import DOCUMENT, LOCAL
from belay_cli.storage.files import StoredFile

# Of a training's state, what an optimizer has learnt: of the Trainer, of accelerate, of DeepSpeed; and whole folders.
_FILE = re.compile(
    r"(.*[-_.])?optim(izers?)?([-_.]?(states?|model|\d+))*\.(pt|pth|bin|ckpt|safetensors)", re.IGNORECASE
)
_FOLDER = re.compile(r"optim(izers?)?([-_.]?(states?|\d+))*", re.IGNORECASE)


class SameFiles(NamedTuple):
    """Names below the directory of the checkpoint, `/` between, in order, and the files; of a file, itself alone.

    `left_out`: those that are files of an optimizer, where nobody wants them; `outside`: links that lead elsewhere, or
    to the weights.
    """

    names: tuple[str, ...]
    files: tuple[StoredFile, ...]
    numbers: dict[str, int]  # by the file's path
    left_out: tuple[str, ...]
    outside: tuple[str, ...]

    def number(self, file: StoredFile) -> int:
        """Which of them a file of the weights is."""
        return self.numbers[os.path.abspath(file.path)]  # noqa: PTH100 - a link keeps its own name


def same_files(last: Checkpoint, *, without_optimizer: bool) -> SameFiles:
    """Look at what is there. Raises CheckpointError, and UsageError for what is not on this machine."""
    if not isinstance(last.path, Path):
        raise UsageError(
            f"--format same writes over a copy of the last checkpoint, and {last.path} is not on this machine",
            hint="copy it here first, or leave out --format same",
        )
    known = {os.path.abspath(file.path): file for file in last.files}  # noqa: PTH100
    if not last.path.is_dir():
        if without_optimizer:
            raise _no_files(last)
        return SameFiles((last.path.name,), last.files, dict.fromkeys(known, 0), (), ())
    names, left_out, outside = [], [], []
    weights = {Path(path).resolve() for path in known}
    for name, leads_outside in sorted(_walk(last.path, weights)):
        is_weights = os.path.abspath(last.path / name) in known  # noqa: PTH100
        if without_optimizer and not is_weights and (found := _of_optimizer(name)):
            left_out.append(found)
        elif leads_outside and not is_weights:
            outside.append(name)
        else:
            names.append(name)
    if without_optimizer and not left_out:
        raise _no_files(last)
    paths = [os.path.abspath(last.path / name) for name in names]  # noqa: PTH100
    files = tuple(known.get(path) or _stored(Path(path)) for path in paths)
    return SameFiles(
        tuple(names), files, {path: i for i, path in enumerate(paths)}, tuple(dict.fromkeys(left_out)), tuple(outside)
    )


def _of_optimizer(name: str) -> str | None:
    """The file itself if it is one of an optimizer by its name, or the folder of it that is; None if neither is."""
    *folders, own = name.split("/")
    for depth, folder in enumerate(folders):
        if _FOLDER.fullmatch(folder):
            return "/".join(folders[: depth + 1]) + "/"
    return name if _FILE.fullmatch(own) else None


def _no_files(last: Checkpoint) -> UsageError:
    return UsageError(
        f"--without-optimizer: {last.path} has no file of an optimizer alone",
        hint="leave it out; an average as safetensors, without --format same, holds no optimizer",
    )


def _stored(path: Path) -> StoredFile:
    try:
        status = path.stat()
        if not os.access(path, os.R_OK):
            raise CheckpointError("cannot be opened: permission denied", file=path)
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {(error.strerror or '').lower()}", file=path) from error
    return StoredFile(path, status.st_size, status.st_mtime_ns)


def _walk(directory: Path, weights: Collection[Path]) -> Iterator[tuple[str, bool]]:
    """The name of every file below a directory, but for belay's own record.

    And whether it is a link that leads outside, or to the weights: these are no copy of what the link would be.
    """
    own = roots(directory)
    for folder, folders, names in os.walk(directory):
        inner = os.path.relpath(folder, directory).replace(os.sep, "/")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        for name in (*names, *links):
            whole = name if inner == "." else f"{inner}/{name}"
            if whole in (DOCUMENT, LOCAL):
                continue
            path = Path(folder, name)
            if path.is_symlink():
                target = path.resolve()
                if not target.is_file() or not _inside(target, own) or target in weights:
                    yield whole, True
                    continue
            elif not stat.S_ISREG(path.lstat().st_mode):
                continue  # a socket or a pipe of a trainer that still runs
            yield whole, False


def _inside(path: Path, directories: Collection[object]) -> bool:
    return any(isinstance(directory, Path) and path.is_relative_to(directory) for directory in directories)
