"""The library that breaks system calls: built with the machine's compiler, armed by variables or by a call."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KILLS = ("kill-before", "kill-after")
ERRORS = ("ENOSPC", "EIO", "EACCES")
LASTING = ("ENOSPC-on", "EIO-on")  # that call and all after it: a disk that is full, a disk that is gone
TWICE = ("EIO+1", "EIO+2", "EIO+3", "EIO+5")  # one more fails so many calls later, often what was to put things right
DONE = ("EIO-after",)  # the call has done its work and says that it failed: a reply that was lost on a network
SHORT = ("short",)
SIGNALS = ("SIGINT", "SIGTERM", "SIGINT+SIGTERM")
READS = ("read-EIO", "read-short")
FILL = ("fill",)  # the disk has no room from that call on
KINDS = (*KILLS, *ERRORS, *LASTING, *TWICE, *DONE, *SHORT, *SIGNALS, *READS)

COMPILER = shutil.which("cc") or shutil.which("gcc")
WORKS_HERE = sys.platform == "linux" and COMPILER is not None


def build(directory: Path) -> Path:
    """The shared library. Raises CalledProcessError if it does not compile."""
    assert COMPILER is not None
    library = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [COMPILER, "-O1", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class Fault:
    """What happens to which call of a process. `without` are calls that the file system does not have."""

    kind: str
    at: int = 0
    without: str = ""

    def arm(self, under: Path, inputs: Path, log: Path | None = None) -> None:
        """From here on, in this process, which must have been started with the library."""
        encoded = [str(part).encode() if part else None for part in (inputs, self.without, log)]
        ctypes.CDLL(None).crash_arm(str(under).encode(), self.kind.encode(), ctypes.c_long(self.at), *encoded)

    def environment(self, library: Path, under: Path, inputs: Path) -> Mapping[str, str]:
        """For a process that is to be broken from its start."""
        return {
            "LD_PRELOAD": str(library),
            "CRASH_UNDER": str(under),
            "CRASH_INPUTS": str(inputs),
            "CRASH_KIND": self.kind,
            "CRASH_AT": str(self.at),
            "CRASH_WITHOUT": self.without,
        }


@dataclass(frozen=True)
class Call:
    """A system call that was counted."""

    name: str
    number: int  # from 1; negative for reads; 0 if the file system does not have it
    path: str

    @property
    def moves(self) -> bool:
        """Whether it changes which names there are."""
        return any(word in self.name for word in ("link", "rename", "mkdir", "rmdir"))


def calls(log: Path) -> list[Call]:
    """What a run called, in order."""
    found = [line.split(" ", 2) for line in log.read_text().splitlines()]
    return [Call(name, int(number), path) for name, number, path in found]


def may_break(call: Call, kind: str) -> bool:
    """Whether this kind of fault can meet that call."""
    if kind in READS:
        return call.number < 0
    if kind in DONE and not call.moves:
        return False
    return call.number > 0 and (kind not in SHORT or "write" in call.name or call.name == "copy_file_range")
