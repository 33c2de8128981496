"""All the evidence, or a part of it: `python benchmarks/evidence`, `python benchmarks/evidence --only "noisy SGD"`.

Results are written as JSON into `benchmarks/evidence/results/`, and pictures of them into `docs/evidence/`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"  # one process a core is faster than two threads on such small networks

from evidence import report, training
from evidence.mechanics import mechanics
from evidence.quadratics import quadratics
from evidence.replay import replay
from evidence.results import read, timed, write

_PARTS: dict[str, Callable[[Any], Any]] = {"mechanics": mechanics, "quadratics": quadratics, "replay": replay}


def main() -> None:
    """Compute, write down, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the part whose name contains this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--draw", action="store_true", help="only draw, from the results that are there")
    arguments = parser.parse_args()
    if not arguments.draw:
        run(arguments.only, arguments.jobs)
    report.draw()


def run(only: str, jobs: int) -> None:
    """Run what matches, in processes of one thread each, and put it into the results that are there."""
    begun = time.perf_counter()
    chosen: list[tuple[str, str, Callable[[Any], Any], Any]] = [
        (part, part, work, None) for part, work in _PARTS.items() if only in part
    ]
    chosen += [("training", job.name, training.train, job) for job in training.jobs(only)]
    chosen.sort(key=_longest_first)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = pool.map(timed, [(work, argument) for *_, work, argument in chosen])
        done: dict[str, dict[str, Any]] = {}
        for i, ((part, name, *_), (result, seconds)) in enumerate(zip(chosen, waiting, strict=True), 1):
            found = done.setdefault(part, read(part) if part == "training" else {})
            found.update({name: result} if part == "training" else result)
            print(f"{i:4}/{len(chosen)}  {seconds:5.1f} s  {name}", flush=True)
            if i % 20 == 0 or i == len(chosen):
                for one, results in done.items():
                    write(one, results)
    print(f"{time.perf_counter() - begun:.0f} s with {jobs} processes")


def _longest_first(work: tuple[str, str, Callable[[Any], Any], Any]) -> int:
    """So that no process is left with a long one at the end."""
    return min((i for i, name in enumerate(("bytes", "replay", "conv")) if work[1].startswith(name)), default=3)


if __name__ == "__main__":
    main()
