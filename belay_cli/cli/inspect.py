"""`belay inspect`: what checkpoints are, whether they are one series, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from belay_cli import words
from belay_cli.checkpoints import Checkpoint, Selection, Series, open_checkpoint
from belay_cli.checkpoints.adapters.names import is_adapter
from belay_cli.checkpoints.beside import left_beside
from belay_cli.checkpoints.checkpoint import architecture, is_average
from belay_cli.checkpoints.compare import difference
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.checkpoints.order.averages import average_by_name
from belay_cli.checkpoints.order.proof import falling, order_checkpoints
from belay_cli.checkpoints.recognised import recognised
from belay_cli.checkpoints.runs import distinct, find_paths
from belay_cli.cli import options as o
from belay_cli.console import Console, error_json
from belay_cli.errors import BelayError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.text import listed, shape_text
from belay_cli.plan.policies import Policies
from belay_cli.plan.warnings import identical_warnings, left_out_warnings
from belay_cli.storage.files import AnyPath

Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.", show_default=False)]


def inspect(
    checkpoints: o.Checkpoints,
    unit: o.Unit = "auto",
    order: o.Order = "step",
    subfolder: o.Subfolder = None,
    state_key: o.StateKey = None,
    source: o.Source = None,
    tensors: Tensors = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Say what these checkpoints are, and whether they are one series.

    Reads headers, and a few blocks of each file to find checkpoints that are the same. Everything that is
    wrong is listed, not only the first thing; the exit code is 1 if anything is.

    Examples:

        belay inspect ckpts/*.safetensors
        belay inspect run --tensors
    """
    console = Console(json=json, quiet=quiet)
    selection = Selection(
        order=order, unit=unit, allow_averages=True, subfolder=subfolder, state_key=state_key, source=source
    )
    found = look(checkpoints, selection)
    if json:
        console.json(found.to_json(tensors) | (error_json(found.problems[0]) if found.problems else {}))
    elif not quiet:
        found.show(console, tensors)
    if not json:
        for problem in found.problems:
            console.error(problem)
        for warning in found.warnings:
            console.warn(warning)
    if found.problems:
        raise typer.Exit(1)


class Findings:
    """What was found: the checkpoints in order as far as there is one, and what is wrong."""

    def __init__(self, series: Series, problems: list[BelayError], warnings: list[str]) -> None:
        self.series, self.problems, self.warnings = series, problems, warnings

    def to_json(self, tensors: bool) -> dict[str, Any]:
        """As an object for json.dumps; tensors only if asked for."""
        series = self.series
        result: dict[str, Any] = {
            "command": "inspect",
            "series": series.name,
            "unit": series.unit,
            "checkpoints": [
                self._checkpoint(*one)
                for one in zip(series.checkpoints, series.ticks, recognised(series.checkpoints), strict=True)
            ],
            "problems": [
                {"message": str(e), "file": e.file, "tensor": e.tensor, "hint": e.hint} for e in self.problems
            ],
            "warnings": self.warnings,
            "notes": list(series.notes),
        }
        if tensors and series.checkpoints:
            result["tensors"] = [
                {"name": name, "dtype": DTYPES[t.dtype].name, "shape": list(t.shape), "bytes": t.nbytes}
                for name, t in series.last.tensors.items()
            ]
        return result

    def _checkpoint(self, checkpoint: Checkpoint, tick: int, found: dict[str, str]) -> dict[str, Any]:
        return {
            "name": checkpoint.name,
            "path": str(checkpoint.path),
            "step": checkpoint.step,
            "tick": tick,
            "tensors": len(checkpoint.tensors),
            "parameters": _parameters(checkpoint),
            "dtypes": _dtypes(checkpoint),
            "bytes": checkpoint.bytes,
            "recognised": found,
        }

    def show(self, console: Console, tensors: bool) -> None:
        """As a table, in the order of the series."""
        series = self.series
        if series.checkpoints:
            console.line(_headline(series), style="bold")
            console.line()
            rows: list[tuple[str, ...]] = [("checkpoint", "step", "tensors", "dtype", "size")]
            rows += [_row(checkpoint) for checkpoint in series.checkpoints]
            console.table(rows)
            console.line()
            for line in _recognised(series.checkpoints):
                console.line(line)
        for note in series.notes:
            console.line(f"note: {note}")
        if tensors and series.checkpoints:
            console.line()
            policies = Policies()
            console.table(
                [("tensor", "dtype", "shape", "policy")]
                + [
                    (name, DTYPES[t.dtype].name, shape_text(t.shape), policies.action(name, t.dtype))
                    for name, t in series.last.tensors.items()
                ]
            )
        if not self.problems and series.checkpoints:
            console.line()
            console.line("one series; what an average of it would be: belay plan, with the same arguments")


