"""What stands where an output is to go, and which of it belay may replace."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.arguments import in_home, with_slashes
from belay_cli.checkpoints.companions import is_companion
from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.checkpoints.weights import inside, without
from belay_cli.errors import CheckpointError, InTheWayError, OutputError, UsageError
from belay_cli.formats import SUFFIX, TORCH_SUFFIXES
from belay_cli.formats.safetensors import WeightFile, read_header
from belay_cli.formats.shards import is_shard
from belay_cli.record import DOCUMENT, LOCAL, document_beside, read_beside
from belay_cli.storage.blocks import file_digests
from belay_cli.storage.files import LONGEST_NAME, available_cores, is_plain_name, is_remote
from belay_cli.storage.json_file import read_json

_ELSEWHERE = "write somewhere else: -o"

# What other formats, and misspelt ones, end in. A directory may be called llama-3.1 or run.v2, but none of these.
_OTHER_SUFFIXES = frozenset(
    {
        *(".pt", ".pth", ".bin", ".ckpt", ".tar", ".gguf", ".onnx", ".npz", ".npy", ".h5", ".msgpack", ".pkl", ".zip"),
        *(SUFFIX, ".safetensor", ".json", ".txt"),
    }
)
_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces
_URL = re.compile(r"([A-Za-z][A-Za-z\d+.-]+):/(.+)")  # a path has lost one of its slashes


@dataclass(frozen=True)
class Target:
    """Where one output goes. `replaced` are names in `path` (or `path` itself, for a file) that belay wrote before.

    `is_new` says that nothing stood there; `is_ours` that a directory stood there, with nothing in it but what belay
    wrote, which may be replaced as a whole.
    """

    path: Path
    is_file: bool
    replaced: tuple[str, ...] = ()
    is_new: bool = False
    is_ours: bool = False

    @property
    def place(self) -> Path:
        """The directory in which the output is built, on the disk where it will be.

        That is the one it will lie in. Into a directory that is a disk of its own, or lies in one that is closed to
        us, only files can be put, so it is built inside.
        """
        if self.is_file or self.is_new:
            return self.path.absolute().parent
        directory = self.path.resolve()
        return directory if _stands_alone(directory) else directory.parent


def _stands_alone(directory: Path) -> bool:
    """Whether a directory cannot be renamed: it is a disk of its own, or the one that it lies in is closed to us."""
    parent = directory.parent
    return (
        directory.stat().st_dev != parent.stat().st_dev
        or not os.access(parent, os.W_OK | os.X_OK)
        or os.fspath(directory) in _mounted()
    )


def _mounted() -> set[str]:
    """Where something is mounted, which may be a directory of the same disk."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:  # another system, where such mounts are not made
        return set()
    return {_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines}


def _may_be_exchanged(directory: Path) -> bool:
    """Whether another directory may take its place: it is ours, and nobody stands in it."""
    here = os.path.realpath(".")
    if here == os.fspath(directory) or _is_in(here, os.fspath(directory)) or not hasattr(os, "geteuid"):
        return False
    return directory.stat().st_uid == os.geteuid() and not _stands_alone(directory)


def workplace_name(path: Path) -> str:
    """How the hidden directory is called in which an output for `path` is built."""
    name = f".{path.absolute().name}.belay"
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.belay"


def default_output(series: Series, *, same: bool = False) -> Path:
    """`belay-average.safetensors` for files, `belay-average` for directories, in the current directory.

    same: an output in the files of the last checkpoint, whose suffix it then has.
    """
    if series.last.directory is not None:
        return Path("belay-average")
    return Path("belay-average" + (suffix_of(series.last.path.name) if same else SUFFIX))


def suffix_of(name: str) -> str:
    """`.pth.tar` is one."""
    return ".pth.tar" if name.endswith(".pth.tar") else Path(name).suffix


def find_target(path: Path, series: Series, *, overwrite: bool, same: bool = False, look_only: bool = False) -> Target:
    """Look at what is there. Raises OutputError if it may not be replaced, UsageError if it cannot be an output.

    same: the output has the files of the last checkpoint; of an older one it is then known only by its digests whether
    it is still what was written, and they are taken unless this is only a look.
    """
    _refuse_no_path(str(path))
    path = in_home(path)
    is_file = series.last.directory is None if same else path.suffix == SUFFIX
    _keep_clear_of_inputs(path, series)
    parent = path.absolute().parent
    _refuse_long_name(path)
    if not parent.is_dir():
        raise OutputError(
            "cannot be written: its directory does not exist", file=path, hint=f"mkdir -p {shlex.quote(str(parent))}"
        )
    if is_file and is_shard(path):
        raise OutputError(
            "is the name of one shard of several",
            file=path,
            hint="write it under a name of its own: -o average.safetensors",
        )
    if same:
        _refuse_other_kind(path, series, is_file)
    elif not is_file and path.suffix.lower() in _OTHER_SUFFIXES:
        raise OutputError("is not a name for safetensors", file=path, hint=f"-o {shlex.quote(path.stem + SUFFIX)}")
    if same and is_file:
        _refuse_long_name(document_beside(path))
    if not path.exists() and not path.is_symlink():
        if same and is_file and document_beside(path).is_file():
            return _record_alone(path, overwrite)
        return Target(path, is_file, is_new=True)
    known = _Known(look_only)
    if is_file:
        return _existing_file(path, overwrite, known)
    return _existing_directory(path, overwrite, known)


