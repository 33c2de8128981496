"""What was done, or would be, under names that do not change: `--json` prints it, the Python API returns it.

Sizes are in bytes, times in seconds, lags and half-lives in ticks. `to_json()` is the object that --json prints, and a
report as text is the table that the command shows.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from belay_cli._version import __version__
from belay_cli.planning import Plan, PlannedOutput
from belay_cli.rules import Parameters, Summary

_ENGINE = "torch"  # what does the arithmetic


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
class Done:
    """What only a finished run knows, of all its outputs."""

    device: str
    seconds: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(Shown):
    """One average.

    What only a finished run knows (`seconds`, `peak_memory`, the device if it was left to belay) is None in a plan.
    `rule` has its method, unit and parameters. `discarded_energy`:
    of adapters averaged as updates, the most that any lost to its rank, √(Σ cut σ² / Σ σ²).
    """

    command: str
    version: str
    device: str | None
    engine: str
    threads: int
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
    text: str = field(repr=False, compare=False, default="")

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        return {name: value for name, value in asdict(self).items() if name != "text"}

    def __str__(self) -> str:
        """The table, as the command shows it."""
        return self.text


def report(
    command: str,
    plan: Plan,
    output: PlannedOutput,
    done: Done | None = None,
    discarded: float | None = None,
) -> Report:
    """The report of one output of a plan, which has a target; after a run with what it knows."""
    from belay_cli.show.screens import plan_lines

    files = plan.files(output)
    actions = [tensor.action for tensor in plan.tensors]
    return Report(
        command=command,
        version=__version__,
        device=done.device if done else (None if plan.options.device == "auto" else plan.options.device),
        engine=_ENGINE,
        threads=plan.buffers.threads,
        output=str(output.target.path) if output.target else "",
        seconds=done.seconds if done else None,
        rule={"method": output.rule.method, "unit": plan.series.unit, **output.rule.parameters()},
        checkpoints=[
            CheckpointReport(
                checkpoint.name, str(checkpoint.path), checkpoint.step, tick, coefficient, checkpoint.bytes
            )
            for checkpoint, tick, coefficient in zip(
                plan.series.checkpoints, plan.series.ticks, output.coefficients.tolist(), strict=True
            )
        ],
        summary=output.summary,
        tensors=TensorCounts(
            averaged=actions.count("average") + actions.count("delta"),
            last=actions.count("last"),
            dropped=plan.dropped,
        ),
        bytes_read=plan.bytes_read,
        bytes_written=sum(files.values()),
        planned_memory=plan.buffers.nbytes,
        peak_memory=peak_memory() if done else None,
        files=[FileReport(str(path), size) for path, size in files.items()],
        warnings=[*plan.warnings, *(done.warnings if done else ())],
        notes=[*plan.series.notes, *(done.notes if done else ())],
        discarded_energy=discarded,
        text="\n".join(line.plain for line in plan_lines(plan, width=None, unicode=True)),
    )


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
        width = max((len(file.path) for file in self.files), default=0)
        return "\n".join([f"{self.status}: {self.url}", *(f"  {f.path:<{width}}  {f.action}" for f in self.files)])


def peak_memory() -> int | None:
    """The most memory that this process has had resident, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would include the parent's memory from before exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