def look(arguments: Sequence[str], selection: Selection) -> Findings:
    """Open what can be opened, order what can be ordered, and collect the errors."""
    problems: list[BelayError] = []
    paths, notes = find_paths(arguments, given=selection.order == "given")
    opened = distinct([c for path in paths if (c := _try_to_open(path, selection, problems))], notes)
    notes += dict.fromkeys(note for checkpoint in opened for note in checkpoint.notes)
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
    return Findings(series, problems, [*fall, *_warnings(series)])


def _try_to_open(path: AnyPath, selection: Selection, problems: list[BelayError]) -> Checkpoint | None:
    try:
        return open_checkpoint(path, selection.opening, needs_step=selection.order == "step")
    except BelayError as error:
        problems.append(error)
        return None


def _warnings(series: Series) -> list[str]:
    found = list(identical_warnings(series, fingerprints(series.checkpoints)))
    found += left_out_warnings(series)
    found += [f"{c.name} was written by belay: it is an average" for c in series.checkpoints if is_average(c)]
    found += [f"{c.name} is {what}, by its name" for c in series.checkpoints if (what := average_by_name(c.name))]
    found += [f"{c.name} is an adapter, not a whole model" for c in series.checkpoints[-1:] if is_adapter(c)]
    gaps = [b - a for a, b in pairwise(series.ticks)]
    if gaps and max(gaps) >= 2 * min(gaps):
        after = series.checkpoints[gaps.index(max(gaps))].name
        found.append(f"{max(gaps)} steps lie behind {after}, {min(gaps)} elsewhere: is a checkpoint missing?")
    return found


def _headline(series: Series) -> str:
    model = architecture(series.last)
    parameters = f"{words.count(_parameters(series.last))} parameters"
    spacing = f", {words.spacing(series.ticks)}" if series.unit == "step" and len(series.ticks) > 1 else ""
    kinds = words.plural(len(series.checkpoints), "checkpoint")
    return " · ".join([f"{series.name}: {kinds}{spacing}", *([model] if model else []), parameters])


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    step = "-" if checkpoint.step is None else str(checkpoint.step)
    dtypes = ", ".join(_dtypes(checkpoint))
    return checkpoint.name, step, str(len(checkpoint.tensors)), dtypes, words.size(checkpoint.bytes)


def _recognised(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """What was recognised and why, said once for checkpoints of which it is the same."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for checkpoint, what in zip(checkpoints, recognised(checkpoints), strict=True):
        groups.setdefault(tuple(what.items()), []).append(checkpoint.name)
    for found, names in groups.items():
        whose = "" if len(groups) == 1 else f" in {listed(names)}"
        yield f"recognised{whose}:"
        width = max(len(what) for what, _ in found)
        yield from (f"  {what:<{width}}  {why}" for what, why in found)


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(t.elements for t in checkpoint.tensors.values() if DTYPES[t.dtype].averageable)


def _dtypes(checkpoint: Checkpoint) -> list[str]:
    """The dtypes in it, the one with the most bytes first."""
    total: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        total[tensor.dtype] = total.get(tensor.dtype, 0) + tensor.nbytes
    return [DTYPES[code].name for code in sorted(total, key=lambda code: -total[code])]
