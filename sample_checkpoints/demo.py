"""What `make demo` runs: a sweep of the sample run, many averages of it, each judged on held-out images.

    python sample_checkpoints/demo.py [RUN]

RUN, another run of make.py, is evaluated on the same held-out images.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from evaluate import evaluate, held_out, loss_of
from rich.console import Console

from belay_cli import sweep

HERE = Path(__file__).parent

WHY_BELAY = """\
Why BELAY? Replayed, at equal mean lag, it does what an EMA does. In training it
is another matter: docs/evidence.md"""


def main() -> None:
    """Print the last checkpoint, the table and picture of the sweep, and what to do next."""
    parser = argparse.ArgumentParser(description="Average the sample run and compare on held-out images.")
    parser.add_argument("run", nargs="?", type=Path, default=HERE / "run", metavar="RUN", help="default: the sample")
    run: Path = parser.parse_args().run
    checkpoints = sorted(run.glob("*.safetensors"))  # the names are padded with zeros
    if not checkpoints:
        parser.error(f"{run} holds no checkpoints")

    console = Console(highlight=False, markup=False, soft_wrap=True)
    with console.status("Averaging"):  # on a terminal only
        loss, accuracy = evaluate(checkpoints[-1])
        found = sweep(run, evaluate=loss_of, maximize=False, metric="loss", at_once=32)
    console.print(f"{len(checkpoints)} checkpoints of {relative(run)}, judged on {len(held_out()[1])} held-out images")
    console.print(f"The last checkpoint: loss {loss:.4f}, accuracy {accuracy:.1%}")
    console.print()
    console.print(str(found), soft_wrap=False)
    console.print()
    console.print(WHY_BELAY)
    console.print()
    console.print("Next, what each checkpoint weighs, and a sweep by your own evaluation:")
    console.print(f"  {program('belay')} plan {relative(run)} --half-life 10%")
    console.print(f"  {program('belay')} sweep RUN --eval 'python evaluate.py {{model}}'")


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
