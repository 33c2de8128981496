"""The report of one output: from a plan, and from what a finished run knows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from belay_cli._version import __version__
from belay_cli.planning import Plan, PlannedOutput
from belay_cli.planning.estimate import Estimate
from belay_cli.planning.plan import TORCH
from belay_cli.show.report import CheckpointReport, FileReport, Report, TensorCounts
from belay_cli.show.screens import plan_lines


@dataclass(frozen=True)
class Done:
    """What only a finished run knows, of all its outputs."""

    device: str
    engine: str
    seconds: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    processes: int = 1


def report(
    command: str,
    plan: Plan,
    output: PlannedOutput,
    done: Done | None = None,
    discarded: float | None = None,
    estimate: Estimate | None = None,
) -> Report:
    """The report of one output of a plan, which has a target; after a run with what it knows.

    estimate: how long it was, or is, expected to take.
    """
    files = plan.files(output)
    ahead = None if done else estimate
    lines = plan_lines(plan, [output], done.device if done else None, ahead, width=None, unicode=True)
    actions = [tensor.action for tensor in plan.tensors]
    return Report(
        command=command,
        version=__version__,
        device=done.device if done else (None if plan.options.device == "auto" else plan.options.device),
        engine=done.engine if done else TORCH if plan.options.device.startswith("cuda") else plan.engine,
        threads=plan.buffers.threads,
        processes=done.processes if done else 1,
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
        estimate=estimate,
        format="same" if plan.is_same else "safetensors",
        text="\n".join(line.plain for line in lines),
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
