"""Check the model of a run's time against runs of this machine, or print what it says of larger ones (--table).

Of each case the rates are found by short probes right before a run, which takes as long as it then takes; medians of
rounds. Beside it stands what `belay plan` says, whose probe is shorter and asks no disk how fast it writes. Other
programs spoil a round: of more than are asked for, those count in which they had the least of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median

from measure import describe_machine, machine, run_process, table
from scale_tables import tables

from belay_cli import Ema
from belay_cli.api.average import prepare, run
from belay_cli.api.estimate import estimated, work_of
from belay_cli.api.keywords import plan_options
from belay_cli.engine.probe import probe
from belay_cli.planning import Plan
from belay_cli.planning.estimate import estimate
from belay_cli.show.listener import Nobody

_HERE = Path(__file__).resolve().parent
_MB = 1 << 20
_WRITTEN = 192  # MB, to find what a disk takes
_SAMPLE, _SECONDS = 512 * _MB, 0.5
_QUIET = 0.25  # of a core, taken by others: little enough
_PATIENCE = 5  # seconds to wait for that before a round

SERIES = {
    "24 × 66 MB, bfloat16": ["--checkpoints", "24", "--layers", "0"],
    "8 × 131 MB, float32": ["--checkpoints", "8", "--layers", "0", "--dtype", "float32"],
    "12 × 579 MB, bfloat16": ["--checkpoints", "12"],
    "4 × 1,159 MB, float32": ["--checkpoints", "4", "--dtype", "float32"],
}


@dataclass(frozen=True)
class Case:
    """A run: of which series, into how many outputs, with how many threads, from the page cache or without it."""

    series: str
    outputs: int
    threads: int
    cold: bool = False


@dataclass(frozen=True)
class Found:
    """Seconds: what the model says at the rates of long probes, what `belay plan` says, and what it took."""

    predicted: float
    planned: float
    measured: float
    bottleneck: str
    others: float  # cores that other programs took meanwhile

    @property
    def errors(self) -> tuple[float, float]:
        """Of the two predictions."""
        return self.predicted / self.measured - 1, self.planned / self.measured - 1


CASES = [
    case
    for series in SERIES
    for case in (
        Case(series, 1, 1),
        Case(series, 1, 2),
        Case(series, 4, 2),
        Case(series, 1, 2, cold=True),
    )
]


def main() -> None:
    """Print the tables, or check the cases that are asked for."""
    parser = argparse.ArgumentParser(description="Check the model of a run's time, or print what it says (--table).")
    parser.add_argument("--table", action="store_true", help="the tables of docs/scale.md that are made from the model")
    parser.add_argument("--work", type=Path, help="where series and outputs go, 20 GB; the series stay there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=12, help="to find so many quiet rounds")
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="add every figure to those in it")
    options = parser.parse_args()
    if options.table:
        print("\n\n".join(tables()))
        return
    if options.work is None:
        parser.error("--work says where the series go")
    found = {}
    for case in [case for case in CASES if case.series in options.only]:
        found[case] = check(case, options.work, options.rounds, options.tries)
        print(f"{case}: {found[case]}", file=sys.stderr)
        if options.json:
            save(options.json, case, found[case])
    print(f"{options.rounds} rounds\n{describe_machine()}\n\n{report(found)}")


def check(case: Case, work: Path, rounds: int, tries: int) -> Found:
    """Rounds of probes and a run, in turn, after one that is not counted; medians of the quiet ones."""
    one_round(case, work)
    found: list[Found] = []
    while len(found) < tries and sum(one.others < _QUIET for one in found) < rounds:
        found.append(one_round(case, work))
    found = sorted(found, key=lambda one: one.others)[:rounds]
    longest = [one.bottleneck for one in found]
    return Found(
        median(one.predicted for one in found),
        median(one.planned for one in found),
        median(one.measured for one in found),
        max(longest, key=longest.count),
        median(one.others for one in found),
    )


def one_round(case: Case, work: Path) -> Found:
    """Both predictions, and the run."""
    files, out = series(work, case.series), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    plan = planned_run(case, files[0].parent.parent, out)
    settle(files, cold=case.cold)
    have_memory(out, sum(map(plan.weight_bytes, plan.outputs)))
    wait_for_quiet()
    began, busy = time.perf_counter(), others()
    said = estimated(plan)
    if case.cold:
        settle(files, cold=True)
    rates = probe(plan, _SAMPLE, _SECONDS)
    if rates is None or said is None:
        sys.exit("this machine has no kernel, which an estimate takes")
    write, store = disk(out, case.threads)
    model = estimate(work_of(plan), replace(rates, write=write, store=store))
    if case.cold:
        settle(files, cold=True)
    have_memory(out, sum(map(plan.weight_bytes, plan.outputs)))
    ran = time.perf_counter()
    run(plan, Nobody())
    ended, busy = time.perf_counter(), others() - busy
    shutil.rmtree(out)
    return Found(model.seconds, said.seconds, ended - ran, model.bottleneck, busy / (ended - began))


def wait_for_quiet() -> None:
    """Return when other programs let the processor be, or after a while."""
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        busy = others()
        time.sleep(0.2)
        if others() - busy < 0.2 * _QUIET:
            return


def others() -> float:
    """Seconds of processors that were taken from all programs but this one, since some time."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    ticks = user + nice + system + irq + softirq + steal
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system


