"""What a plan will do or a run has done, under names that do not change: `--json` prints it, `average` returns it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from belay_cli._version import __version__
from belay_cli.plan import Plan, PlannedOutput


@dataclass(frozen=True)
class Report:
    """One average. Sizes in bytes, times in seconds, lags and half-lives in ticks.

    What only a finished run knows (`seconds`, `peak_memory`, the device if it was left to belay) is None in a plan.
    `discarded_energy`: of adapters averaged as updates, the most that any lost to its rank, √(Σ cut σ² / Σ σ²).
    """

    command: str
    version: str
    device: str | None
    output: str
    seconds: float | None
    rule: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    summary: dict[str, float]
    tensors: dict[str, int]
    bytes_read: int
    bytes_written: int
    planned_memory: int
    peak_memory: int | None
    files: list[dict[str, Any]]
    warnings: list[str]
    notes: list[str]
    discarded_energy: float | None

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        return asdict(self)


def report(
    command: str,
    plan: Plan,
    output: PlannedOutput,
    *,
    device: str | None = None,
    seconds: float | None = None,
    warnings: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    discarded: float | None = None,
) -> Report:
    """The report of one output of a plan; after a run with its device and seconds."""
    files = plan.files(output)
    actions = [tensor.action for tensor in plan.tensors]
    return Report(
        command=command,
        version=__version__,
        device=device or (None if plan.options.device == "auto" else plan.options.device),
        output=str(output.target.path),
        seconds=seconds,
        rule=output.rule.describe(),
        checkpoints=[
            {
                "name": checkpoint.name,
                "path": str(checkpoint.path),
                "step": checkpoint.step,
                "tick": tick,
                "coefficient": coefficient,
                "bytes": checkpoint.bytes,
            }
            for checkpoint, tick, coefficient in zip(
                plan.series.checkpoints, plan.series.ticks, output.coefficients.tolist(), strict=True
            )
        ],
        summary=asdict(output.summary),
        tensors={
            "averaged": actions.count("average") + actions.count("delta"),
            "last": actions.count("last"),
            "dropped": plan.dropped,
        },
        bytes_read=plan.bytes_read,
        bytes_written=sum(files.values()),
        planned_memory=plan.buffers.nbytes,
        peak_memory=None if seconds is None else peak_memory(),
        files=[{"path": str(path), "bytes": size} for path, size in files.items()],
        warnings=[*plan.warnings, *warnings],
        notes=[*plan.series.notes, *notes],
        discarded_energy=discarded,
    )


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
