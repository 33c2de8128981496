"""What was built, put in its place: at every moment a loader finds the old output, the new one, or none.

A file by itself, or a directory where none or an empty one was, is renamed into place. A directory that is belay's
alone changes places with the new one, in one step. Else single files move: the old ones step aside, what lists the
others first, and the new ones move in, that last; so in between there are no weights to be found.

What is about to be done is noted before it begins. If a step fails, or the next run finds such a note, the steps are
undone: each file tells by where it is whether it has moved.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from belay_cli.checkpoints.components import LISTS
from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.errors import CheckpointError, OutputError
from belay_cli.formats import SUFFIX, TORCH_SUFFIXES
from belay_cli.formats.dcp import METADATA
from belay_cli.output.renaming import exchange, identity, rename, rename_new
from belay_cli.output.workplace import Workplace, left_for, sync
from belay_cli.planning.target import Target, all_files
from belay_cli.record import BESIDE, DOCUMENT
from belay_cli.storage.files import is_plain_name
from belay_cli.storage.json_file import read_json


def place_file(workplace: Workplace, name: str, target: Target) -> None:
    """Put the only file of an output in its place. Raises OSError with nothing changed."""
    if target.replaced:
        rename(workplace.new / name, target.path)
    else:
        rename_new(workplace.new / name, target.path)


def place_files_beside(workplace: Workplace, names: Sequence[str], target: Target) -> None:
    """Put a file and what lies beside it in their places, together. Raises as for a directory."""
    _move_files(workplace, names, target, target.path.absolute().parent)


def place_directory(workplace: Workplace, names: Sequence[str], target: Target) -> None:
    """Put a directory in its place, or its files, `names`, into the one that is there. Raises OSError.

    With an OSError nothing is changed; with OutputError something is, which the next run will mend.
    """
    if target.is_new or (target.is_ours and not target.replaced):
        rename(workplace.new, target.path if target.is_new else target.path.resolve())  # an empty one gives way
    elif not (target.is_ours and _exchanged(workplace, target.path.resolve(), target.replaced)):
        _move_files(workplace, names, target, target.path.resolve())


def _exchanged(workplace: Workplace, directory: Path, replaced: Sequence[str]) -> bool:
    """Let the new directory and the old one change places; False where the system cannot."""
    workplace.new.chmod(directory.stat().st_mode & 0o7777)
    _note(workplace, {"how": "exchange", "new": identity(workplace.new), "replaced": list(replaced)})
    try:
        done = exchange(workplace.new, directory)
    except OSError:
        workplace.moves.unlink()
        raise
    if done:
        _keep_strangers(workplace.new, directory, replaced)
    else:
        workplace.moves.unlink()
    return done


def _keep_strangers(old: Path, new: Path, replaced: Iterable[str]) -> None:
    """What somebody put into the old directory in the last moment goes into the new one."""
    for name in all_files(old) - set(replaced):
        with contextlib.suppress(FileExistsError):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            rename_new(old / name, new / name)


def _move_files(workplace: Workplace, names: Sequence[str], target: Target, path: Path) -> None:
    """Let files of the directory `path` step aside, and these move into it."""
    replaced, arriving = sorted(target.replaced, key=_leaves), sorted(names, key=_leaves, reverse=True)
    how = "beside" if target.is_file else "files"
    _note(workplace, {"how": how, "replaced": replaced, "arriving": arriving})
    try:
        for name in replaced:
            (workplace.old / name).parent.mkdir(parents=True, exist_ok=True)
            rename(path / name, workplace.old / name)
        for name in arriving:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            rename_new(workplace.new / name, path / name)
    except BaseException as error:
        try:
            _move_back(workplace, path, replaced, arriving)
        except OSError as another:
            raise OutputError(
                f"could not be put in place ({os.strerror(getattr(error, 'errno', 0) or errno.EIO).lower()}), "
                f"nor all of the older output back; what is missing lies in {workplace.old}",
                file=target.path,
                hint="the same command puts it right, once the disk allows it",
            ) from another
        raise
    _remove_empty_folders(path, replaced)


def _move_back(workplace: Workplace, path: Path, replaced: Sequence[str], arriving: Sequence[str]) -> None:
    """Undo what was done of a move. Raises OSError; then it can be called again."""
    for name in reversed(arriving):
        built, moved = workplace.new / name, path / name
        if not built.exists() and moved.exists():
            rename(moved, built)
        elif moved.exists() and built.samefile(moved):  # a link that was to become a move
            moved.unlink()
    for name in reversed(replaced):
        if (workplace.old / name).exists() and not (path / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            rename(workplace.old / name, path / name)
    _remove_empty_folders(path, arriving)
    workplace.moves.unlink(missing_ok=True)


def _note(workplace: Workplace, moves: dict[str, Any]) -> None:
    part = workplace.moves.with_suffix(".part")
    part.write_text(json.dumps(moves), encoding="utf-8")
    sync(part)
    part.replace(workplace.moves)
    sync(workplace.path)


def settle(path: Path) -> None:
    """Finish or undo what a run that was killed had begun to put in place for this output; else nothing changes.

    Raises OutputError if another process writes the output now, or what is there cannot be put right.
    """
    workplace = left_for(path)
    if workplace is None:
        return
    try:
        if not workplace.moves.exists():
            if _is_in_place(workplace, path):
                workplace.remove()
            return
        if not workplace.new.exists():
            workplace.remove()
            return
        moves = _read_moves(workplace)
        if moves["how"] in ("files", "beside"):
            directory = path.resolve() if moves["how"] == "files" else path.absolute().parent
            _move_back(workplace, directory, moves["replaced"], moves["arriving"])
        elif path.is_dir() and list(identity(path.resolve()) or ()) == moves["new"]:
            _keep_strangers(workplace.new, path, moves["replaced"])
            workplace.remove()
        else:
            workplace.moves.unlink()
    except OSError as error:
        raise OutputError(
            f"was being put in place when a run ended, and cannot be put right: {(error.strerror or '').lower()}",
            file=path,
            hint=f"what is not in place lies in {workplace.path}",
        ) from error
    finally:
        workplace.release()


def _is_in_place(workplace: Workplace, path: Path) -> bool:
    """Whether nothing was built that is not there already."""
    built = all_files(workplace.new)
    return all(identity(workplace.new / name) == identity(path) for name in built)


def _read_moves(workplace: Workplace) -> dict[str, Any]:
    """The note, with names that stay inside. Raises OutputError for what is none."""
    try:
        found = read_json(workplace.moves)
    except CheckpointError:
        found = None
    names = [*found.get("replaced", ()), *found.get("arriving", ())] if isinstance(found, dict) else [None]
    inside = all(isinstance(name, str) and all(map(is_plain_name, name.split("/"))) for name in names)
    if not inside or found.get("how") not in ("files", "beside", "exchange"):
        raise OutputError("is no note of belay's", file=workplace.moves, hint=f"rm -r {workplace.path}")
    return {"replaced": [], "arriving": [], "new": [], **found}


def _leaves(name: str) -> int:
    """When a file of an older output steps aside: first what loaders look for, by which they find the rest.

    That is the list of models or shards, or the weights themselves; the record of whose files these are is last.
    """
    if name in LISTS:
        return 0
    if name.endswith((INDEX_SUFFIX, ".bin.index.json")) or name == METADATA:
        return 1
    if name.endswith((SUFFIX, *TORCH_SUFFIXES, ".distcp")):
        return 2
    return 4 if name == DOCUMENT or name.endswith(BESIDE) else 3


def _remove_empty_folders(directory: Path, names: Iterable[str]) -> None:
    """Remove the folders of these files in which nothing is left."""
    for folder in {folder for name in names for folder in PurePosixPath(name).parents[:-1]}:
        with contextlib.suppress(OSError):
            (directory / folder).rmdir()
