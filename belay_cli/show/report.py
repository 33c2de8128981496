"""What was done, or would be, under names that do not change: `--json` prints it, the Python API returns it.

Sizes are in bytes, times in seconds, lags and half-lives in ticks. `to_json()` is the object that --json prints, and a
report as text is the table that the command shows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from belay_cli import words
from belay_cli.planning.estimate import Estimate
from belay_cli.rules import Parameters, Summary


class Shown:
    """Something that is shown as text: on a terminal, and in a notebook."""

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


@dataclass(frozen=True)
class CheckpointReport:
    """One checkpoint of the series, and its coefficient."""

    name: str
    path: str
    step: int | None
    tick: int
    coefficient: float
    bytes: int


@dataclass(frozen=True)
class TensorCounts:
    """How many tensors are averaged, taken from the last checkpoint, and dropped."""

    averaged: int
    last: int
    dropped: int


@dataclass(frozen=True)
class FileReport:
    """A file of the output."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Report(Shown):
    """One average.

    What only a finished run knows (`seconds`, `peak_memory`, the device if it was left to belay) is None in a plan.
    `processes` worked together, each with `threads`. `rule` has its method, unit and parameters. `discarded_energy`: of
    adapters averaged as updates, the most that any lost to its rank, √(Σ cut σ² / Σ σ²). `estimate`: how long it was
    expected to take here, in all and by part; None where that cannot be told, or nobody asked: `average` in Python does
    not. `format`: `same` for an output in the files of the last checkpoint.
    """

    command: str
    version: str
    device: str | None
    engine: str
    threads: int
    processes: int
    output: str
    seconds: float | None
    rule: Parameters
    checkpoints: list[CheckpointReport]
    summary: Summary
    tensors: TensorCounts
    bytes_read: int
    bytes_written: int
    planned_memory: int
    peak_memory: int | None
    files: list[FileReport]
    warnings: list[str]
    notes: list[str]
    discarded_energy: float | None
    estimate: Estimate | None = None
    format: str = "safetensors"
    text: str = field(repr=False, compare=False, default="")

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        return {name: value for name, value in asdict(self).items() if name != "text"}

    def __str__(self) -> str:
        """The table, as the command shows it."""
        return self.text


@dataclass(frozen=True)
class FileAction:
    """A file of a publication, and what happens to it: `add`, `replace`, `keep` or `delete`."""

    path: str
    bytes: int
    action: str


@dataclass(frozen=True)
class PushReport(Shown):
    """A publication. `status`: `planned`, `unchanged` or `committed`; `url`: of the commit, or of the repository."""

    command: str
    output: str
    repo_id: str
    revision: str
    files: list[FileAction]
    status: str
    url: str

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        return asdict(self)

    def __str__(self) -> str:
        """What became of each file, and where."""
        rows = [(words.printable(file.path), file.action) for file in self.files]
        width = max((len(path) for path, _ in rows), default=0)
        said = [f"{self.status}: {words.printable(self.url)}", *(f"  {path:<{width}}  {what}" for path, what in rows)]
        return "\n".join(said)
