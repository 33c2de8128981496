"""Processes that torchrun or Slurm started together: who they are, how they meet, and what one hears of the others.

They share a file system and a store of torch.distributed; gloo carries the plan. No weight goes over the network, and
no process waits for another without looking whether it lives: each tells the store every half second that it does, and
those of one machine look at each other's processes.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from belay_cli.errors import LostRank, UsageError
from belay_cli.storage.files import available_cores

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

_BEAT = 0.5  # seconds between two signs of life
_SILENCE = 8.0  # seconds without one, after which a process counts as gone
_GRACE = 3.0  # seconds that a process has to end by itself, once it is known that another is gone
_MEETING = 120.0  # seconds in which all have to come
_POLL = 0.02
_GONE = "is gone"
_TERMINATED = ": terminated"
_SMALL = 64 << 10  # bytes that go through the store
_FIRST_PORT, _PORTS = 20_000, 20_000


@dataclass(frozen=True)
class Launched:
    """What the environment says: which process this is, of how many, here and in all, and where they meet."""

    number: int
    count: int
    local: int
    local_count: int
    address: str
    port: int


def launched(environment: Mapping[str, str]) -> Launched | None:
    """What torchrun (or who sets its variables) or srun says; None for a process by itself. Raises UsageError."""
    try:
        found = _of_torchrun(environment) or _of_slurm(environment)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the variables of a launcher contradict each other: {error}",
            hint="start it with torchrun or srun, or unset RANK and WORLD_SIZE",
        ) from error
    return found if found and found.count > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Launched | None:
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return None
    number, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local = int(environment.get("LOCAL_RANK", number))
    local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    return Launched(number, count, local, local_count, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))


def _of_slurm(environment: Mapping[str, str]) -> Launched | None:
    # In a batch script SLURM_PROCID is there too; the variables of a step are set by srun alone.
    if not {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        return None
    number, count = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", str(count))
    node = int(environment.get("SLURM_NODEID", "0"))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or socket.gethostname()
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = int(environment.get("MASTER_PORT", _FIRST_PORT + (job * 31 + step) % _PORTS))
    address = environment.get("MASTER_ADDR") or first_node(nodes)
    return Launched(number, count, int(environment["SLURM_LOCALID"]), tasks_on(tasks, node), address, port)


def first_node(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: `gpu[07-09,12],login1` begins with gpu07."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    return f"{found[1]}{found[2] or ''}{found[3]}" if found else nodes


def tasks_on(tasks: str, node: int) -> int:
    """How many tasks a node has, by `2(x3),1`: two on each of the first three, one on the next."""
    counts: list[int] = []
    for part in tasks.split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * (int(times.rstrip(")")) if times else 1)
    return counts[node]


def own_threads(here: Launched) -> int:
    """How many threads each process of this machine should have, where nobody says: the cores, shared out."""
    cores = available_cores()
    return max(1, cores // here.local_count) if cores == os.cpu_count() else cores


class Together:
    """One of several processes that run a plan together."""

    def __init__(self, here: Launched) -> None:
        """Wait until all are there. Raises LostRank if they do not come."""
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that a connection broke is said here, in one line
        import torch.distributed as dist

        self.number, self.count, self.local, self._here = here.number, here.count, here.local, here
        self._turn = 0
        self._lost: str | None = None
        self._neighbours: dict[int, int] = {}
        self._neighbours_known = False
        self._over = threading.Event()
        try:
            self._store, self._watched = _store(here), _store(here, joins=True)
            self._introduce()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
            self._neighbours = self._find_neighbours()
            self._neighbours_known = True
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore("gloo", self._store),  # type: ignore[attr-defined]
                rank=self.number,
                world_size=self.count,
                timeout=timedelta(seconds=_MEETING),
            )
        except (RuntimeError, ValueError) as error:
            self.check(look=True)
            raise LostRank(
                f"process {self.number} of {self.count} did not meet the others at {here.address}:{here.port}",
                hint=f"{' '.join(str(error).split())[:160]}",
            ) from error

    @property
    def threads(self) -> int:
        """How many threads it should have, where nobody says."""
        return own_threads(self._here)

    def _introduce(self) -> None:
        self._store.set(f"who/{self.number}", f"{socket.gethostname()} {os.getpid()}")
        self._store.set(f"beat/{self.number}", "0")

    def _name(self, number: int) -> str:
        """A process as people find it."""
        host, _, process = self._watched.get(f"who/{number}").decode().partition(" ")
        return f"rank {number} (process {process} on {host})"

    def _find_neighbours(self) -> dict[int, int]:
        """Rank -> process, of those on this machine, once all have come. Raises LostRank if they do not."""
        self._wait([f"who/{number}" for number in range(self.count)], _MEETING)
        told = [self._store.get(f"who/{number}").decode().rpartition(" ") for number in range(self.count)]
        host = socket.gethostname()
        return {n: int(who) for n, (where, _, who) in enumerate(told) if where == host and n != self.number}

    def from_first(self, value: T | None) -> T:
        """What the first has for all: the plan by gloo, as it may be large; else by the store."""
        key = self._next("from")
        data = _pickled(value) if self.number == 0 else b""
        if self.number == 0:
            self._set(key, str(len(data)) if len(data) > _SMALL else data)
        else:
            self._wait([key])
            data = self._store.get(key)
        if data[:1].isdigit() or len(data) > _SMALL:
            data = self._broadcast(data if self.number == 0 else bytes(int(data)))
        return pickle.loads(data)  # type: ignore[no-any-return]  # noqa: S301 - of a process of the same job

    def _broadcast(self, data: bytes) -> bytes:
        import torch
        import torch.distributed as dist

        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            dist.broadcast(buffer, 0)
        except RuntimeError as error:
            self._gone(error)
        return bytes(buffer.numpy())

    def to_first(self, value: T) -> list[T]:
        """What all have, in order, in the first."""
        key = self._next("to")
        if self.number:
            self._set(f"{key}/{self.number}", _pickled(value))
            return []
        keys = [f"{key}/{number}" for number in range(1, self.count)]
        self._wait(keys)
        return [value, *(pickle.loads(self._store.get(key)) for key in keys)]  # noqa: S301 - of the same job

    def _next(self, what: str) -> str:
        self._turn += 1
        return f"{what}/{self._turn}"

    def _set(self, key: str, value: str | bytes) -> None:
        try:
            self._store.set(key, value)  # type: ignore[arg-type]  # bytes are as good as text
        except RuntimeError as error:
            self._gone(error)

    def _wait(self, keys: list[str], seconds: float = float("inf")) -> None:
        """Until all of these are in the store. Raises ValueError after so many seconds."""
        pause, began = _POLL, time.monotonic()
        while True:
            self.check()
            if time.monotonic() - began > seconds:
                raise ValueError(f"not all came within {seconds:.0f} s")
            try:
                if self._store.check(keys):
                    return
            except RuntimeError as error:
                self._gone(error)
            time.sleep(pause)
            pause = min(0.25, pause * 1.5)

    def check(self, *, look: bool = False) -> None:
        """Raise LostRank if one of the others is gone, or has failed. look: look at those of this machine now."""
        if look and self._lost is None:
            self._look_at_neighbours()
        if self._lost is not None:
            terminated = self._lost.endswith(_TERMINATED)
            raise LostRank(self._lost, "the others have ended; nothing was put in place", terminated=terminated)

    def _gone(self, error: RuntimeError) -> None:
        """The store or gloo has lost its other end: that of the first, if nothing else is known."""
        time.sleep(2 * _BEAT)
        self.check(look=True)
        self._lost = self._lost or f"rank 0 {_GONE}"
        raise LostRank(self._lost) from error

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process ends, and why."""
        self._over.set()
        with contextlib.suppress(RuntimeError):
            self._report(f"{self._name(self.number)}: {str(error) or type(error).__name__.lower()}")
        self.linger()

    def linger(self) -> None:
        """Let the others hear what is known: the first, at which they meet, goes when they have had the time."""
        if self.number == 0:
            time.sleep(2 * _BEAT)

    def _report(self, text: str) -> None:
        # By a connection of its own: on the other one somebody may be waiting for whoever is gone.
        found = self._watched.compare_set("lost", "", text).decode()
        self._lost = self._lost or found or text

    @property
    def speaks(self) -> bool:
        """Whether it is this one that tells a person what happened: the first that lives."""
        lost = self._lost or ""
        return self.number == 0 or (self.number == 1 and lost.startswith("rank 0 ") and _GONE in lost)

    def close(self) -> None:
        """Part from the others; the first, at which they meet, is the last to go."""
        import torch.distributed as dist

        with contextlib.suppress(RuntimeError, LostRank):
            self._store.set(f"bye/{self.number}", "")
            if self.number == 0:
                self._wait([f"bye/{number}" for number in range(self.count)])
        self._over.set()
        self._watcher.join()
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

    def _watch(self) -> None:
        """Give signs of life, and look for those of the others; end the process if it does not end by itself."""
        beats = 0
        heard: dict[int, tuple[bytes, float]] = {}
        followed = list(range(1, self.count)) if self.number == 0 else [0]
        while not self._over.wait(_BEAT) and self._lost is None:
            beats += 1
            try:
                self._watched.set(f"beat/{self.number}", str(beats))
                if self._watched.check(["lost"]):
                    self._lost = self._watched.get("lost").decode()
                    break
                self._listen(followed, heard)
            except RuntimeError:
                if not self._over.is_set():
                    self._look_at_neighbours()
                    self._lost = self._lost or f"rank 0, at which the others meet, {_GONE}"
                break
            self._look_at_neighbours()
        if self._lost is not None and not self._over.wait(_GRACE):
            os.write(2, f"belay: {self._lost}\n".encode() if self.speaks else b"")
            os._exit(1)  # it waits for something that will not come

    def _listen(self, followed: list[int], heard: dict[int, tuple[bytes, float]]) -> None:
        if not self._neighbours_known:  # not all have come
            return
        now = time.monotonic()
        beats = self._watched.multi_get([f"beat/{number}" for number in followed])
        for number, beat in zip(followed, beats, strict=True):
            before, since = heard.get(number, (b"", now))
            if beat != before:
                heard[number] = (beat, now)
            elif now - since > _SILENCE:
                self._report(f"{self._name(number)} {_GONE}: it has not been heard of for {_SILENCE:.0f} s")

    def _look_at_neighbours(self) -> None:
        for number, process in self._neighbours.items():
            if not _lives(process) and not self._has_parted(number):
                host = socket.gethostname()
                text = f"rank {number} (process {process} on {host}) {_GONE}: it was killed, or has crashed"
                with contextlib.suppress(RuntimeError):
                    self._report(text)
                self._lost = self._lost or text
                return

    def _has_parted(self, number: int) -> bool:
        with contextlib.suppress(RuntimeError):
            return bool(self._watched.check([f"bye/{number}"]))
        return self._over.is_set()


def _store(here: Launched, *, joins: bool = False) -> Store:
    """The store at which all meet; that of torchrun's agent, if there is one, else the first has it."""
    import torch.distributed as dist

    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        here.address,
        here.port,
        is_master=here.number == 0 and not of_agent and not joins,
        timeout=timedelta(seconds=_MEETING),
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"belay/{attempt}", store)  # type: ignore[attr-defined]


def _lives(process: int) -> bool:
    """Whether a process of this machine runs, and is not only waiting to be buried."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        pass
    if Path("/proc/self").exists():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


class _Pickler(pickle.Pickler):
    """Which knows read-only dictionaries too."""

    dispatch_table = {**copyreg.dispatch_table, MappingProxyType: lambda one: (_read_only, (dict(one),))}  # noqa: RUF012


def _pickled(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()
