"""Several processes make one output, and one is killed at a random moment: what the others do, and what is left.

`python -m tests.crash.ranks [TIMES]`; `make crash` runs it too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.moments import make_series
from tests.crash.table import table
from tests.output.ranks import of_torchrun

LIMIT = 15.0  # seconds in which all have to end
_ROOT = Path(__file__).parents[2]


def command(count: int, output: str) -> list[subprocess.Popen[str]]:
    """So many processes that average the series together."""
    line = [sys.executable, "-m", "belay_cli", "average", "series", "-o", output, "-q", "--threads", "1"]
    shared = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return [
        subprocess.Popen(line, env=shared | one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in (of_torchrun(count) if count > 1 else [{}])
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each has said, once all have ended."""
    return [process.communicate(timeout=120)[1] for process in processes]


def content(directory: Path) -> dict[str, bytes]:
    """Every file, whole."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def once(number: int, longest: float, expected: dict[str, bytes]) -> tuple[str, float, list[str]]:
    """Kill one of some processes at some moment. Returns what happened, how long the others took, what was wrong."""
    chance = random.Random(number)
    count = chance.choice((2, 3, 4))
    victim, moment = chance.randrange(count), chance.uniform(0.3, longest)
    processes = command(count, "out")
    time.sleep(moment)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    told = ended(processes)
    took = time.monotonic() - began
    wrong = [f"took {took:.1f} s"] if took > LIMIT else []
    wrong += [err for err in told if "Traceback" in err]
    if Path("out").exists():
        wrong += [] if content(Path("out")) == expected else ["what is in place is not whole"]
        return "it was in place already", took, wrong
    others = [process.returncode for n, process in enumerate(processes) if n != victim]
    wrong += [] if all(others) else [f"exit codes {others}"]
    speaks = told[1 if victim == 0 else 0]
    wrong += [] if f"rank {victim} " in speaks or not speaks_yet(moment) else [f"nobody names rank {victim}: {told}"]
    again = command(chance.choice((1, 2, 3)), "out")
    said = ended(again)
    wrong += [] if not any(process.returncode for process in again) else [f"the next run failed: {said}"]
    wrong += [] if Path("out").exists() and content(Path("out")) == expected else ["the next run made something else"]
    wrong += [name for name in os.listdir(".") if name.startswith(".")]
    return ("gone on with" if "goes on" in "".join(said) else "made anew"), took, wrong


def speaks_yet(moment: float) -> bool:
    """Whether the processes can know of each other by then: before they have met there is nobody to name."""
    return moment > 4.0


def main(times: int) -> int:
    """So many kills; a table of what came of them."""
    scratch = Path(tempfile.mkdtemp(prefix="belay-ranks-"))
    os.chdir(scratch)
    try:
        make_series(Path("series"))
        (alone,) = command(1, "clean")
        ended([alone])
        expected = content(Path("clean"))
        began = time.monotonic()
        ended(command(3, "out"))
        longest = time.monotonic() - began
        shutil.rmtree("out")
        rows: dict[str, list[float]] = {}
        faults = 0
        for number in range(times):
            what, took, wrong = once(number, longest, expected)
            rows.setdefault(what, []).append(took)
            faults += bool(wrong)
            for one in wrong:
                print(f"kill {number}: {one}", flush=True)
            shutil.rmtree("out", ignore_errors=True)
        told = [(what, len(took), f"{max(took):.1f} s") for what, took in rows.items()]
        print(table(("one of 2 to 4 processes killed; the next run", "times", "the others ended in at most"), told))
        print(f"{times} kills, {faults} with faults")
        return int(faults > 0)
    finally:
        os.chdir("/")
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
