"""What `make demo` runs: average the sample run with EMA and BELAY, and compare on held-out images.

    python sample_checkpoints/demo.py [RUN]

RUN, another run of make.py, is evaluated on the same held-out images.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from evaluate import evaluate, held_out
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

HERE = Path(__file__).resolve().parent

# BELAY lags twice as far as the EMA of the same half-life, and lag is what an average pays for less noise. So each
# rule at its default, 100 steps on this run, stands beside the other rule at the same lag.
RULES = (
    ("EMA, default half-life", ()),
    ("BELAY, half as long", ("-m", "belay", "--half-life", "50")),
    ("BELAY, default half-life", ("-m", "belay")),
    ("EMA, twice as long", ("--half-life", "200")),
)
PAIR = 2  # rules of equal lag


@dataclass(frozen=True)
class Row:
    """Weights and how well they do. half_life and mean_lag in steps; half_life None if they are no average."""

    title: str
    half_life: float | None
    mean_lag: float
    loss: float
    accuracy: float


def main() -> None:
    """Print the commands, the table and what to try next."""
    parser = argparse.ArgumentParser(description="Average the sample run and compare on held-out images.")
    parser.add_argument("run", nargs="?", type=Path, default=HERE / "run", metavar="RUN", help="default: the sample")
    run: Path = parser.parse_args().run
    last = max(run.glob("*.safetensors"), default=None)  # the names are padded with zeros
    if last is None:
        parser.error(f"{run} holds no checkpoints")

    console = Console(highlight=False, markup=False, soft_wrap=True)
    commands = [["average", relative(run), *options] for _, options in RULES]
    console.print("Runs, each with --quiet --json and an --output in a temporary directory:", style="dim")
    for command in commands:
        console.print(f"  {program('belay')} {shlex.join(command)}")
    with console.status("Averaging"):  # on a terminal only
        rows = [Row("last checkpoint", None, 0.0, *evaluate(last)), *averages(commands)]
    console.print()
    console.print(Padding(table(rows), (0, 0, 0, 2), expand=False), soft_wrap=False)
    console.print()
    console.print(
        f"Loss and accuracy on {len(held_out()[1])} held-out images. Compare within a pair, at equal mean\n"
        f"lag; over ten runs the two rules are alike there: {relative(HERE / 'README.md')}",
        style="dim",
    )
    console.print("Next, what each checkpoint weighs:")
    console.print(f"  {program('belay')} {shlex.join(['plan', relative(run), '-m', 'belay'])}")


def averages(commands: Sequence[Sequence[str]]) -> list[Row]:
    """A row a command, in order. They run side by side: each spends its time on starting."""
    with tempfile.TemporaryDirectory(prefix="belay-demo-") as directory, ThreadPoolExecutor() as pool:
        outputs = [Path(directory) / f"{number}.safetensors" for number in range(len(commands))]
        return list(pool.map(average, [title for title, _ in RULES], commands, outputs))


def average(title: str, command: Sequence[str], output: Path) -> Row:
    """Run `belay` as a person would, and evaluate what it wrote."""
    started = [sys.executable, "-m", "belay_cli", *command, "--quiet", "--json", "--output", str(output)]
    done = subprocess.run(started, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        # belay's error is in its JSON; anything else that ends Python is on stderr already.
        raise SystemExit(json.loads(done.stdout)["error"]["message"] if done.stdout else done.returncode)
    report = json.loads(done.stdout)
    return Row(title, report["rule"]["half_life"], report["summary"]["mean_lag"], *evaluate(output))


def table(rows: Sequence[Row]) -> Table:
    """The rows, the last checkpoint first, with a gap before each pair."""
    result = Table(box=None, padding=(0, 4, 0, 0), pad_edge=False, header_style="dim")
    result.add_column("weights", no_wrap=True)
    for heading in ("half-life", "mean lag", "loss", "accuracy"):
        result.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        if number % PAIR == 1:
            result.add_row()
        half_life = "-" if row.half_life is None else f"{row.half_life:.0f} steps"
        result.add_row(row.title, half_life, f"{row.mean_lag:.0f} steps", f"{row.loss:.4f}", f"{row.accuracy:.1%}")
    return result


def relative(path: Path) -> str:
    """As a person here would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def program(name: str) -> str:
    """How to start a program of this environment: by name, or by path where the environment is not active."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    active = found is not None and Path(found).parent == beside.parent
    return name if active or not beside.exists() else relative(beside)


if __name__ == "__main__":
    main()
