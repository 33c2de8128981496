"""Which ranges of an output are finished: lines beside it, good for one plan and one state of its inputs.

The first line is what the journal is of. Each of the others is a range on the line of the output's bytes and the CRC-32
of what was written there: `BEGIN END CRC`. It is written after the range itself. Neither is waited for, so after the
machine has gone down some lines may tell of bytes that never reached the disk; that is why they are checked, every one,
before they are believed. Processes that work together have a journal each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from belay_cli.planning import Plan
from belay_cli.record import Record
from belay_cli.storage.files import is_remote

_SCHEMA = 1
_PREFIX = "journal-"
_LINE = re.compile(rb"(\d{1,19}) (\d{1,19}) ([0-9a-f]{8})\n")


class Range(NamedTuple):
    """From one byte of the line up to another, and the CRC-32 of what lies there."""

    begin: int
    end: int
    crc: int


class Journal:
    """The journal of one process. `add` may be called from several threads."""

    def __init__(self, directory: Path, identity: str, number: int, known: Iterable[Range] = ()) -> None:
        """Begin one with the ranges that are known to be good. Raises OSError."""
        self._path = directory / f"{_PREFIX}{number}"
        beginning = b"".join([_first_line(identity), *map(_line, known)])
        part = self._path.with_suffix(".part")
        part.write_bytes(beginning)
        part.replace(self._path)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))

    def add(self, done: Range) -> None:
        """Note that a range has been written. Raises OSError."""
        os.write(self._descriptor, _line(done))  # so short a line is written whole, and not among those of others

    def sync(self) -> None:
        """Wait until the disk has it. Raises OSError."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """End it. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _first_line(identity: str) -> bytes:
    return (json.dumps({"schema": _SCHEMA, "of": identity}) + "\n").encode()


def _line(done: Range) -> bytes:
    return b"%d %d %08x\n" % done


class Found(NamedTuple):
    """What journals in a directory tell: their ranges, unchecked, and whether there are some of another plan."""

    ranges: list[Range]
    of_another: bool


def read_journals(directory: Path, identity: str, end: int) -> Found:
    """What the journals in a directory tell of this plan; ranges reach at most to byte `end`. Raises OSError."""
    ranges: dict[Range, None] = {}
    others = False
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        data = path.read_bytes()
        first, _, rest = data.partition(b"\n")
        if first + b"\n" != _first_line(identity):
            others = True
            continue
        ranges |= dict.fromkeys(found for found in _ranges(rest) if found.begin < found.end <= end)
    return Found(list(ranges), others)


def _ranges(text: bytes) -> Iterator[Range]:
    for line in text.splitlines(keepends=True):
        if found := _LINE.fullmatch(line):
            yield Range(int(found[1]), int(found[2]), int(found[3], 16))


def anything_in_journals(directory: Path) -> bool:
    """Whether any process has noted a range there. Raises OSError."""
    for path in directory.glob(f"{_PREFIX}*"):
        with path.open("rb") as file:
            file.readline()
            if file.read(1):
                return True
    return False


def forget_journals(directory: Path, *, but: int) -> None:
    """Remove the journals in a directory, but for the one of this number. Raises OSError."""
    for path in directory.glob(f"{_PREFIX}*"):
        if path.name != f"{_PREFIX}{but}":
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def identity_of(plan: Plan, record: Record, device: str) -> str:
    """What an output is a function of: its headers but for digests, its files, its inputs, and where it is computed.

    The headers hold the rule, the policies, every tensor's place, and the fingerprints of the checkpoints; these take
    samples of a file, so its size and when it was written to count too.
    """
    digest = hashlib.sha256()
    for shard, head in zip(plan.shards, plan.headers(record), strict=True):
        digest.update(json.dumps([shard.name, shard.nbytes, device.partition(":")[0]]).encode() + head)
    if plan.is_same:  # which has no header
        digest.update(record.document() + repr([(p.action, p.shard, p.offset, p.nbytes) for p in plan.pieces]).encode())
    for file in plan.files_read:
        name = "" if is_remote(file.path) else os.fspath(file.path.absolute())
        digest.update(json.dumps([name, file.size, file.modified]).encode())
    return digest.hexdigest()
