"""What `make demo` runs: averages of the sample run over half-lives, by EMA and BELAY, compared on held-out images.

    python sample_checkpoints/demo.py [RUN]

RUN, another run of make.py, is evaluated on the same held-out images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate import evaluate, held_out
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from belay_cli import Belay, Ema, Rule, average

HERE = Path(__file__).parent

# Half-lives in percent of the run. BELAY lags twice as far as the EMA of one half-life, and one step, and lag is what
# an average pays for less noise, so beside each EMA stands the BELAY of half the half-life.
SHARES = (2, 5, 10, 20, 40)

WHY_BELAY = """\
Why BELAY? Replayed, at equal mean lag, it does what an EMA does. In training it
is another matter: docs/evidence.md"""


@dataclass(frozen=True)
class Result:
    """An average and how well it does. half_life and mean_lag in steps."""

    half_life: float
    mean_lag: float
    loss: float
    accuracy: float


def main() -> None:
    """Print the last checkpoint, the curve over half-lives, and what to do next."""
    parser = argparse.ArgumentParser(description="Average the sample run and compare on held-out images.")
    parser.add_argument("run", nargs="?", type=Path, default=HERE / "run", metavar="RUN", help="default: the sample")
    run: Path = parser.parse_args().run
    checkpoints = sorted(run.glob("*.safetensors"))  # the names are padded with zeros
    if not checkpoints:
        parser.error(f"{run} holds no checkpoints")

    console = Console(highlight=False, markup=False, soft_wrap=True)
    with console.status("Averaging"):  # on a terminal only
        loss, accuracy = evaluate(checkpoints[-1])
        emas = curve(run, [Ema(half_life=f"{share}%") for share in SHARES])
        belays = curve(run, [Belay(half_life=f"{share / 2}%") for share in SHARES])
    console.print(f"{len(checkpoints)} checkpoints of {relative(run)}, judged on {len(held_out()[1])} held-out images")
    console.print(f"The last checkpoint: loss {loss:.4f}, accuracy {accuracy:.1%}")
    console.print()
    console.print(Padding(table(emas, belays), (0, 0, 0, 2), expand=False), soft_wrap=False)
    console.print("  half-lives in percent of the run and in steps, mean lags in steps", style="dim")
    console.print()
    console.print(WHY_BELAY)
    console.print()
    console.print("Next, what each checkpoint weighs:")
    console.print(f"  {program('belay')} plan {relative(run)} --half-life 10%")


def curve(run: Path, rules: Sequence[Rule]) -> list[Result]:
    """The averages by these rules: all written in one read of the run, then evaluated."""
    with tempfile.TemporaryDirectory(prefix="belay-demo-") as directory:
        outputs = [Path(directory) / f"{number}.safetensors" for number in range(len(rules))]
        reports = average(run, rules=rules, outputs=outputs)
        return [
            Result(float(str(report.rule["half_life"])), report.summary.mean_lag, *evaluate(output))
            for report, output in zip(reports, outputs, strict=True)
        ]


def table(emas: Sequence[Result], belays: Sequence[Result]) -> Table:
    """A row a half-life: the EMA, and the BELAY that lags as far."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("half-life", "EMA: lag", "loss", "accuracy", "  BELAY: lag", "loss", "accuracy"):
        result.add_column(heading, justify="right", no_wrap=True)
    for share, ema, belay in zip(SHARES, emas, belays, strict=True):
        result.add_row(f"{share}% = {ema.half_life:.0f}", *cells(ema), *cells(belay))
    return result


def cells(result: Result) -> list[str]:
    """Mean lag in steps, loss and accuracy, as the table shows them."""
    return [f"{result.mean_lag:.0f}", f"{result.loss:.4f}", f"{result.accuracy:.1%}"]


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
