"""How to choose an average: measure it, and write the tables.

    python benchmarks/choosing --seeds 10 --text-seeds 3
    python benchmarks/choosing --tables

The results are `benchmarks/choosing/results.json`, the tables `docs/choosing-tables.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "sample_checkpoints"))
os.environ["OMP_NUM_THREADS"] = "1"  # one process a core is faster than two threads on such small networks

from choosing import results, tables
from choosing.judging import judge
from choosing.settings import SETTINGS, Setting

TABLES = Path(__file__).parents[2] / "docs" / "choosing-tables.md"


def main() -> None:
    """Measure, write down, make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs on the digits in each setting; default 10")
    parser.add_argument("--text-seeds", type=int, default=3, help="runs of the language model in each; default 3")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time; default 2")
    parser.add_argument("--only", default="", metavar="TEXT", help="the settings whose name contains this text")
    parser.add_argument("--tables", action="store_true", help="only the tables, from the results that are there")
    parser.add_argument("--out", type=Path, default=results.PATH, metavar="FILE", help="where the results are")
    options = parser.parse_args()
    if not options.tables:
        measure({"digits": options.seeds, "bytes": options.text_seeds}, options.only, options.jobs, options.out)
    tables.write(options.out, TABLES)


def measure(seeds: dict[str, int], only: str, jobs: int, out: Path) -> None:
    """Run what matches, in processes of one thread each, and put it into the results that are there."""
    began = time.perf_counter()
    shared: dict[Setting, list[Setting]] = {}
    for setting in SETTINGS:
        if only in setting.name:
            shared.setdefault(setting.run, []).append(setting)
    work = [(run, of, seed) for run, of in shared.items() for seed in range(seeds[run.problem])]
    work.sort(key=lambda one: one[0].problem != "bytes")  # the long ones first
    kept = results.read(out)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = [pool.submit(judge, one) for one in work]
        for number, future in enumerate(as_completed(waiting), 1):
            seed, found, seconds = future.result()
            for name, result in found.items():
                results.add(kept, name, seed, result)
            print(f"{number:4}/{len(work)}  {seconds:5.1f} s  seed {seed} of {next(iter(found))}", flush=True)
            results.write(out, kept)
    print(f"{time.perf_counter() - began:.0f} s with {jobs} processes")


if __name__ == "__main__":
    main()