def _refuse_other_kind(path: Path, series: Series, is_file: bool) -> None:
    """Raise OutputError for a name that says something else than what an output in the files of a checkpoint is."""
    last = series.last.path
    if is_file and path.suffix not in TORCH_SUFFIXES:
        mend = path.with_suffix("") if path.suffix == SUFFIX else path
        raise OutputError(
            f"is not a name for a torch file, as {last} is one",
            file=path,
            hint=f"-o {shlex.quote(str(mend) + suffix_of(last.name))}, or leave out --format same",
        )
    if not is_file and path.suffix in (SUFFIX, *TORCH_SUFFIXES) and path.suffix != last.suffix:
        raise OutputError(
            f"is not a name for a directory, as {last} is one",
            file=path,
            hint=f"-o {shlex.quote(str(path.with_suffix('')))}, or leave out --format same",
        )


def _refuse_no_path(text: str) -> None:
    """Raise UsageError for what is typed after -o, and is no path of this machine."""
    if text == "-":
        raise UsageError("-o -: an average is files, and stdout is none", hint="name one: -o average.safetensors")
    if text.startswith("-"):
        raise UsageError(f"-o {text}: an option stands where the path should be", hint="name a path: -o belay-average")
    if found := _URL.fullmatch(text):
        url = f"{found[1]}://{found[2]}"
        raise UsageError(
            f"-o {url}: an average is written to this machine",
            hint="to publish it on the Hub as well: --push-to-hub ORG/NAME",
        )
    if os.name != "nt" and (mend := with_slashes(text)):
        raise UsageError(f"-o {text}: is no path of this system", hint=mend)


def _keep_clear_of_inputs(path: Path, series: Series) -> None:
    target = os.path.realpath(path)
    for checkpoint in series.checkpoints:
        if is_remote(checkpoint.path):
            continue
        given = os.path.realpath(checkpoint.path)  # text, since a series may have thousands
        sources = [given, *(os.path.realpath(file.path) for file in checkpoint.files if isinstance(file.path, Path))]
        if target == given:
            raise OutputError("is one of the checkpoints, which stay as they are", file=path, hint=_ELSEWHERE)
        if target in sources or _is_in(target, given):  # nothing is in a file
            raise OutputError(f"lies inside the input {checkpoint.path}", file=path, hint=_ELSEWHERE)
        if any(_is_in(source, target) for source in sources):
            raise OutputError(f"holds the input {checkpoint.path}", file=path, hint=_ELSEWHERE)


def _is_in(inner: str, outer: str) -> bool:
    return inner.startswith(outer.rstrip(os.sep) + os.sep)


def _refuse_long_name(path: Path) -> None:
    if len(os.fsencode(path.absolute().name)) > LONGEST_NAME:
        raise OutputError("cannot be written: its name is too long", file=path, hint="choose a shorter one: -o")


def _record_alone(path: Path, overwrite: bool) -> Target:
    """The target where an output was removed, and its record was not."""
    beside = document_beside(path)
    try:
        ours = read_beside(path) is not None
    except CheckpointError:
        ours = False
    if not ours:
        raise InTheWayError("exists, and belay did not write it", file=beside, hint=_ELSEWHERE)
    if not overwrite:
        raise _exists(beside)
    return Target(path, True, (beside.name,))


class _Known:
    """Outputs in the files of a checkpoint, known by their records."""

    def __init__(self, look_only: bool) -> None:
        self._look_only = look_only

    def ours(self, path: Path) -> set[str]:
        """The names of the files that belay wrote there, as far as each is still what was written."""
        try:
            record = read_beside(path)
        except CheckpointError:
            record = None
        if record is None:
            return set()
        where = {name: path / name if path.is_dir() else path for name in record.files}
        there = {name: file for name, file in where.items() if file.is_file()}
        if self._look_only:
            return set(there)
        found = file_digests(there, available_cores())
        return {name for name, digest in found.items() if digest == record.files[name]}


