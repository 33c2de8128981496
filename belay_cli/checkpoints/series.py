"""The series: arguments into checkpoints, in order, each with its tick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from belay_cli.checkpoints.checkpoint import Checkpoint, is_average, open_checkpoint
from belay_cli.checkpoints.directory import checkpoints_inside
from belay_cli.checkpoints.fingerprint import fingerprint
from belay_cli.checkpoints.remote import is_url, parse
from belay_cli.checkpoints.remote.tree import Tree
from belay_cli.checkpoints.steps import step_in_name
from belay_cli.checkpoints.storage import AnyPath, StoredFile, open_file
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import SeriesError, UsageError

UNITS = ("auto", "step", "checkpoint")
ORDERS = ("step", "given")
SOURCES = ("raw", "ema")
_COMPARED = 4 << 20  # bytes at a time


@dataclass(frozen=True)
class Selection:
    """How arguments become a series: the order, the unit of ticks, which part of it is taken, and what of each one.

    `subfolder`, `state_key` and `source` are those of `Opening`.
    """

    order: str = "step"
    unit: str = "auto"
    from_step: int | None = None
    to_step: int | None = None
    every: int = 1
    allow_averages: bool = False
    subfolder: str | None = None
    state_key: str | None = None
    source: str | None = None

    @property
    def opening(self) -> Opening:
        """How each checkpoint is opened."""
        return Opening(self.subfolder, self.state_key, self.source)

    def __post_init__(self) -> None:
        if self.source not in (None, *SOURCES):
            raise UsageError(f"--source {self.source} is unknown", hint=f"one of: {', '.join(SOURCES)}")
        if self.order not in ORDERS:
            raise UsageError(f"--order {self.order} is unknown", hint=f"one of: {', '.join(ORDERS)}")
        if self.unit not in UNITS:
            raise UsageError(f"--unit {self.unit} is unknown", hint=f"one of: {', '.join(UNITS)}")
        if self.order == "given" and self.unit == "step":
            raise UsageError("--order given counts checkpoints, so --unit step has no meaning with it")
        if self.every < 1:
            raise UsageError(f"--every must be 1 or more, not {self.every}")


@dataclass(frozen=True)
class Series:
    """The ordered checkpoints of one model; `ticks` rise, in `unit` (step or checkpoint)."""

    name: str
    checkpoints: tuple[Checkpoint, ...]
    ticks: tuple[int, ...]
    unit: str
    notes: tuple[str, ...] = ()
    selection: Selection = Selection()

    @property
    def last(self) -> Checkpoint:
        """The newest checkpoint, which gives everything that is not averaged."""
        return self.checkpoints[-1]


def find_paths(arguments: Sequence[str | os.PathLike[str]]) -> tuple[list[AnyPath], list[str]]:
    """Each argument as checkpoints' paths, a run directory as those inside it; and notes about what was left out."""
    if not arguments:
        raise UsageError("no checkpoint was given", hint="belay average ckpts/*.safetensors")
    paths: list[AnyPath] = []
    notes: list[str] = []
    listings: dict[str, Tree] = {}
    for argument in arguments:
        if not os.fspath(argument):
            raise UsageError("a checkpoint is given as an empty text", hint="is a variable of the shell not set?")
        path = parse(os.fspath(argument), listings) if is_url(os.fspath(argument)) else Path(argument)
        inside, left_out = checkpoints_inside(path) if path.is_dir() else ([], [])
        if inside and left_out:
            notes.append(f"{path}: takes the {len(inside)} checkpoints inside, not {', '.join(left_out)}")
        paths += inside or [path]
    return paths, notes


def find_series(arguments: Sequence[str | os.PathLike[str]], selection: Selection | None = None) -> Series:
    """Open what the arguments name, and order it. Reads headers only.

    Raises CheckpointError for a checkpoint that cannot be read, SeriesError if there is no one order,
    UsageError if the selection does not fit.
    """
    selection = selection or Selection()
    paths, notes = find_paths(arguments)
    # By their names first: what is left out need not be whole.
    paths = [path for path in paths if _may_be_taken(path, selection)] or paths
    needs_step = selection.order == "step"
    checkpoints = distinct([open_checkpoint(path, selection.opening, needs_step=needs_step) for path in paths], notes)
    notes += dict.fromkeys(note for checkpoint in checkpoints for note in checkpoint.notes)
    _refuse_averages(checkpoints, selection)
    ordered, unit = order_checkpoints(checkpoints, selection, notes)
    taken = _select(ordered, selection)
    ticks = tuple(_step(c) for c in taken) if unit == "step" else tuple(range(len(taken)))
    return Series(_series_name(taken), tuple(taken), ticks, unit, tuple(notes), selection)


def _may_be_taken(path: AnyPath, selection: Selection) -> bool:
    step = step_in_name(path.name if path.is_dir() else path.stem)
    low, high = selection.from_step, selection.to_step
    return step is None or ((low is None or step >= low) and (high is None or step <= high))