def planned_run(case: Case, directory: Path, out: Path) -> Plan:
    """The plan of a case."""
    rules = [Ema(half_life=1 + k / 4) for k in range(case.outputs)]
    outputs = [out / f"{k}.safetensors" for k in range(case.outputs)]
    selection, planned = plan_options({"unit": "checkpoint", "device": "cpu", "threads": case.threads})
    return prepare([directory], rules, outputs, selection, planned, Nobody())


def disk(out: Path, threads: int) -> tuple[float, float]:
    """Rates of writing into the page cache, and from there to the disk while the threads hash, as a run has it."""
    data = b"\x3c" * _MB
    descriptor = os.open(out / "probe", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, _WRITTEN * _MB)
    began = time.perf_counter()
    synced = False

    def write(thread: int) -> None:
        for at in range(thread, _WRITTEN, threads):
            os.pwrite(descriptor, data, at * _MB)

    def digest(thread: int) -> None:
        for _ in range(_WRITTEN // threads):
            if synced:
                return
            sha256(data).digest()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
        written = time.perf_counter()
        hashing = pool.map(digest, range(threads))
        os.fsync(descriptor)
        done = time.perf_counter()
        synced = True
        list(hashing)
    os.close(descriptor)
    (out / "probe").unlink()
    return _WRITTEN * _MB / (written - began), _WRITTEN * _MB / (done - written)


def have_memory(out: Path, nbytes: int) -> None:
    """Write as much as the run will, and remove it.

    A virtual machine gets memory from its host when it first writes there, which takes several times as long, and
    gives it back some seconds after it was freed.
    """
    with (out / "memory").open("wb", buffering=0) as file:
        for _ in range(0, nbytes, 8 * _MB):
            file.write(b"\x3c" * 8 * _MB)
    (out / "memory").unlink()


def settle(files: Sequence[Path], *, cold: bool) -> None:
    """Have the page cache hold all of the files, or nothing."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(8 * _MB):
                    pass


def series(work: Path, name: str) -> list[Path]:
    """The files of a series, made if it is not there."""
    directory = work / name
    if not directory.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        partial = directory.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        made = [sys.executable, str(_HERE / "make_series.py"), str(partial), *SERIES[name]]
        run_process(made, work / "log")
        partial.rename(directory)
    return sorted(directory.glob("*/model.safetensors"))


def report(found: dict[Case, Found]) -> str:
    """A row a case."""
    rows = []
    for case, one in found.items():
        error, plan_error = one.errors
        where = "cold" if case.cold else "warm"
        rows.append(
            [
                *(case.series, where, str(case.outputs), str(case.threads)),
                *(f"{one.measured:.2f}", f"{one.predicted:.2f}", f"{error:+.0%}"),
                *(f"{one.planned:.2f}", f"{plan_error:+.0%}", one.bottleneck, f"{one.others:.2f}"),
            ]
        )
    head = [
        "series",
        "cache",
        "outputs",
        "threads",
        "took, s",
        "model, s",
        "off",
        "plan, s",
        "off",
        "longest part",
        "others",
    ]
    return table(head, rows)


def save(path: Path, case: Case, found: Found) -> None:
    """Add the figures of a case to a file."""
    cases = json.loads(path.read_text())["cases"] if path.exists() else []
    cases.append({**vars(case), **vars(found)})
    path.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
