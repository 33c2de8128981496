"""Measure a sweep against what it cannot do without: writing each candidate, and one read with its average.

    python benchmarks/sweep.py RUN --work DIR [--candidates 32] [--rounds 3]

RUN is a series of `make_series.py`. Whole processes run in turn: `belay average`; `cp` of as many files as there are
candidates, and `sync`; and `belay sweep` with an evaluation that does nothing.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path
from statistics import median

from measure import describe_machine, run_process, table
from peers import environment


def main() -> None:
    """Print the medians, and the sweep over the sum of its parts."""
    parser = argparse.ArgumentParser(description="Measure a sweep against writing its candidates.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="on the disk that is written to")
    parser.add_argument(
        "--candidates", type=int, default=32, metavar="N", help="the last and the uniform one among them"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    count, out = options.candidates, options.work / "out"
    (weights,) = sorted(options.run.iterdir())[0].glob("*.safetensors")
    half_lives = ",".join(f"{2 + k / 4:g}%" for k in range(count - 2))
    sweep = ["belay", "sweep", str(options.run), "-o", str(out / "sweep"), "-m", "ema", "--half-life", half_lives]
    sweep += ["--eval", "echo 1 # {model}", "--maximize", "-q"]
    copies = f"for k in $(seq {count}); do cp {shlex.quote(str(weights))} {shlex.quote(str(out))}/$k; done; sync"
    commands = {
        "one average": ["belay", "average", str(options.run), "-o", str(out / "average"), "-q"],
        f"cp of {count} outputs, sync": ["sh", "-c", copies],
        f"sweep of {count} candidates": sweep,
    }
    seen: dict[str, list[float]] = {name: [] for name in commands}
    peak = 0
    for _ in range(options.rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            run_process(["sync"], options.work / "log")
            ran = run_process(command, options.work / "log", environment())
            seen[name].append(ran.seconds)
            peak = max(peak, ran.peak)
    shutil.rmtree(out, ignore_errors=True)
    average, written, swept = (median(times) for times in seen.values())
    rows = [[name, " ".join(f"{one:.1f}" for one in times), f"{median(times):.2f}"] for name, times in seen.items()]
    print(describe_machine())
    print(table(["", "seconds", "median"], rows))
    share = swept / (written + 3 * average)
    print(f"the sweep takes {share:.2f} × the writing and three averages; peak {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
