"""What was found in checkpoints, as `belay inspect` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.text import Text

from belay_cli import words
from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.checkpoint import architecture
from belay_cli.checkpoints.recognised import recognised
from belay_cli.errors import BelayError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.text import listed, shape_text
from belay_cli.planning.policies import Policies
from belay_cli.record import Record
from belay_cli.show.report import Shown
from belay_cli.show.screens import average_lines
from belay_cli.show.styles import STRONG
from belay_cli.show.tables import columns


@dataclass(frozen=True)
class FoundAverage:
    """An output of belay: what it says of itself, and its files with their bytes and what is wrong, if anything."""

    name: str
    record: Record
    files: tuple[tuple[str, int, str], ...]

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        said = self.record.values()
        summary = asdict(self.record.summary)
        files = [{"path": name, "bytes": size, "wrong": wrong or None} for name, size, wrong in self.files]
        return {"rule": said["rule"], "series": said["series"], "summary": summary, "files": files}


@dataclass(frozen=True)
class Findings(Shown):
    """The checkpoints in order as far as there is one, and what is wrong. `average`: if it is one output of belay."""

    series: Series
    problems: list[BelayError]
    warnings: list[str]
    average: FoundAverage | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self, *, tensors: bool = False) -> dict[str, Any]:
        """As an object for json.dumps; tensors only if asked for."""
        series = self.series
        result: dict[str, Any] = {
            "command": "inspect",
            "series": series.name,
            "unit": series.unit,
            "checkpoints": [
                _checkpoint(*one)
                for one in zip(series.checkpoints, series.ticks, recognised(series.checkpoints), strict=True)
            ],
            "problems": [
                {"message": str(e), "file": e.file, "tensor": e.tensor, "hint": e.hint} for e in self.problems
            ],
            "warnings": self.warnings,
            "notes": list(series.notes),
            "average": self.average.to_json() if self.average else None,
        }
        if tensors and series.checkpoints:
            result["tensors"] = [
                {"name": name, "dtype": DTYPES[t.dtype].name, "shape": list(t.shape), "bytes": t.nbytes}
                for name, t in series.last.tensors.items()
            ]
        return result

    def __str__(self) -> str:
        """The table, and what is wrong under it."""
        told = [f"belay: {problem}" for problem in self.problems] + [f"warning: {text}" for text in self.warnings]
        wrong = map(words.printable, told)
        return "\n".join([*(line.plain for line in self.lines(width=None, unicode=True)), *wrong])

    def lines(self, *, width: int | None, unicode: bool, tensors: bool = False) -> Iterator[Text]:
        """As a table, in the order of the series. width: columns of the terminal, None without one."""
        series, table = self.series, partial(columns, width=width, unicode=unicode)
        if series.checkpoints:
            yield Text(words.printable(_headline(series)), style=STRONG)
            yield Text()
            yield from table([("checkpoint", "step", "tensors", "dtype", "size"), *map(_row, series.checkpoints)])
            yield Text()
            yield from map(_plain, _recognised(series.checkpoints))
        yield from (_plain(f"note: {note}") for note in series.notes)
        if tensors and series.checkpoints:
            yield Text()
            yield from table([("tensor", "dtype", "shape", "policy"), *_tensor_rows(series.last)])
        if self.average:
            yield Text()
            found = self.average
            yield from average_lines(found.name, found.record, found.files, width=width, unicode=unicode)
        elif not self.problems and series.checkpoints:
            yield Text()
            yield Text("one series; what an average of it would be: belay plan, with the same arguments")


def _plain(text: str) -> Text:
    return Text(words.printable(text))


def _checkpoint(checkpoint: Checkpoint, tick: int, found: dict[str, str]) -> dict[str, Any]:
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


def _tensor_rows(checkpoint: Checkpoint) -> Iterator[tuple[str, ...]]:
    policies = Policies()
    for name, tensor in checkpoint.tensors.items():
        action = policies.action(name, tensor.dtype)
        yield name, DTYPES[tensor.dtype].name, shape_text(tensor.shape), action


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
