"""Several processes make one output, and one is killed at a random moment: what the others do, and what is left.

`python -m tests.crash.ranks [TIMES]`; `make crash` runs it too.
"""

from __future__ import annotations

import contextlib
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
from tests.output.ranks import free_port

_WORK = 0.5  # seconds that the work takes, about
LIMIT = 15.0  # seconds in which all have to end
_ROOT = Path(__file__).parents[2]


def command(count: int, output: str) -> subprocess.Popen[str]:
    """So many processes that average the series together, as torchrun starts them; or one."""
    line = ["-m", "belay_cli", "average", "series", "-o", output, "-q", "--threads", "1"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(free_port())]
    return subprocess.Popen(
        [sys.executable, *(launcher if count > 1 else []), *line],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rank_of(launcher: int, rank: int) -> int | None:
    """The process of a rank, if it has been started."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
                return int(child)
    return None


def content(directory: Path) -> dict[str, bytes]:
    """Every file, whole."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def once(number: int, longest: float, expected: dict[str, bytes]) -> tuple[str, float, list[str]]:
    """Kill one of some processes at some moment. Returns what happened, how long the others took, what was wrong."""
    chance = random.Random(number)
    count = chance.choice((2, 3, 4))
    victim, moment = chance.randrange(count), chance.uniform(0, longest)
    launcher = command(count, "out")
    if number % 4:  # while it works; else at any moment, which is as a rule while torch is being imported
        while not Path(f".out.belay/journal-{victim}").exists() and launcher.poll() is None:
            time.sleep(0.005)
        moment = chance.uniform(0, _WORK)
    time.sleep(moment)
    while (process := rank_of(launcher.pid, victim)) is None and launcher.poll() is None:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        if process is not None:
            os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    told = launcher.communicate(timeout=120)[1]
    took = time.monotonic() - began
    ours = [line for line in told.splitlines() if line.startswith("belay: ")]
    wrong = [f"took {took:.1f} s"] if took > LIMIT else []
    if Path("out").exists():
        wrong += [] if content(Path("out")) == expected else ["what is in place is not whole"]
        return "it was in place already", took, wrong
    wrong += [] if launcher.returncode else ["exit code 0"]
    met = Path(".out.belay").exists()
    wrong += (
        [] if any(f"rank {victim} " in line for line in ours) or not met else [f"rank {victim} is not named: {ours}"]
    )
    again = command(chance.choice((1, 2, 3)), "out")
    said = again.communicate(timeout=120)[1]
    wrong += [] if not again.returncode else [f"the next run failed: {said}"]
    wrong += [] if Path("out").exists() and content(Path("out")) == expected else ["the next run made something else"]
    wrong += [name for name in os.listdir(".") if name.startswith(".")]
    return ("goes on" if met else "makes it anew: nothing had begun"), took, wrong


def main(times: int) -> int:
    """So many kills; a table of what came of them."""
    scratch = Path(tempfile.mkdtemp(prefix="belay-ranks-"))
    os.chdir(scratch)
    try:
        make_series(Path("series"), checkpoints=24, megabytes=80)
        command(1, "clean").communicate()
        expected = content(Path("clean"))
        began = time.monotonic()
        command(3, "out").communicate()
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
