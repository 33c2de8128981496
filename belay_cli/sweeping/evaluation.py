"""The user's command, run for one candidate in a directory of its own: never twice, whatever ends the sweep.

    asked.json   what is evaluated, and by which command: written before it starts
    lock         held by the command and whatever it starts, for as long as one of them lives
    group        the number of its group of processes
    out/         what stands for {out} in the command
    stdout, stderr
    ended        exit code, put there at once when the command has ended

A sweep that is killed leaves its commands running. The next one finds `ended`, and takes what is there; or the lock
held, and waits; or neither, and only then runs the command anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from belay_cli import words
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.storage.json_file import read_json
from belay_cli.sweeping.measures import Measures, NoResult, read_measures

try:
    import fcntl
except ImportError:  # Windows, where a command that outlives its sweep is run again
    fcntl = None  # type: ignore[assignment]

MODEL, OUT = "{model}", "{out}"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_POLL = 0.02  # seconds between two looks, at first
_LONGEST_POLL = 0.5
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|sec|m|min|h|d|)", re.ASCII | re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

# The exit code appears at once, after the command, whoever still lives to see it.
_WRAPPER = 'sh -c "$1" </dev/null; echo $? > "$2/ended.part"; mv "$2/ended.part" "$2/ended"'


class Stopped(Exception):  # noqa: N818 - it reads as what it is
    """The sweep ends, and its evaluations with it: nothing is recorded of them."""


class Ended(NamedTuple):
    """How a command ended: its exit code, None if it took too long; and the seconds it took, None if not known."""

    code: int | None
    seconds: float | None = None


def check_command(command: str, name: str) -> None:
    """Raise UsageError if the command of this option never names the candidate."""
    if MODEL not in command:
        raise UsageError(
            f"{name} never says {MODEL}, which stands for a candidate",
            hint=f"{name} 'python evaluate.py {MODEL}', and {OUT} for a directory that it may write to",
        )


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `2h` in seconds. Raises UsageError."""
    found = _TIME.fullmatch(text.strip())
    if not found or not 0 < float(found[1]) < 1e9:
        raise UsageError(f"--time-limit {text} is no time", hint="write 90s, 30m or 2h")
    return float(found[1]) * _SECONDS[found[2].lower()]


