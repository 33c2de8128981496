"""Single bits flipped at random in the files of an output, and what `belay verify` makes of each.

`python -m tests.verification.flips 10000` flips that many, over outputs of every kind, and prints what became of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belay_cli import verify
from belay_cli.errors import BelayError
from tests.verification.outputs import make_outputs


@dataclass(frozen=True)
class Flip:
    """One bit of one file of an output, and what `belay verify` said: empty if it found nothing."""

    file: str
    bit: int
    said: str
    seconds: float

    @property
    def found(self) -> bool:
        """Whether a check failed, or the output was refused; what could not be checked is not found."""
        return self.said.startswith(("failed", "refused"))


def files_in(output: Path) -> list[Path]:
    """Every file of an output, hidden ones too."""
    return [output] if output.is_file() else sorted(path for path in output.rglob("*") if path.is_file())


def verified(output: Path, checkpoints: Path) -> str:
    """The first check that failed or was not made, or why the output was refused; empty if it is as it was written."""
    try:
        found = verify(output, checkpoints=checkpoints, threads=1)
    except BelayError as error:
        return f"refused: {error}" if error.exit_code == 1 else f"exit code {error.exit_code}: {error}"
    except Exception as error:  # which would be "unexpected" to whoever runs it
        return f"crashed: {error!r}"
    wrong = sorted((check for check in found.checks if check.status != "held"), key=lambda check: check.status)
    return f"{wrong[0].status} {wrong[0].name}: {wrong[0].detail}" if wrong else ""


def flips(output: Path, checkpoints: Path, count: int, seed: int) -> Iterator[Flip]:
    """So many random bits of an output, one at a time: of a file at random, as most bytes are in few of them."""
    chance = random.Random(seed)
    files = [path for path in files_in(output) if path.stat().st_size]
    for _ in range(count):
        path = chance.choice(files)
        bit = chance.randrange(8 * path.stat().st_size)
        with flipped(path, bit):
            start = time.perf_counter()
            said = verified(output, checkpoints)
            seconds = time.perf_counter() - start
        yield Flip(os.path.relpath(path, output.parent), bit, said, seconds)


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """One bit of a file the other way round, and back."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


def main() -> int:
    """Print the figures; 1 if a flip was not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    missed: list[Flip] = []
    with tempfile.TemporaryDirectory() as directory:
        outputs = make_outputs(Path(directory))
        for number, (output, checkpoints) in enumerate(outputs):
            if said := verified(output, checkpoints):
                raise SystemExit(f"{output} does not pass as it is: {said}")
            share = asked.count * (number + 1) // len(outputs) - asked.count * number // len(outputs)
            made = list(flips(output, checkpoints, share, asked.seed + number))
            missed += [flip for flip in made if not flip.found]
            slowest = max((flip.seconds for flip in made), default=0.0)
            kinds = Counter(flip.said.partition(":")[0] or "not found" for flip in made)
            print(f"{output.name}: {len(made)} flips in {len(files_in(output))} files, the slowest {slowest:.2f} s")
            print("".join(f"  {count:6}  {kind}\n" for kind, count in kinds.most_common()), end="", flush=True)
    for flip in missed:
        print(f"not found: bit {flip.bit} of {flip.file} {flip.said}")
    print(f"{asked.count - len(missed)} of {asked.count} found")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
