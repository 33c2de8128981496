"""Measure the engine on series of every shape against the least that a run can cost: reading and writing.

Whole processes run in turn, so that what else the machine does falls on all of them. The floor is `cat` of the inputs
to /dev/null, and `cp` and `sync` of as many outputs as are written. torch is not imported here: the peak memory of a
child would begin at this process's own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import SCRATCH, remove, say, warm, work_directory
from measure import describe_machine, machine, run_process, table
from peers import environment

_HERE = Path(__file__).resolve().parent
_DROP = Path("/proc/sys/vm/drop_caches")

# One read, as many outputs as rules; the half-lives are of a sweep.
_SEVERAL = """
import sys
from belay_cli import Ema, average
run, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
average([run], rules=[Ema(half_life=1 + k / 4) for k in range(count)], unit="checkpoint", device="cpu",
        outputs=[f"{out}/{k}.safetensors" for k in range(count)], overwrite=True)
"""

# The same, and nobody takes the results.
_UNWRITTEN = """
import sys
from belay_cli import Ema
from belay_cli.api.average import prepare
from belay_cli.api.keywords import plan_options
from belay_cli.engine.stream import replay
from belay_cli.show.listener import Nobody
class Nowhere:
    def write(self, chunk, data): pass
count = int(sys.argv[2])
rules = [Ema(half_life=1 + k / 4) for k in range(count)]
plan = prepare([sys.argv[1]], rules, None, *plan_options({"unit": "checkpoint", "device": "cpu"}), Nobody())
replay(plan, [Nowhere()] * count, lambda nbytes: None)
"""


@dataclass(frozen=True)
class Case:
    """What is measured on one series: belay's command, and what it writes at the least, by the name of the figure."""

    name: str
    series: str
    command: Callable[[Path, Path], list[str]]
    outputs: int = 1
    cold: bool = False
    limit: Callable[[float, float], float] | None = None  # of seconds to read, and to read and write -> seconds


@dataclass(frozen=True)
class Found:
    """Medians in seconds, and belay's peak in bytes."""

    belay: float
    read: float
    floor: float
    peak: int


def average(run: Path, out: Path) -> list[str]:
    """`belay average`."""
    options = ["--decay", "0.9", "--unit", "checkpoint", "-q", "--device", "cpu"]
    return [sys.executable, "-m", "belay_cli", "average", str(run), "-o", str(out / "average"), *options]


def plan(run: Path, out: Path) -> list[str]:
    """`belay plan`."""
    return [sys.executable, "-m", "belay_cli", "plan", str(run), "-o", str(out / "average"), "-q"]


def several(count: int) -> Callable[[Path, Path], list[str]]:
    """Many averages in one read."""
    return lambda run, out: [sys.executable, "-c", _SEVERAL, str(run), str(out), str(count)]


def unwritten(count: int) -> Callable[[Path, Path], list[str]]:
    """The same, not written."""
    return lambda run, out: [sys.executable, "-c", _UNWRITTEN, str(run), str(count)]


SERIES = {
    "bfloat16": ["make_series.py", "--checkpoints", "12"],
    "bfloat16 × 2": ["make_series.py", "--checkpoints", "24"],
    "float32": ["make_series.py", "--checkpoints", "12", "--dtype", "float32"],
    "many": ["make_small_series.py", "--checkpoints", "1000", "--tensors", "4", "--elements", "131072"],
    "tiny": ["make_small_series.py", "--checkpoints", "20", "--tensors", "10000", "--elements", "325"],
}

CASES = [
    Case("1 output", "bfloat16", average, limit=lambda read, floor: 1.2 * floor),
    Case("8 outputs", "bfloat16", several(8), 8, limit=lambda read, floor: 1.3 * floor),
    Case("32 outputs, not written", "bfloat16", unwritten(32), 0, limit=lambda read, floor: 12),
    Case("1 output, cold", "bfloat16", average, cold=True, limit=lambda read, floor: 1.1 * floor),
    Case("twice the checkpoints", "bfloat16 × 2", average),
    Case("float32", "float32", average, limit=lambda read, floor: 1.3 * floor),
    Case("1,000 checkpoints of 2 MB", "many", average, limit=lambda read, floor: 0.8 + 2 * read),
    Case("plan of 1,000 checkpoints", "many", plan, 0, limit=lambda read, floor: 0.4 + read),
    Case("20 checkpoints of 10,000 tensors", "tiny", average, limit=lambda read, floor: 1.0),
    Case("plan of 10,000 tensors", "tiny", plan, 0, limit=lambda read, floor: 0.5),
]


