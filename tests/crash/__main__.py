"""The long version: `make crash`, or `python -m tests.crash --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash import table
from tests.crash.moments import make_series, make_small_series, meet_all
from tests.crash.shim import FILL, KINDS, WORKS_HERE, build
from tests.crash.situations import SITUATIONS
from tests.crash.worker import Job, Result, start

# File systems that lack a call: exFAT has no links, NFS none of the flags of renameat2.
LACKING = ("", "renameat2", "renameat2,link,linkat")
_MEMORY = Path("/dev/shm")


def jobs(options: argparse.Namespace, library: Path, run: Path, scratch: Path) -> Iterator[Job]:
    """Every situation, on every file system, in forks; and a sample of each in processes of their own."""
    kinds = tuple(options.kind or KINDS)
    for number, name in enumerate(options.situation or SITUATIONS):
        for other, without in enumerate(LACKING if options.without is None else [options.without]):
            place = str(scratch / f"{number}-{other}")
            yield Job(
                name,
                str(run),
                place,
                str(library),
                kinds,
                without,
                options.most,
                options.seed,
                options.at,
                options.real,
            )
        if options.processes and not options.real:
            place = str(scratch / f"{number}-real")
            yield Job(name, str(run), place, str(library), kinds, most=options.processes, seed=options.seed, real=True)


def main() -> int:
    """The tables on stdout; exit code 1 if there was a fault."""
    options = parsed(sys.argv[1:])
    if not WORKS_HERE:
        sys.exit("this takes Linux and a C compiler")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would runs
    with tempfile.TemporaryDirectory(prefix="belay-crash-", dir=options.scratch) as made:
        scratch = Path(made)
        make_small_series(scratch / "run")
        library = build(scratch)
        with ThreadPoolExecutor(options.jobs) as workers:
            asked = list(jobs(options, library, scratch / "run", scratch))
            results = list(workers.map(_started, asked))
        print_results(results)
        broken = any(result.faults for result in results)
        if options.moments:
            make_series(scratch / "series")
            met = meet_all(scratch / "series", scratch / "moments", options.moments, options.seed)
            print(f"\n{table.moments(met)}\n")
            for fault, number in sum((one.faults for one in met), start=type(met[0].faults)()).most_common():
                print(f"{number} x {fault}\n")
            broken |= any(one.faults for one in met)
    return int(broken)


def _started(job: Job) -> Result:
    result = start(job)
    where = f"{job.situation}{' without ' + job.without if job.without else ''}{' in processes' if job.real else ''}"
    found = result.skipped or f"{result.cases.total()} cases in {result.seconds:.0f} s"
    print(f"{where}: {found}, {len(table.broken_cases(result.faults))} with faults", file=sys.stderr, flush=True)
    return result


def print_results(results: Sequence[Result]) -> None:
    """Tables, then faults."""
    for part in (table.by_situation(results), table.by_kind(results), table.notes(results), table.faults(results)):
        print(f"{part}\n", flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--situation", action="append", choices=[*SITUATIONS], help="repeatable; default: all")
    parser.add_argument("--kind", action="append", choices=[*KINDS, *FILL], help="repeatable; default: all")
    parser.add_argument("--without", help="calls that the file system does not have; default: several lists")
    parser.add_argument("--at", type=int, default=0, help="only this call; a read is negative")
    parser.add_argument("--most", type=int, default=0, help="cases of each situation, by chance; default: all")
    parser.add_argument("--real", action="store_true", help="processes of their own in place of forks")
    parser.add_argument("--processes", type=int, default=0, help="besides, so many cases in processes of their own")
    parser.add_argument("--moments", type=int, default=0, help="runs of each signal at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    parser.add_argument("--scratch", type=Path, default=memory, help=f"default: {memory or 'the usual place'}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
