"""What the benchmarks share: whole processes measured, tables, and what the machine is."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One process from start to end: wall time in seconds, peak resident memory in bytes, its children's included."""

    seconds: float
    peak: int


def run_process(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Run:
    """Run a command and measure it; what it says goes to the log. Exits with the log's end if the command fails.

    The kernel carries the peak of the process that spawns over into the one that is spawned: keep the caller small.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    began = time.perf_counter()
    child = os.posix_spawnp(command[0], list(command), os.environ if env is None else env, file_actions=actions)
    try:
        _, status, usage = os.wait4(child, 0)
    except BaseException:  # an interrupt: nothing may go on writing into a directory that is about to be removed
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    seconds = time.perf_counter() - began
    if code := os.waitstatus_to_exitcode(status):
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        sys.exit(f"exit code {code}: {' '.join(command)[:400]}\n{end}")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well as it is: the first column to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + "-" * widths[0] + " | " + " | ".join("-" * (w - 1) + ":" for w in widths[1:]) + " |"
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def machine() -> dict[str, str | int]:
    """What the figures depend on, beside the code."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": memory_bytes(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "safetensors": version("safetensors"),
    }


def describe_machine() -> str:
    """`machine` as a line."""
    found = machine()
    return (
        f"{found['system']}, {found['cores']} cores, {memory_bytes() / 1e9:.0f} GB of memory, "
        f"Python {found['python']}, torch {found['torch']}, safetensors {found['safetensors']}"
    )


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
