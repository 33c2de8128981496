"""What checkpoints are, whether they are one series, and everything that is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from belay_cli import words
from belay_cli.api.average import Checkpoints, listed_paths, listener
from belay_cli.api.keywords import SeriesKeywords, series_options
from belay_cli.checkpoints import Checkpoint, Selection, Series, open_checkpoint
from belay_cli.checkpoints.adapters.names import is_adapter
from belay_cli.checkpoints.beside import left_beside
from belay_cli.checkpoints.checkpoint import is_average, is_replayed
from belay_cli.checkpoints.compare import difference
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.checkpoints.nonfinite import NonFinite, bytes_of_values, nonfinite
from belay_cli.checkpoints.notes import notes_of
from belay_cli.checkpoints.order.averages import average_by_name
from belay_cli.checkpoints.order.proof import falling, order_checkpoints
from belay_cli.checkpoints.runs import distinct, find_paths
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import BelayError, CheckpointError, NumericError
from belay_cli.planning.warnings import identical_warnings, left_out_warnings
from belay_cli.record import DOCUMENT
from belay_cli.show.findings import Findings, FoundAverage
from belay_cli.show.listener import Listener
from belay_cli.storage.files import AnyPath
from belay_cli.verification import FAILED, check_unread, missing, paths_of, whole_record

if TYPE_CHECKING:
    from typing import Unpack


def inspect(
    checkpoints: Checkpoints, *, values: bool = False, progress: bool = False, **options: Unpack[SeriesKeywords]
) -> Findings:
    """Say what these checkpoints are, from headers and a few blocks of each file.

    values: read every weight too, and find NaN and infinity. options: unit, order, subfolder, state_key, source, as
    `belay inspect` has them. What is wrong with checkpoints is listed in the findings, all of it; raises UsageError for
    options that cannot be, and another BelayError where there is nothing to look at.
    """
    return look(
        [os.fspath(path) for path in listed_paths(checkpoints)],
        series_options(options),
        listener(progress),
        values=values,
    )


def look(arguments: Sequence[str], selection: Selection, hears: Listener, *, values: bool) -> Findings:
    """Open what can be opened, order what can be ordered, and collect the errors."""
    problems: list[BelayError] = []
    opening = Opening(selection.opening.subfolder, selection.state_key, selection.source, allow_averages=True)
    paths, notes = find_paths(arguments, given=selection.order == "given")
    needs_step = selection.order == "step"
    opened = distinct([c for path in paths if (c := _try_to_open(path, opening, needs_step, problems))], notes)
    notes += notes_of(opened)
    ordered, unit = opened, "checkpoint"
    try:
        ordered, unit = order_checkpoints(opened, selection, notes)
    except BelayError as error:
        problems.append(error)
    problems += [e for a, b in pairwise(ordered) if (e := difference(a, b, lambda name: False))]
    ticks = [c.step or 0 for c in ordered] if unit == "step" else list(range(len(ordered)))
    name = Path(paths[0]).absolute().parent.name
    left_out = tuple(left_beside(ordered[-1])) if ordered else ()
    series = Series(name, tuple(ordered), tuple(ticks), unit, tuple(notes), selection, left_out)
    fall = falling(ordered) if selection.order == "given" else ()
    if values:
        problems += _not_finite(ordered, hears)
    warnings, average = [*fall, *_warnings(series)], None
    if len(ordered) == 1 and is_replayed(ordered[0]):
        average, wrong = _average(ordered[0])
        problems += wrong
    return Findings(series, problems, warnings, average)


def _not_finite(checkpoints: Sequence[Checkpoint], hears: Listener) -> list[BelayError]:
    """An error for each checkpoint that holds NaN or infinity."""
    with hears.phase("Reading every weight", bytes_of_values(checkpoints)) as progress:
        found = nonfinite(checkpoints, progress)
    return [
        NumericError(
            f"{one.tensor!r} holds {_counted(one)}{_beside(one)}",
            file=checkpoint.path,
            tensor=one.tensor,
            hint="leave the checkpoint out, or average them all the same: belay average --allow-nonfinite",
        )
        for checkpoint, one in zip(checkpoints, found, strict=True)
        if one
    ]


def _counted(found: NonFinite) -> str:
    parts = [f"{number} {what}" for number, what in ((found.nan, "NaN"), (found.infinite, "inf")) if number]
    return " and ".join(parts)


def _beside(found: NonFinite) -> str:
    if found.tensors == 1:
        return ""
    return f", and so {'does' if found.tensors == 2 else 'do'} {words.plural(found.tensors - 1, 'more tensor')}"


def _average(checkpoint: Checkpoint) -> tuple[FoundAverage, list[BelayError]]:
    """What an output of belay says of itself, its files, and what is wrong with them as far as headers tell."""
    records, checks = check_unread(checkpoint)
    record = whole_record(records)
    files = [(name, file.size, "") for name, file in checkpoint.weights.named_files()]
    directory = checkpoint.directory
    if record.is_same:
        files = [
            (name, path.stat().st_size if path.is_file() else 0, "" if path.is_file() else "is missing")
            for name, path in paths_of(Path(os.fspath(checkpoint.path)), record).items()
        ]
    elif isinstance(directory, Path):
        for name in (DOCUMENT, *record.copies):
            wrong_with = missing(directory, name)
            files.append((name, 0 if wrong_with else (directory / name).stat().st_size, wrong_with))
    name = os.fspath(checkpoint.path)
    wrong: list[BelayError] = [
        CheckpointError(check.detail, file=name, hint=f"make it again; belay verify {name} says more")
        for check in checks
        if check.status == FAILED
    ]
    return FoundAverage(name, record, tuple(files)), wrong


def _try_to_open(path: AnyPath, opening: Opening, needs_step: bool, problems: list[BelayError]) -> Checkpoint | None:
    try:
        return open_checkpoint(path, opening, needs_step=needs_step)
    except BelayError as error:
        problems.append(error)
        return None


def _warnings(series: Series) -> list[str]:
    found = list(identical_warnings(series, fingerprints(series.checkpoints)))
    found += left_out_warnings(series)
    if len(series.checkpoints) > 1:  # of one, what it is is shown
        found += [f"{c.name} was written by belay: it is an average" for c in series.checkpoints if is_average(c)]
    found += [f"{c.name} is {what}, by its name" for c in series.checkpoints if (what := average_by_name(c.name))]
    found += [f"{c.name} is an adapter, not a whole model" for c in series.checkpoints[-1:] if is_adapter(c)]
    gaps = [b - a for a, b in pairwise(series.ticks)]
    if gaps and max(gaps) >= 2 * min(gaps):
        after = series.checkpoints[gaps.index(max(gaps))].name
        found.append(f"{max(gaps)} steps lie behind {after}, {min(gaps)} elsewhere: is a checkpoint missing?")
    return found
