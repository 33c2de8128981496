"""Arguments: what a person typed, as paths; and what is said of one that names nothing."""

from __future__ import annotations

import difflib
import glob
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from belay_cli.errors import CheckpointError, UsageError
from belay_cli.formats import file_format
from belay_cli.formats.foreign import holding
from belay_cli.storage.files import AnyPath, can_be, is_remote
from belay_cli.storage.remote import is_url, parse
from belay_cli.storage.remote.tree import Tree

_LONGEST_SHOWN = 60  # characters of a path that cannot be
_PATTERN = re.compile(r"[*?]|\[[^/\]]+\]")
# C:\run\ckpts, and what a shell leaves of it where it is not quoted: C:runckpts.
_DRIVE = re.compile(r"([A-Za-z]):(?!//)(.*)", re.DOTALL)
# hf:org/name, s3:/bucket: URLs without their slashes.
_SLASHES = re.compile(r"(hf|s3|gs|https?):/?([^/].*)", re.DOTALL)
_OF_THE_HUB = re.compile(r"(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)", re.DOTALL)
_WEIGHT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_REPOSITORY = re.compile(r"[A-Za-z\d][\w.-]*/[A-Za-z\d][\w.-]*(?:@[\w./-]+)?")


def weighted(arguments: Sequence[str | os.PathLike[str]]) -> tuple[list[str | os.PathLike[str]], dict[str, float]]:
    """Arguments without the weights typed behind them, PATH=WEIGHT, and these by path; none if none has one.

    What is there as a path, or a URL, is taken for one. Raises UsageError if some have a weight and others none.
    """
    pairs = [_path_and_weight(argument) for argument in arguments]
    without = [argument for argument, weight in pairs if weight is None]
    if len(without) == len(pairs):
        return list(arguments), {}
    if without:
        raise UsageError(f"{os.fspath(without[0])} has no weight, and others do", hint="write PATH=WEIGHT for each")
    found = {
        str(Path(argument)) if not is_url(os.fspath(argument)) else os.fspath(argument): w for argument, w in pairs
    }
    if len(found) < len(pairs):
        raise UsageError("a checkpoint is given twice, with two weights", hint="give it once, with their sum")
    return [argument for argument, _ in pairs], {path: weight for path, weight in found.items() if weight is not None}


def _path_and_weight(argument: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], float | None]:
    path, sign, weight = os.fspath(argument).rpartition("=")
    if not sign or not _WEIGHT.fullmatch(weight):
        return argument, None
    if not is_url(path) and (os.path.lexists(argument) or not os.path.exists(path)):  # noqa: PTH110 - never raises
        return argument, None
    return path, float(weight)


def typed_paths(argument: str | os.PathLike[str], listings: dict[str, Tree]) -> list[AnyPath]:
    """The paths that one argument names: usually one; more for a pattern that no shell has expanded.

    `listings` as in `storage.remote.parse`. Raises UsageError for an empty text; what is absent is said when it is
    opened.
    """
    text = os.fspath(argument)
    if not text.strip():
        raise UsageError("a checkpoint is given as an empty text", hint="is a variable of the shell not set?")
    if is_url(text):
        return [parse(text, listings)]
    path = in_home(Path(text))
    if _PATTERN.search(text) and not path.exists():
        found = sorted(glob.glob(str(path)))  # noqa: PTH207 - a pattern may begin at any directory
        return [Path(name) for name in found] or [path]
    return [path]


def in_home(path: Path) -> Path:
    """A path that begins with a `~` in quotes, which the shell hands on as it stands, in the home directory.

    Raises UsageError for what no file can be called.
    """
    if not can_be(str(path)):
        shown = str(path) if len(str(path)) <= _LONGEST_SHOWN else f"{str(path)[:_LONGEST_SHOWN]}…"
        raise UsageError(f"{shown!r} can be no path: a name in it is too long, or holds a zero byte")
    if not str(path).startswith("~") or path.exists():
        return path
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def absent(path: AnyPath) -> CheckpointError:
    """The error for a path that names nothing, with what was probably meant."""
    text = str(path)
    if is_remote(path):
        hint = "a URL is no pattern; give the directory, or each file" if "*" in text else None
        return CheckpointError("does not exist", file=path, hint=hint)
    if _PATTERN.search(text):
        return CheckpointError("matches no file", file=path, hint=_there(_above_patterns(Path(text))))
    return CheckpointError("does not exist", file=path, hint=_meant(text))


def refuse_output(paths: Sequence[AnyPath]) -> None:
    """Raise CheckpointError for a last path that names nothing, apart from the others: an output, as cp takes it."""
    *others, last = paths
    if not others or is_remote(last) or last.exists() or any(last.parent == other.parent for other in others):
        return
    error = absent(last)
    error.hint = error.hint or f"is it the output? -o {shlex.quote(str(last))}"
    raise error


def _meant(text: str) -> str | None:
    """The mend for the text of a path that is not there; None if nothing better is known than what was typed."""
    if "$" in text:
        return "a variable in single quotes is not filled in; use double quotes"
    if text.startswith("~"):
        return "there is no user of that name; your own files lie under ~/"
    if url := _url(text):
        return f"is it a URL? {shlex.quote(url)}"
    if mend := with_slashes(text):
        return mend
    path = Path(text)
    if _REPOSITORY.fullmatch(text) and file_format(path.suffix) is None and not path.parent.exists():
        return f"is it on the Hub? {shlex.quote(f'hf://{text}')}"
    if not path.parent.is_dir():
        return _there(path.parent)
    return _similar(path)


def _url(text: str) -> str | None:
    """What was probably meant as a URL: hf:org/name, or an address of the Hub without https://."""
    if found := _OF_THE_HUB.fullmatch(text):
        return f"https://huggingface.co/{found[1]}" if found[1].count("/") > 1 else f"hf://{found[1]}"
    found = _SLASHES.fullmatch(text)
    return f"{found[1]}://{found[2]}" if found else None


def with_slashes(text: str) -> str | None:
    """The mend for a path of Windows; None for other texts."""
    if found := _DRIVE.fullmatch(text):
        drive, folders = found[1].lower(), found[2].replace("\\", "/").strip("/")
        shown = (
            shlex.quote(f"/mnt/{drive}/{folders}")
            if "/" in folders or found[2][:1] in ("/", "\\")
            else f"/mnt/{drive}/…"
        )
        return f"a path of Windows is written with /, and in WSL: {shown}"
    return f"folders are divided by /: {shlex.quote(text.replace(chr(92), '/'))}" if "\\" in text else None


def _similar(path: Path) -> str | None:
    """What lies in the same directory under nearly this name, with the same numbers: another step is another thing."""
    names = [entry.name for entry in path.parent.iterdir() if _numbers(entry.name) == _numbers(path.name)]
    stems = {Path(name).stem: name for name in names}
    near = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.75)
    return f"did you mean {shlex.quote(str(path.parent / stems[near[0]]))}?" if near else None


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,18}", name)]


def _above_patterns(path: Path) -> Path:
    """The directory above the first part of a path that is a pattern."""
    parents = [parent for parent in path.parents if not _PATTERN.search(str(parent))]
    return parents[0] if parents else Path()


def _there(directory: Path) -> str:
    """What a directory holds, in words."""
    if not directory.exists():
        return f"there is no directory {shlex.quote(str(directory))}"
    if not directory.is_dir():
        return f"{shlex.quote(str(directory))} is a file, not a directory"
    return f"{shlex.quote(str(directory))} {holding(directory.iterdir())}"
