"""Measure belay against the loop that people write by hand, and against the floor of what a run must cost.

Whole processes run in turn, so that what else the machine does falls on all of them. torch is not imported here:
the peak memory of a child would begin at this process's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import Run, describe_machine, machine, memory_bytes, run_process, table
from peers import (
    BELAY,
    FLOOR,
    FLOOR_OF_TORCH,
    HAND_WRITTEN,
    WITHOUT_DIGESTS,
    Peer,
    belay,
    floor,
    floor_of_torch,
    hand_written,
    mergekit,
    without_digests,
)

_HERE = Path(__file__).resolve().parent
_MIB = 1 << 20
SCRATCH = "scratch"  # in the work directory: logs and outputs

Runs = dict[str, list[Run]]


@dataclass(frozen=True)
class Requirement:
    """A figure and the most that it may be."""

    text: str
    figure: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        figure = f"{self.figure:.0f}" if self.unit == "MiB" else f"{self.figure:.2f}"
        return f"{self.text}: {figure} {self.unit}, {'holds' if self.holds else 'does not hold'}"


def main() -> None:
    """Measure what the options ask for, print it, and leave nothing behind."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that gigabytes are not left in the temporary directory
    with work_directory(options.work, keep=options.keep) as work:
        text, figures = options.measure(options, work)
    print(text)
    if options.outputs_table:
        options.outputs_table.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure belay against a hand-written EMA and the floor of a run.")
    parser.add_argument("--work", type=Path, help="where the series and the outputs go; the series stays there")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory that stands for --work")
    parser.add_argument("--checkpoints", type=_at_least(2), default=12)
    parser.add_argument("--layers", type=_at_least(1), default=20)
    parser.add_argument("--runs", type=_at_least(1), default=5)
    parser.add_argument("--mergekit", type=_executable, metavar="MERGEKIT_YAML", help="its executable: measure it too")
    what = parser.add_mutually_exclusive_group()
    what.set_defaults(measure=measure_peers)
    for option, measurement, text in (
        ("--memory-only", measure_memory, "belay's peak memory, and that of 3 × --checkpoints"),
        ("--digests-only", measure_digests, "what the digests cost: belay with and without them"),
    ):
        what.add_argument(option, dest="measure", action="store_const", const=measurement, help=text)
    parser.add_argument("--outputs-table", type=Path, metavar="FILE", help="write what is printed there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args()


def measure_peers(options: argparse.Namespace, work: Path) -> tuple[str, dict[str, object]]:
    """Every peer in turn, `--runs` times: the text to print, and the figures in it."""
    scratch = work / SCRATCH
    with series(work, options.checkpoints, options.layers) as inputs:
        peers, agreement = prepare(scratch, inputs, options.mergekit)
        runs = rounds(peers, options.runs, scratch)
    found = requirements(runs)
    heading = f"{series_words(inputs)}, one output, {options.runs} rounds\n{describe_machine()}"
    lines = [heading, "", peer_table(runs), "", f"belay and the hand-written loop: {agreement}", *map(str, found)]
    peer_figures = {name: figures(name, runs) for name in runs}
    return "\n".join(lines), {
        "series": series_figures(inputs),
        "agreement": agreement,
        "peers": peer_figures,
        "requirements": [{**vars(requirement), "holds": requirement.holds} for requirement in found],
    }


def prepare(scratch: Path, inputs: Sequence[Path], mergekit_yaml: Path | None) -> tuple[list[Peer], str]:
    """The peers, each run once unmeasured; and whether belay and the hand-written loop agree.

    That round fills the page cache and the bytecode caches, and leaves the output that the floor copies.
    """
    run, output = inputs[0].parent.parent, scratch / "output"
    first = belay(run, scratch / "belay")
    second = hand_written(run, scratch / "hand-written")
    for peer in (first, second):
        say(f"warming up: {peer.name}")
        run_process(peer.command, scratch / "log", peer.env)
    agreement = agree(first, second, scratch)
    remove(second.output)
    peers = [belay(run, output), hand_written(run, output)]
    peers += [make(inputs, first.weights, output) for make in (floor, floor_of_torch)]
    if mergekit_yaml:
        peers.append(mergekit(mergekit_yaml, inputs, scratch / "ema.yaml", output))
    for peer in peers[2:]:
        say(f"warming up: {peer.name}")
        measure(peer, scratch)
    return peers, agreement


def rounds(peers: Sequence[Peer], count: int, scratch: Path) -> Runs:
    """The peers in turn, `count` times."""
    runs: Runs = {peer.name: [] for peer in peers}
    for number in range(count):
        say(f"round {number + 1} of {count}")
        for peer in peers if number % 2 == 0 else reversed(peers):
            runs[peer.name].append(measure(peer, scratch))
    return runs


def measure(peer: Peer, scratch: Path) -> Run:
    """One run, from a disk that has nothing left to write; its output is removed."""
    remove(peer.output)
    os.sync()
    run = run_process(peer.command, scratch / "log", peer.env)
    if not peer.weights.is_file():
        sys.exit(f"{peer.name} left no {peer.weights}")
    remove(peer.output)
    return run


def agree(one: Peer, other: Peer, scratch: Path) -> str:
    """Compare two outputs, in another process since it takes torch. Exits if they differ."""
    log = scratch / "log"
    run_process([sys.executable, str(_HERE / "agree.py"), str(one.weights), str(other.weights)], log)
    return log.read_text().strip()


def measure_memory(options: argparse.Namespace, work: Path) -> tuple[str, dict[str, object]]:
    """belay's peak memory on a series, and on one three times as long. One series at a time: disks are small."""
    peaks: dict[int, float] = {}
    for count in (options.checkpoints, 3 * options.checkpoints):
        with series(work, count, options.layers, keep=False) as inputs:
            peer = belay(inputs[0].parent.parent, work / SCRATCH / "output")
            say(f"{count} checkpoints")
            peaks[count] = median(measure(peer, work / SCRATCH).peak for _ in range(options.runs))
    (few, low), (many, high) = peaks.items()
    change = 100 * (high / low - 1)
    heading = f"belay's peak memory at {options.layers} layers, median of {options.runs} runs\n{describe_machine()}"
    rows = [[str(count), f"{peak / _MIB:.1f}"] for count, peak in peaks.items()]
    text = f"{heading}\n\n{table(['checkpoints', 'peak, MiB'], rows)}\n\nfrom {few} to {many}: {change:+.1f} %"
    return text, {"peak_bytes": peaks, "change_percent": change}


def measure_digests(options: argparse.Namespace, work: Path) -> tuple[str, dict[str, object]]:
    """belay with and without digests in turn, `--runs` times."""
    scratch = work / SCRATCH
    with series(work, options.checkpoints, options.layers) as inputs:
        run = inputs[0].parent.parent
        peers = [belay(run, scratch / "output"), without_digests(run, scratch / "output")]
        for peer in peers:
            say(f"warming up: {peer.name}")
            measure(peer, scratch)
        runs = rounds(peers, options.runs, scratch)
    rows = [[name, f"{median(run.seconds for run in own):.2f}"] for name, own in runs.items()]
    cost = 100 * (ratio(runs, BELAY, WITHOUT_DIGESTS) - 1)
    found = Requirement("digests at most 5 % of a run", cost, 5, "%")
    heading = f"{series_words(inputs)}, one output, {options.runs} rounds\n{describe_machine()}"
    text = f"{heading}\n\n{table(['', 'wall, s'], rows)}\n\n{found}"
    seconds = {name: [run.seconds for run in own] for name, own in runs.items()}
    return text, {"series": series_figures(inputs), "seconds": seconds, "cost_percent": cost}


@contextlib.contextmanager
def series(work: Path, checkpoints: int, layers: int, *, keep: bool = True) -> Iterator[list[Path]]:
    """The weight files of a series in the work directory, in order; made if absent, removed afterwards unless kept."""
    directory = work / f"series-{checkpoints}x{layers}"
    made = not directory.is_dir()
    if made:
        make(work, directory, checkpoints, layers)
    inputs = [directory / f"checkpoint-{100 * (i + 1)}" / "model.safetensors" for i in range(checkpoints)]
    if sum(path.stat().st_size for path in inputs) > 0.7 * memory_bytes():
        say("the series does not fit in the page cache: the figures will be the disk's")
    warm(inputs)
    try:
        yield inputs
    finally:
        if made and not keep:
            remove(directory)


def make(work: Path, directory: Path, checkpoints: int, layers: int) -> None:
    """Make a series; the directory gets its name when it is whole."""
    say(f"making {checkpoints} checkpoints of {layers} layers")
    partial = directory.with_name(directory.name + ".partial")
    remove(partial)
    counts = ["--checkpoints", str(checkpoints), "--layers", str(layers)]
    command = [sys.executable, str(_HERE / "make_series.py"), str(partial), *counts]
    try:
        run_process(command, work / SCRATCH / "log")
        partial.rename(directory)
    finally:
        remove(partial)


def warm(paths: Sequence[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def ratio(runs: Runs, name: str, other: str) -> float:
    """How many times as long as another peer: the median of the rounds, since a round shares the machine's moods."""
    pairs = zip(runs[name], runs[other], strict=True)
    return median(one.seconds / two.seconds for one, two in pairs)


def peak(runs: Sequence[Run]) -> int:
    """The most memory in any run."""
    return max(run.peak for run in runs)


def peer_table(runs: Runs) -> str:
    """A row a peer."""
    head = ["", "wall, s", "× floor", "× hand-written", "peak, MiB"]
    rows = [
        [
            name,
            f"{median(run.seconds for run in own):.2f}",
            f"{ratio(runs, name, FLOOR):.2f}",
            f"{ratio(runs, name, HAND_WRITTEN):.2f}",
            f"{peak(own) / _MIB:.0f}",
        ]
        for name, own in runs.items()
    ]
    return table(head, rows)


def requirements(runs: Runs) -> list[Requirement]:
    """What belay promises. Reported, never an exit code: timings depend on the machine."""
    return [
        Requirement("whole process at most 1.2 × floor", ratio(runs, BELAY, FLOOR), 1.2, "×"),
        Requirement("at most 0.5 × floor with torch", ratio(runs, BELAY, FLOOR_OF_TORCH), 0.5, "×"),
        Requirement("at most 0.25 × hand-written", ratio(runs, BELAY, HAND_WRITTEN), 0.25, "×"),
        Requirement("peak at most 80 MiB", peak(runs[BELAY]) / _MIB, 80, "MiB"),
    ]


def figures(name: str, runs: Runs) -> dict[str, object]:
    """A peer's figures, each run's included."""
    own = runs[name]
    return {
        "seconds": [run.seconds for run in own],
        "peak_bytes": [run.peak for run in own],
        "median_seconds": median(run.seconds for run in own),
        "ratio_to_floor": ratio(runs, name, FLOOR),
        "ratio_to_hand_written": ratio(runs, name, HAND_WRITTEN),
    }


def series_words(inputs: Sequence[Path]) -> str:
    """The series in a few words."""
    return f"{len(inputs)} checkpoints of {inputs[0].stat().st_size / 1e6:.0f} MB, bfloat16, in the page cache"


def series_figures(inputs: Sequence[Path]) -> dict[str, int]:
    """The series in figures."""
    return {"checkpoints": len(inputs), "checkpoint_bytes": inputs[0].stat().st_size}


@contextlib.contextmanager
def work_directory(given: Path | None, *, keep: bool) -> Iterator[Path]:
    """The directory that was given, or a temporary one, which is removed at the end unless it is to be kept.

    What is in its `scratch` is removed in any case.
    """
    work = given.resolve() if given else Path(tempfile.mkdtemp(prefix="belay-bench-"))
    (work / SCRATCH).mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        remove(work / SCRATCH)
        if not given and not keep:
            remove(work)
        elif not given:
            say(f"kept: {work}")


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """What goes on, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def _executable(text: str) -> Path:
    found = shutil.which(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no program")
    return Path(found)


def _at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return count


if __name__ == "__main__":
    main()
