"""One situation, broken at every call in every way: a process that was started with the library, and forks.

`python -m tests.crash.worker` reads what to do as JSON from stdin and prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.checking import (
    After,
    Expected,
    faults_of_a_broken_run,
    faults_of_the_next_run,
    notes_of_a_broken_run,
)
from tests.crash.forked import LONGEST, Ran, forked, warm_up
from tests.crash.looking import all_weights, tree, views, what_loads
from tests.crash.shim import FILL, KINDS, Call, Fault, calls, may_break
from tests.crash.situations import SITUATIONS, Situation, restore


@dataclass(frozen=True)
class Job:
    """What one worker is asked for."""

    situation: str
    run: str
    place: str
    library: str
    kinds: tuple[str, ...] = KINDS
    without: str = ""
    most: int = 0  # cases; 0 for all
    seed: int = 0
    at: int = 0  # only this call; a read is negative
    real: bool = False  # processes of their own in place of forks


@dataclass(frozen=True)
class Found:
    """A fault, and how to see it again."""

    fault: str
    situation: str
    without: str
    kind: str
    at: int
    call: str
    said: str


@dataclass
class Result:
    """What one worker found."""

    situation: str
    without: str
    real: bool
    calls: int = 0
    reads: int = 0
    seconds: float = 0.0
    cases: Counter[str] = field(default_factory=Counter)  # by kind
    notes: Counter[str] = field(default_factory=Counter)
    faults: list[Found] = field(default_factory=list)
    skipped: str = ""


class Bench:
    """A situation set up, with what is expected of it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.situation: Situation = SITUATIONS[job.situation]
        self._base = Path(job.place)
        self._run = Path(job.run)
        self._template, self._place = self._base / "template", self._base / "disk/place"
        self._arguments = self.situation.arguments(self._run)
        self._template.mkdir()
        self._place.parent.mkdir(exist_ok=True)
        self.situation.prepare(self._template, self._run, self._average)
        self.calls: list[Call] = []
        self._again: dict[int, After] = {}  # by what was there before
        self.expected = self._without_faults()

    @property
    def _target(self) -> Path:
        return self._place / self.situation.stands

    def _average(self, *arguments: object) -> None:
        ran = forked([str(argument) for argument in arguments], self._base, self._base)
        assert ran.code == 0, ran.err

    def _fork(self, fault: Fault | None, log: Path | None = None) -> Ran:
        def before() -> None:
            if fault is not None:
                fault.arm(self._place, self._run, log)

        return forked(self._arguments, self._place / self.situation.cwd, self._base, before)

    def _process(self, fault: Fault) -> Ran:
        arm = fault.environment(Path(self._job.library), self._place, self._run)
        done = subprocess.run(
            [sys.executable, "-m", "belay_cli", *self._arguments],
            cwd=self._place / self.situation.cwd,
            env=os.environ | arm,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def _without_faults(self) -> Expected:
        restore(self._template, self._place)
        before = tree(self._place)
        (old,) = views(self._target) or [None]
        log = self._base / "log"
        ran = self._fork(Fault("count", without=self._job.without), log)
        assert (ran.code, ran.err) == (0, ""), ran
        self.calls = calls(log)
        (new,) = views(self._target)
        assert new is not None
        assert new != old
        return Expected(before, tree(self._place), old, new, self.situation.foreign_files(), self.situation.overwrites)

    def _after(self, ran: Ran) -> After:
        return After(ran, tree(self._place), what_loads(self._target, self.expected.old, self.expected.new))

    def _run_again(self, after: After) -> After:
        """The same command, with nothing broken; not once more where the same files have been left before."""
        key = hash(frozenset(after.tree.items()))
        if key not in self._again:
            self._again[key] = self._after(self._fork(None))
        return self._again[key]

    def case(self, kind: str, call: Call, result: Result) -> None:
        """Break one call, look, run the same command again, look."""
        restore(self._template, self._place)
        fault = Fault(kind, abs(call.number), self._job.without)
        after = self._after(self._process(fault) if self._job.real else self._fork(fault))
        weights = all_weights(self._target) if self._target.is_dir() else None
        Path(f"{self._place}.filler").unlink(missing_ok=True)
        again = self._run_again(after)
        faults = faults_of_a_broken_run(kind, after, self.expected)
        faults += faults_of_the_next_run(after, again, self.expected)
        result.cases[kind] += 1
        result.notes.update(notes_of_a_broken_run(kind, after, self.expected, weights))
        name = f"{call.name} {Path(call.path).relative_to(self._place) if call.number > 0 else Path(call.path).name}"
        said = f"exit {after.ran.code}: {after.ran.err.strip()}"
        for one in faults:
            result.faults.append(Found(one, result.situation, result.without, kind, call.number, name, said))


def chosen(job: Job, made: Sequence[Call]) -> list[tuple[str, Call]]:
    """The cases: every call in every way that can meet it, or so many of them by chance."""
    kinds = (*job.kinds, *(FILL if SITUATIONS[job.situation].small_disk else ()))
    every = [(kind, call) for kind in kinds for call in made if may_break(call, kind)]
    if job.at:
        return [(kind, call) for kind, call in every if call.number == job.at]
    if not job.most or job.most >= len(every):
        return every
    chance = random.Random(f"{job.seed} {job.situation}")
    moves = [case for case in every if case[1].moves]  # few calls, and most of what can go wrong
    some = chance.sample(moves, min(len(moves), job.most // 2))
    others = [case for case in every if case not in some]
    return [*some, *chance.sample(others, job.most - len(some))]


@contextlib.contextmanager
def small_disk(at: Path, wanted: bool) -> Iterator[bool]:
    """A file system of a megabyte, if one is wanted. Yields False where none can be mounted."""
    at.mkdir()
    if not wanted:
        yield True
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "belay", at], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", at], check=True)


def work(job: Job) -> Result:
    """Every case of a job."""
    result = Result(job.situation, job.without, job.real)
    began = time.monotonic()
    place = Path(job.place)
    place.mkdir()
    with small_disk(place / "disk", SITUATIONS[job.situation].small_disk) as there:
        if not there:
            result.skipped = "no file system can be mounted here"
            return result
        warm_up(Path(job.run), place)
        bench = Bench(job)
        if job.without and all(call.number for call in bench.calls):
            result.skipped = f"no use is made of {job.without}"
        result.reads = sum(call.number < 0 for call in bench.calls)
        result.calls = sum(call.number > 0 for call in bench.calls)
        for kind, call in chosen(job, bench.calls) if not result.skipped else []:
            bench.case(kind, call, result)
    shutil.rmtree(place)
    result.seconds = time.monotonic() - began
    return result


_ROOT = Path(__file__).parents[2]  # where the tests are found, whatever the current directory is


def start(job: Job) -> Result:
    """A worker of its own, and what it found."""
    command = [sys.executable, "-m", "tests.crash.worker"]
    if SITUATIONS[job.situation].small_disk and _own_mounts():
        command = ["unshare", "--mount", *command]
    environment = os.environ | {"LD_PRELOAD": job.library, "COLUMNS": "80", "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        command, input=json.dumps(asdict(job)), env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    counters = {name: Counter(found[name]) for name in ("cases", "notes")}
    return Result(**found | counters | {"faults": [Found(**one) for one in found["faults"]]})


def _own_mounts() -> bool:
    """Whether a worker can have mounts that go with it."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def main() -> None:
    """Do what is asked on stdin."""
    asked = json.loads(sys.stdin.read())
    job = Job(**asked | {"kinds": tuple(asked["kinds"])})
    result = work(job)
    print(json.dumps(vars(result) | {"faults": [asdict(fault) for fault in result.faults]}))


if __name__ == "__main__":
    main()
