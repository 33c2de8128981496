"""`python -m tests.fuzz [READER…] [--count N] [--seed S]`: mutate, read, and count; `make fuzz` is the long version."""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from belay_cli.errors import BelayError
from tests.crash.table import table
from tests.fuzz.readers import READERS, Reader

SLOWEST = 2.0  # seconds that a reader may take
ROOM = 1 << 30  # bytes of address space beyond what the process has at first


@dataclass
class Figures:
    """What came of the mutations of one reader."""

    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    stricter: int = 0  # we refuse what the other library reads
    laxer: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(reader: Reader, count: int, seed: int) -> Figures:
    """Mutate a reader's file so often, each time from the valid one."""
    valid, chance, found = reader.file.read_bytes(), random.Random(seed), Figures()
    reader.read()  # else nothing would be tried
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            reader.file.parent.mkdir(exist_ok=True)
            reader.file.write_bytes(reader.mutate(chance, valid))
            ours = _once(reader, found, number)
            if reader.other is not None and ours is not None:
                theirs = _reads(reader.other)
                found.stricter += theirs and not ours
                found.laxer += ours and not theirs
    return found


def _once(reader: Reader, found: Figures, number: int) -> bool | None:
    began, ours = time.perf_counter(), None
    try:
        reader.read()
        found.read += 1
        ours = True
    except BelayError as error:
        str(error).encode()
        found.refused += 1
        ours = False
    except (Exception, RecursionError):  # a fault, whatever it is
        found.faults.append(f"mutation {number}: {traceback.format_exc(limit=-4)}")
    took = time.perf_counter() - began
    found.slowest = max(found.slowest, took)
    if took > SLOWEST:
        found.faults.append(f"mutation {number}: took {took:.1f} s")
    return ours


def _reads(other: object) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            other()  # type: ignore[operator]
    except BaseException:  # other libraries raise anything
        return False
    return True


def main() -> int:
    """A table; exit code 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", nargs="*", choices=[[], *READERS])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    rows, faulty = [], 0
    for name in options.reader or READERS:
        with tempfile.TemporaryDirectory(prefix="belay-fuzz-", dir="/dev/shm") as place, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fuzz(READERS[name](Path(place)), options.count, options.seed)
        for fault in found.faults[:5]:
            print(f"{name}: {fault}", file=sys.stderr, flush=True)
        faulty += len(found.faults)
        figures = found.refused, found.read, f"{found.slowest:.2f} s", found.stricter, found.laxer, len(found.faults)
        rows.append((name, options.count, *figures))
        print(rows[-1], file=sys.stderr, flush=True)
    head = ("reader", "mutations", "refused", "read", "slowest", "only we refuse", "only we read", "faults")
    print(table(head, rows))
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