@dataclass(frozen=True)
class Evaluation:
    """One run of the command for one candidate. `identity`: what it is of, JSON values, which must be the same again.

    limit: seconds, None for no limit; environment: variables beside those of this process.
    """

    directory: Path
    command: str
    model: Path
    identity: Mapping[str, Any]
    limit: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where the command may write."""
        return self.directory / "out"

    @property
    def _asked(self) -> dict[str, Any]:
        # The text is for people, without a token that somebody typed into it; the digest says whether it is the same.
        known = hashlib.sha256(self.command.encode()).hexdigest()
        return {"command": _TOKEN.sub("hf_…", self.command), "command_sha256": known, **self.identity}

    def ended(self) -> Ended | None:
        """How it ended, if it did, and was asked for as it is now."""
        path = self.directory / "ended"
        if not path.is_file() or not self._is_same():
            return None
        text = path.read_text(encoding="utf-8").strip()
        if text == "time":
            return Ended(None)
        return Ended(int(text)) if text.isdigit() else None

    def _is_same(self) -> bool:
        try:
            return bool(read_json(self.directory / "asked.json") == self._asked)
        except CheckpointError:
            return False

    def measures(self, ended: Ended) -> Measures:
        """What it measured. Raises NoResult if it failed, with the reason."""
        if ended.code is None:
            raise NoResult("took longer than its --time-limit")
        if ended.code:
            raise NoResult(f"exit code {ended.code}{_last_words(self.directory / 'stderr')}")
        own = {str(self.model), str(self.model.absolute()), self.model.name}
        measures = read_measures(self.out, self.directory / "stdout")
        # A program that prints its results by model has no task to name.
        return {key._replace(task="") if key.task in own else key: one for key, one in measures.items()}

    def run(self, groups: Groups) -> Ended:
        """Run it, unless it has been run, or still runs: then wait. Raises OSError if it cannot be started."""
        if (known := self.ended()) is not None:
            return known
        if self._is_same() and (waited := self._wait_for_orphan()) is not None:
            return waited
        shutil.rmtree(self.directory, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.directory / "asked.json").write_text(
            json.dumps(self._asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return self._start(groups)

    def _typed(self) -> str:
        typed = self.command.replace(MODEL, shlex.quote(str(self.model.absolute())))
        return typed.replace(OUT, shlex.quote(str(self.out.absolute())))

    def _start(self, groups: Groups) -> Ended:
        here = str(self.directory.absolute())
        began = time.monotonic()
        with (
            (self.directory / "stdout").open("wb") as stdout,
            (self.directory / "stderr").open("wb") as stderr,
            (self.directory / "lock").open("wb") as lock,
        ):
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            process = groups.start(
                ["sh", "-c", _WRAPPER, "belay-evaluation", self._typed(), here],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(lock.fileno(),) if fcntl is not None else (),
                env={**os.environ, **self.environment},
            )
        (self.directory / "group").write_text(str(process.pid), encoding="utf-8")
        try:
            process.wait(self.limit)
        except subprocess.TimeoutExpired:
            groups.kill(process)
            self._end("time")
            return Ended(None, time.monotonic() - began)
        if groups.closed:
            raise Stopped  # and it has not ended by itself
        groups.kill(process)  # what it left behind: nobody waits for that
        return Ended(self._code(process.returncode), time.monotonic() - began)

    def _code(self, of_wrapper: int) -> int:
        """The command's exit code; that of the shell around it, if somebody killed that."""
        found = self.ended()
        if found is not None and found.code is not None:
            return found.code
        self._end(str(abs(of_wrapper) or 1))
        return abs(of_wrapper) or 1

    def _end(self, text: str) -> None:
        part = self.directory / "ended.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.directory / "ended")

    def _wait_for_orphan(self) -> Ended | None:
        """How a command ended that outlived its sweep, if it lives; None if it does not."""
        pause, began = _POLL, time.monotonic()
        while self._lives():
            if (found := self.ended()) is not None:
                return found
            if self.limit is not None and time.monotonic() - began > self.limit:
                self._kill_orphan()
                self._end("time")
                return Ended(None)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL)
        return self.ended()

    def _lives(self) -> bool:
        """Whether anything holds the lock."""
        if fcntl is None:
            return False
        try:
            with (self.directory / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _kill_orphan(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((self.directory / "group").read_text(encoding="utf-8")), signal.SIGKILL)


class Groups:
    """The groups of processes that run for a sweep, so that all of them end with it."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()  # so that none starts unseen while the others are ended
        self.closed = False

    def start(self, arguments: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """Start a process at the head of a group of its own."""
        with self._lock:
            if self.closed:
                raise Stopped
            process = subprocess.Popen(arguments, start_new_session=True, **more)  # noqa: S603 - what the user asked for
            self._running.add(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and all in its group."""
        with contextlib.suppress(OSError):  # the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._running.discard(process)

    def close(self) -> None:
        """End them all; none starts any more."""
        with self._lock:
            self.closed = True
            running = list(self._running)
        for process in running:
            self.kill(process)


@contextlib.contextmanager
def running_groups() -> Iterator[Groups]:
    """Groups that end when this is left."""
    groups = Groups()
    try:
        yield groups
    finally:
        groups.close()


def shares_of_gpus(jobs: int, gpus: int, visible: str | None) -> list[dict[str, str]]:
    """The variable CUDA_VISIBLE_DEVICES for each of so many jobs at once; no variable where there is no GPU.

    gpus: how many there are; visible: what the variable says already.
    """
    if visible is not None:
        devices = [device.strip() for device in visible.split(",") if device.strip()]
    else:
        devices = [str(number) for number in range(gpus)]
    if not devices or (jobs == 1 and visible is None):
        return [{} for _ in range(jobs)]
    if jobs >= len(devices):
        return [{"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]} for job in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[job::jobs])} for job in range(jobs)]


def _last_words(stderr: Path) -> str:
    """The last line of stderr, which says most of what went wrong."""
    with contextlib.suppress(OSError), stderr.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        return f": {words.printable(last[:160])}" if last else ""
    return ""