def _existing_file(path: Path, overwrite: bool, known: _Known) -> Target:
    if not path.is_file():
        raise InTheWayError("exists, and belay did not write it", file=path, hint=_ELSEWHERE)
    same = path.suffix != SUFFIX and document_beside(path).is_file()
    if same and not overwrite:
        raise _exists(path)
    if not (known.ours(path) if same else _written_by_belay(path)):
        raise InTheWayError("exists, and belay did not write it", file=path, hint=_ELSEWHERE)
    if not overwrite:
        raise _exists(path)
    return Target(path, True, (path.name, document_beside(path).name) if same else (path.name,))


def _exists(path: Path) -> InTheWayError:
    return InTheWayError("exists", file=path, hint="say --overwrite, or write somewhere else: -o")


def _existing_directory(path: Path, overwrite: bool, known: _Known) -> Target:
    if not path.is_dir():
        raise InTheWayError("exists and is not a directory", file=path, hint=_ELSEWHERE)
    entries = sorted(entry.name for entry in path.iterdir() if entry.name != workplace_name(path))
    directory = path.resolve()
    if not entries:
        return Target(path, False, is_ours=_may_be_exchanged(directory))
    if not overwrite:
        raise _exists(path)
    record = _record(path)
    ours = {DOCUMENT, LOCAL, *_recorded_copies(record.get("copies"))} if record else set()
    ours |= known.ours(path)
    for folder in dict.fromkeys(["", *_recorded_folders(record.get("components"))]):
        ours |= _written_in(path, folder)
    replaced = {name for name in ours if (path / name).is_file()}
    alone = all_files(path) <= replaced
    return Target(path, False, tuple(sorted(replaced)), is_ours=alone and _may_be_exchanged(directory))


def all_files(directory: Path) -> set[str]:
    """Every file below a directory by its path from there, with slashes, and every folder in which there is none."""
    found = set()
    for folder, folders, files in os.walk(directory):
        inner = os.path.relpath(folder, directory).replace(os.sep, "/")
        folders[:] = [name for name in folders if inner != "." or name != workplace_name(directory)]
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        names = [*files, *linked] or ([""] if not folders and inner != "." else [])
        found |= {name if inner == "." else f"{inner}/{name}".rstrip("/") for name in names}
    return found


def _written_in(path: Path, folder: str) -> set[str]:
    """What belay wrote into one folder of an output, and what that records. Raises OutputError for other weights."""
    here = path / folder
    names = [inside(folder, entry.name) for entry in here.iterdir()] if here.is_dir() else []
    ours: set[str] = set()
    for name in sorted(name for name in names if name.endswith(SUFFIX)):
        file = _written_by_belay(path / name)
        if file is None:
            raise InTheWayError(f"holds {name}, which belay did not write", file=path, hint=_ELSEWHERE)
        ours |= {name, DOCUMENT, LOCAL, *_recorded_copies(_parsed(file.metadata.get("belay.copies", "")))}
    written = {without(folder, name) for name in ours}
    return ours | {name for name in names if name.endswith(INDEX_SUFFIX) and _is_index_of(path / name, written)}


def _written_by_belay(path: Path) -> WeightFile | None:
    try:
        file = read_header(path)
    except CheckpointError:
        return None
    return file if "belay.version" in file.metadata else None


def _recorded_copies(names: Any) -> set[str]:
    """Of the names that an output's own record lists as copied, those that can be; none leads outside."""
    if not isinstance(names, list | dict):
        return set()
    plain = [name for name in names if isinstance(name, str) and all(map(is_plain_name, name.split("/")))]
    return {name for name in plain if is_companion(name.rpartition("/")[2])}


def _recorded_folders(folders: Any) -> list[str]:
    """Of the folders that an output's own record lists, those that lie inside it."""
    listed = folders if isinstance(folders, list) else []
    return [name for name in listed if isinstance(name, str) and all(map(is_plain_name, name.split("/")))]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _record(directory: Path) -> dict[str, Any]:
    """belay.json, or nothing: all that is left of an output if a run was killed while it was replaced."""
    try:
        found = read_json(directory / DOCUMENT)
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) and "schema" in found else {}


def _is_index_of(path: Path, files: set[str]) -> bool:
    """Whether an index names no file but these."""
    try:
        found = read_json(path)
    except CheckpointError:
        return False
    owners = found.get("weight_map") if isinstance(found, dict) else None
    return isinstance(owners, dict) and bool(owners) and all(owner in files for owner in map(str, owners.values()))


def refuse_foreign(target: Target, names: Iterable[str]) -> None:
    """Raise OutputError if one of the files to be written stands there already and is not belay's.

    names: below the directory of the target, or beside its file.
    """
    if target.is_file:
        for name in names:
            if name not in target.replaced and target.path.with_name(name).exists():
                raise InTheWayError(
                    "exists, and belay did not write it", file=target.path.with_name(name), hint=_ELSEWHERE
                )
        return
    for name in names:
        if name not in target.replaced and (target.path / name).exists():
            raise InTheWayError(f"holds {name}, which belay did not write", file=target.path, hint=_ELSEWHERE)
