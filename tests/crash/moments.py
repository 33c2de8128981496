"""Runs of a second or more in processes of their own, met by signals at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.checking import After, Expected, faults_of_a_broken_run, faults_of_the_next_run
from tests.crash.forked import LONGEST, Ran
from tests.crash.looking import tree, views, what_loads
from tests.crash.situations import LARGE, SITUATIONS, Situation, restore

WHERE = ("new directory", "older file", "older directory of as many shards", "older directory with a foreign file")
_PATIENCE = 2.0  # seconds from a signal to the end
_WHILE_IT_WRITES = 0.8  # the share of the moments; the others come before
_SENT = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT+SIGTERM": (signal.SIGINT, signal.SIGTERM),
}
SENT = tuple(_SENT)


@dataclass
class Met:
    """What became of the runs that were met by one signal."""

    sent: str
    runs: int = 0
    finished: int = 0  # before the signal
    too_early: int = 0  # for the program to have heard it
    longest: float = 0.0  # seconds from the signal to the end
    left: Counter[str] = field(default_factory=Counter)  # what loads then
    faults: Counter[str] = field(default_factory=Counter)


class Run:
    """One situation with a large series."""

    def __init__(self, situation: Situation, series: Path, place: Path) -> None:
        self._situation, self._template, self._place = situation, place / "template", place / "place"
        self._arguments = situation.arguments(series, LARGE)
        self._template.mkdir(parents=True)
        situation.prepare(self._template, series, self._average, LARGE)
        restore(self._template, self._place)
        before = tree(self._place)
        self._names = _names(self._place)
        (old,) = views(self._target) or [None]
        began = time.monotonic()
        process = self._start()
        self._wait_for_a_change(process)
        self._until_it_writes = time.monotonic() - began
        ran = self._finish(process)
        self._rest = time.monotonic() - began - self._until_it_writes
        assert ran.code == 0, ran
        (new,) = views(self._target)
        assert new is not None
        foreign = situation.foreign_files()
        self._expected = Expected(before, tree(self._place), old, new, foreign, situation.overwrites)

    @property
    def _target(self) -> Path:
        return self._place / self._situation.stands

    def _average(self, *arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "belay_cli", *map(str, arguments)], check=True, capture_output=True)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "belay_cli", *self._arguments],
            cwd=self._place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _wait_for_a_change(self, process: subprocess.Popen[str]) -> None:
        """Until the run has made something at the target or beside it."""
        while process.poll() is None and self._names == _names(self._place):
            time.sleep(0.001)

    def _finish(self, process: subprocess.Popen[str]) -> Ran:
        out, err = process.communicate(timeout=LONGEST)
        return Ran(process.returncode, out, err)

    def _after(self, ran: Ran) -> After:
        loads = what_loads(self._target, self._expected.old, self._expected.new)
        return After(ran, tree(self._place), loads, reached=ran.code != 0)

    def meet(self, sent: str, chance: random.Random, met: Met) -> None:
        """Send it at a random moment, look, run the same command again, look."""
        restore(self._template, self._place)
        process = self._start()
        if chance.random() < _WHILE_IT_WRITES:
            self._wait_for_a_change(process)
            time.sleep(chance.uniform(0, self._rest))
        else:
            time.sleep(chance.uniform(0, self._until_it_writes))
        finished = process.poll() is not None
        began = time.monotonic()
        for number in chance.sample(_SENT[sent], len(_SENT[sent])):
            process.send_signal(number)
            time.sleep(chance.uniform(0, 0.004) if len(_SENT[sent]) > 1 else 0)
        after = self._after(self._finish(process))
        took = time.monotonic() - began
        met.runs += 1
        met.finished += finished
        met.longest = max(met.longest, took)
        met.left[after.loads] += 1
        kind = "kill-after" if sent == "SIGKILL" else sent
        if self._is_too_early(sent, after):
            met.too_early += 1
            faults = []
        else:
            faults = faults_of_a_broken_run(kind, after, self._expected)
        if took > _PATIENCE:
            faults.append(f"{took:.1f} s from the signal to the end")
        faults += faults_of_the_next_run(after, self._after(self._finish(self._start())), self._expected)
        for fault in faults:
            met.faults[f"{self._situation.name}: {fault}: exit {after.ran.code} {after.ran.err.strip()}"] += 1

    def _is_too_early(self, sent: str, after: After) -> bool:
        """Whether it came while Python was starting or importing the program, which had no words for it yet."""
        killed = after.ran.code in [-number for number in _SENT[sent]] and "belay_cli/cli" not in after.ran.err
        silent = after.ran.code == 130 and not after.ran.err
        return sent != "SIGKILL" and (killed or silent) and after.tree == self._expected.before


def _names(place: Path) -> set[str]:
    return {os.path.join(root, name) for root, folders, files in os.walk(place) for name in (*folders, *files)}


def meet_all(series: Path, place: Path, runs: int, seed: int, where: tuple[str, ...] = WHERE) -> list[Met]:
    """So many runs of each signal, over the situations in turn."""
    chance = random.Random(seed)
    all_met = [Met(sent) for sent in SENT]
    for number, name in enumerate(where):
        bench = Run(SITUATIONS[name], series, place / "run")
        for met in all_met:
            for _ in range(len(range(number, runs, len(where)))):
                bench.meet(met.sent, chance, met)
        shutil.rmtree(place / "run")
    return all_met


def make_series(directory: Path, checkpoints: int = 12, megabytes: int = 40) -> None:
    """A large series whose steps end at 400, in subdirectories as a trainer leaves them."""
    import numpy as np
    from safetensors.numpy import save_file

    chance = np.random.default_rng(0)
    steps = np.linspace(100, 400, checkpoints, dtype=int).tolist()
    for step in steps:
        checkpoint = directory / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        tensors = {f"layer.{i}.weight": chance.random(megabytes << 15, dtype=np.float32) for i in range(8)}
        save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
        (checkpoint / "config.json").write_text(f'{{"architectures": ["Large"], "step": {step}}}')


def make_small_series(directory: Path) -> None:
    """The series of the other tests, made by a process that has torch."""
    program = "import sys; from pathlib import Path; from tests.conftest import make_run; make_run(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, directory], check=True, env=os.environ)