def distinct(checkpoints: list[Checkpoint], notes: list[str]) -> list[Checkpoint]:
    """Without arguments that name the same file twice."""
    seen: dict[AnyPath, Checkpoint] = {}
    for checkpoint in checkpoints:
        # Not through links: a cache keeps equal shards of different checkpoints as links to one file.
        first = seen.setdefault(checkpoint.path.absolute(), checkpoint)
        if first is not checkpoint:
            notes.append(f"{checkpoint.path} is {first.path} again; it counts once")
    return list(seen.values())


def _refuse_averages(checkpoints: Sequence[Checkpoint], selection: Selection) -> None:
    for checkpoint in checkpoints:
        if is_average(checkpoint) and not selection.allow_averages:
            raise SeriesError(
                "was written by belay: it is an average, not a checkpoint",
                file=checkpoint.path,
                hint="leave it out, or say --allow-averages",
            )


def order_checkpoints(
    checkpoints: list[Checkpoint], selection: Selection, notes: list[str]
) -> tuple[list[Checkpoint], str]:
    """In order, with the unit of their ticks. Raises SeriesError if there is no order, or two are at one place."""
    if selection.order == "given":
        return checkpoints, "checkpoint"
    if all(checkpoint.step is not None for checkpoint in checkpoints):
        # Of twins at one step, the one that says the step in its name stays: last.ckpt goes.
        in_order = sorted(checkpoints, key=lambda c: (_step(c), step_in_name(c.path.stem) is None))
        ordered = _merge_twins(in_order, notes)
        return ordered, "checkpoint" if selection.unit == "checkpoint" else "step"
    if selection.unit == "step":
        without = next(checkpoint for checkpoint in checkpoints if checkpoint.step is None)
        raise SeriesError("states no step", file=without.path, hint="count in checkpoints: --unit checkpoint")
    if selection.unit == "auto" and len(checkpoints) > 1:
        without = next(checkpoint for checkpoint in checkpoints if checkpoint.step is None)
        notes.append(f"{without.name} states no step, as step_500 or checkpoint-500 do: checkpoints are counted")
    return _by_number(checkpoints), "checkpoint"


def _by_number(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    if len(checkpoints) == 1:
        return checkpoints
    for checkpoint in checkpoints:
        if checkpoint.number is None:
            raise SeriesError(
                "has no step and no integer in its name, so its place in the series is unknown",
                file=checkpoint.path,
                hint="give the checkpoints in order, with --order given",
            )
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.number or 0)
    for one, other in pairwise(ordered):
        if one.number == other.number:
            raise SeriesError(
                f"has the same number {other.number} as {one.path}",
                file=other.path,
                hint="give the checkpoints in order, with --order given",
            )
    return ordered


def _merge_twins(ordered: list[Checkpoint], notes: list[str]) -> list[Checkpoint]:
    """Two checkpoints at one step are one if their content is the same (last.ckpt and its twin), else an error."""
    distinct = ordered[:1]
    for checkpoint in ordered[1:]:
        before = distinct[-1]
        if checkpoint.step != before.step:
            distinct.append(checkpoint)
        elif _same_bytes(checkpoint, before):
            notes.append(f"{checkpoint.path} is the same as {before.path}; it counts once")
        else:
            raise SeriesError(
                f"is at step {checkpoint.step}, and so is {before.path}, with other weights",
                file=checkpoint.path,
                hint="a series has one checkpoint a step; leave one of them out",
            )
    return distinct


def _same_bytes(one: Checkpoint, other: Checkpoint) -> bool:
    if [file.size for file in one.files] != [file.size for file in other.files]:
        return False
    pairs = zip(one.files, other.files, strict=True)
    return fingerprint(one) == fingerprint(other) and all(_same_content(a, b) for a, b in pairs)


def _same_content(one: StoredFile, other: StoredFile) -> bool:
    with open_file(one.path) as left, open_file(other.path) as right:
        for offset in range(0, one.size, _COMPARED):
            count = min(_COMPARED, one.size - offset)
            if left.read_at(offset, count) != right.read_at(offset, count):
                return False
    return True


def _select(ordered: list[Checkpoint], selection: Selection) -> list[Checkpoint]:
    taken = ordered
    if selection.from_step is not None or selection.to_step is not None:
        if any(checkpoint.step is None for checkpoint in ordered):
            raise UsageError("--from-step and --to-step need the step of every checkpoint, and some state none")
        low, high = selection.from_step, selection.to_step
        taken = [c for c in taken if (low is None or _step(c) >= low) and (high is None or _step(c) <= high)]
    taken = taken[::-1][:: selection.every][::-1]
    if not taken:
        raise UsageError(
            f"no checkpoint lies between --from-step and --to-step: the series has steps "
            f"{_step(ordered[0])} to {_step(ordered[-1])}"
        )
    return taken


def _step(checkpoint: Checkpoint) -> int:
    assert checkpoint.step is not None  # noqa: S101
    return checkpoint.step


def _series_name(checkpoints: Sequence[Checkpoint]) -> str:
    """The directory that the checkpoints share, by name, for people."""
    parents = {str(checkpoint.path.absolute().parent) for checkpoint in checkpoints}
    return os.path.commonpath(parents).rsplit(os.sep, 1)[-1] or "series" if parents else "series"