def main() -> None:
    """Measure the cases that are asked for, series by series, and print a table."""
    parser = argparse.ArgumentParser(description="Measure belay on series of every shape against reading and writing.")
    parser.add_argument("--work", type=Path, help="where the series and the outputs go; the series stay there")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES), help="of which series")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    found: dict[Case, Found] = {}
    with work_directory(options.work, keep=False) as work:
        for name in options.only:
            run = series(work, name)
            for case in [case for case in CASES if case.series == name]:
                found[case] = measure(case, run, work / SCRATCH / "out", options.runs)
            if not options.work:
                remove(run)
    print(f"{options.runs} rounds\n{describe_machine()}\n\n{report(found)}")
    if options.json:
        figures = {case.name: vars(one) for case, one in found.items()}
        options.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def series(work: Path, name: str) -> Path:
    """A series, made if it is not there."""
    run = work / f"series {name}"
    if not run.is_dir():
        say(f"making {name}")
        program, *arguments = SERIES[name]
        partial = run.with_name(run.name + ".partial")
        remove(partial)
        run_process([sys.executable, str(_HERE / program), str(partial), *arguments], work / SCRATCH / "log")
        partial.rename(run)
    return run


def measure(case: Case, run: Path, out: Path, runs: int) -> Found:
    """belay, the read alone, and the floor, in turn."""
    inputs = sorted(run.glob("*/model.safetensors"))
    log = out.parent / "log"
    read = 'cat "$@" >/dev/null'
    write = f'for i in $(seq {case.outputs}); do cp "$1" {out}/copy-$i; done && sync {out}/copy-*'
    commands = {
        "belay": case.command(run, out),
        "read": ["sh", "-c", read, "read", *map(str, inputs)],
        "floor": ["sh", "-c", f"{read} && {write}" if case.outputs else read, "floor", *map(str, inputs)],
    }
    if case.cold and not os.access(_DROP, os.W_OK):
        say(f"{case.name}: skipped, the page cache can be dropped by root alone")
        return Found(math.nan, math.nan, math.nan, 0)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: list[int] = []
    for number in range(runs + 1):
        say(f"{case.name}: round {number} of {runs}")
        for name in commands if number % 2 else reversed(commands):
            remove(out)
            out.mkdir(parents=True)
            os.sync()
            if case.cold:
                _DROP.write_text("3")
            elif not number:
                warm(inputs)
            done = run_process(commands[name], log, environment())
            if number:  # the first round fills caches
                seconds[name].append(done.seconds)
                peaks += [done.peak] if name == "belay" else []
    remove(out)
    return Found(median(seconds["belay"]), median(seconds["read"]), median(seconds["floor"]), max(peaks))


def report(found: dict[Case, Found]) -> str:
    """A row a case."""
    rows = []
    for case, one in found.items():
        limit = case.limit(one.read, one.floor) if case.limit else None
        figures = [f"{one.belay:.2f}", f"{one.read:.2f}", f"{one.floor:.2f}", f"{one.belay / one.floor:.2f}"]
        held = "" if limit is None else f"{limit:.2f}, {'holds' if one.belay <= limit else 'does not hold'}"
        rows.append([case.name, *figures, f"{one.peak / (1 << 20):.0f}", held])
    text = table(["", "belay, s", "cat, s", "floor, s", "× floor", "peak, MiB", "at most, s"], rows)
    by_name = {case.name: one for case, one in found.items()}
    once, twice = by_name.get("1 output"), by_name.get("twice the checkpoints")
    if once and twice:
        added = (twice.belay - once.belay) / (twice.read - once.read)
        text += f"\n\ntwice the checkpoints add {added:.2f} × the cat of what is added; at most 1.5"
    return text


if __name__ == "__main__":
    main()
