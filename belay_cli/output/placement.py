"""What was built, renamed into place: over an older output so that no loader ever finds a mixture of the two."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from belay_cli.checkpoints.components import LISTS
from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.record import DOCUMENT


def replace_in_directory(built: Path, target: Path, names: Sequence[str], replaced: Sequence[str]) -> None:
    """The old output's files step aside, what lists the others first, and the new ones move in, that last.

    In between no loader finds weights there. If a step fails, the old output is put back. Its record goes last and
    comes first, so that it says whose the files are even after a run that was killed. `names` lie in `built`, and go
    to `target`, from which `replaced` go. Raises OSError.
    """
    aside = built / "replaced"
    arriving = sorted(names, key=_leaves, reverse=True)
    stepped_aside: list[str] = []
    moved_in: list[str] = []
    try:
        for name in sorted(replaced, key=_leaves):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).rename(aside / name)
            stepped_aside.append(name)
        for name in arriving:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            move_file(built / name, target / name, replace=False)
            moved_in.append(name)
    except BaseException:
        for name in moved_in:
            (target / name).unlink()
        for name in reversed(stepped_aside):
            (aside / name).rename(target / name)
        _remove_empty_folders(target, arriving)
        raise
    _remove_empty_folders(target, replaced)


def move_file(source: Path, target: Path, *, replace: bool) -> None:
    """Rename; without `replace`, never over a file that appeared meanwhile."""
    if replace:
        source.replace(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(17, "file exists") from None
        source.replace(target)
        return
    with contextlib.suppress(OSError):  # it would go with the directory that it was built in
        source.unlink()


def _leaves(name: str) -> int:
    """When a file of an older output steps aside: what lists its models or shards first, its record last."""
    if name in LISTS:
        return 0
    return 1 if name.endswith(INDEX_SUFFIX) else 3 if name == DOCUMENT else 2


def _remove_empty_folders(directory: Path, names: Iterable[str]) -> None:
    """Remove the folders of these files in which nothing is left."""
    for folder in {folder for name in names for folder in PurePosixPath(name).parents[:-1]}:
        with contextlib.suppress(OSError):
            (directory / folder).rmdir()
