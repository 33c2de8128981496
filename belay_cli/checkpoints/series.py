"""The series: arguments into checkpoints, in order, each with its tick."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from belay_cli.checkpoints.arguments import refuse_output
from belay_cli.checkpoints.beside import left_beside
from belay_cli.checkpoints.checkpoint import Checkpoint, is_average, open_checkpoint
from belay_cli.checkpoints.notes import notes_of
from belay_cli.checkpoints.order.averages import LEAVE_OUT, refuse_average_by_name
from belay_cli.checkpoints.order.proof import order_checkpoints, within
from belay_cli.checkpoints.order.ranks import refuse_parts
from belay_cli.checkpoints.runs import distinct, find_paths
from belay_cli.checkpoints.selection import Selection
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import BelayError, SeriesError, UsageError
from belay_cli.storage.files import AnyPath


@dataclass(frozen=True)
class Series:
    """The ordered checkpoints of one model; `ticks` rise, in `unit` (step or checkpoint).

    `left_out`: where weights lie, in the last checkpoint or beside it, that are in no average of this series.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    ticks: tuple[int, ...]
    unit: str
    notes: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    left_out: tuple[str, ...] = ()

    @property
    def last(self) -> Checkpoint:
        """The newest checkpoint, which gives everything that is not averaged."""
        return self.checkpoints[-1]


def find_series(
    arguments: Sequence[str | os.PathLike[str]],
    selection: Selection | None = None,
    opened: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Series:
    """Open what the arguments name, and order it. Reads headers only. `opened` is called with each checkpoint.

    Raises CheckpointError for a checkpoint that cannot be read, SeriesError if there is no one order,
    UsageError if the selection does not fit.
    """
    selection = selection or Selection()
    paths, notes = find_paths(arguments, given=selection.order == "given")
    refuse_output(paths)
    paths = within(paths, selection) or paths
    refuse_parts(paths)
    checkpoints = distinct([_opened(path, selection, opened) for path in paths], notes)
    notes += notes_of(checkpoints)
    ordered, unit = order_checkpoints(checkpoints, selection, notes)
    taken = _select(ordered, selection)
    ticks = tuple(_step(c) for c in taken) if unit == "step" else tuple(range(len(taken)))
    left_out = tuple(left_beside(taken[-1]))
    return Series(_series_name(taken), tuple(taken), ticks, unit, tuple(notes), selection, left_out)


def _opened(path: AnyPath, selection: Selection, opened: Callable[[Checkpoint], None]) -> Checkpoint:
    checkpoint = _open(path, selection)
    opened(checkpoint)
    return checkpoint


def _open(path: AnyPath, selection: Selection) -> Checkpoint:
    needs_step = selection.order == "step"
    if selection.allow_averages:
        return open_checkpoint(path, selection.opening, needs_step=needs_step)
    try:
        refuse_average_by_name(path)
        checkpoint = open_checkpoint(path, selection.opening, needs_step=needs_step)
    except BelayError:
        if _was_written_by_belay(path):  # its record says more than its name does
            raise _average(path) from None
        raise
    if is_average(checkpoint):
        raise _average(path)
    return checkpoint


def _average(path: AnyPath) -> SeriesError:
    return SeriesError("was written by belay: it is an average, not a checkpoint", file=path, hint=LEAVE_OUT)


def _was_written_by_belay(path: AnyPath) -> bool:
    try:
        return is_average(open_checkpoint(path, Opening(allow_averages=True, as_it_is=True), needs_step=False))
    except BelayError:
        return False


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
    try:
        return os.path.commonpath(parents).rsplit(os.sep, 1)[-1] or "series"
    except ValueError:  # there are none, or some lie on this machine and others do not
        return "series"
