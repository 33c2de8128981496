"""Measure a replay on CUDA against the rate at which pinned memory copies to the GPU, and against the CPU.

Nothing can read a series faster than it gets onto the GPU. In one process, after a replay to warm up: imports and
the initialisation of CUDA are not in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from make_series import checkpoint_bytes, make_series
from measure import ROOT, describe_machine, machine, table

_SHARED_MEMORY = Path("/dev/shm")
_COPY_BYTES = 1 << 30
_COPIES = 11


@dataclass(frozen=True)
class Case:
    """A replay on a device, with so many outputs."""

    device: str
    outputs: int


@dataclass(frozen=True)
class Replay:
    """What one replay took."""

    seconds: float
    bytes_read: int
    bytes_written: int


def main() -> None:
    """Measure if there is a GPU, and say so if there is none."""
    options = parse()
    if not torch.cuda.is_available():
        print("skipped: torch finds no CUDA device")
        return
    sys.path.insert(0, str(ROOT))  # this checkout of belay, whatever else is installed
    rate = pinned_copy_rate()
    with work_directory(options) as work:
        run = work / "run"
        print(f"making {options.checkpoints} checkpoints in {work}", file=sys.stderr)
        make_series(run, checkpoints=options.checkpoints, layers=options.layers)
        cases = [Case(device, count) for device in ("cuda", "cpu") for count in options.outputs]
        found = measure_cases(run, work / "outputs", cases, options.runs)
    print(report(found, rate, options))
    if options.json:
        options.json.write_text(json.dumps(figures(found, rate), indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Measure a replay on CUDA against the pinned copy rate.")
    parser.add_argument("--work", type=Path, help="default: /dev/shm if all fits in there, else a temporary directory")
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return parser.parse_args()


def pinned_copy_rate() -> float:
    """Bytes a second from pinned memory to the GPU: the median of several copies of a large buffer."""
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    rates: list[float] = []
    for _ in range(_COPIES):
        began.record()
        device.copy_(host, non_blocking=True)
        ended.record()
        ended.synchronize()
        rates.append(_COPY_BYTES / (began.elapsed_time(ended) / 1e3))
    return median(rates)


def measure_cases(run: Path, outputs: Path, cases: Sequence[Case], runs: int) -> dict[Case, list[Replay]]:
    """Every case in turn, `runs` times, after one replay of each device to warm up."""
    for device in dict.fromkeys(case.device for case in cases):
        replay(run, outputs, Case(device, 1))
    found: dict[Case, list[Replay]] = {case: [] for case in cases}
    for number in range(runs):
        print(f"round {number + 1} of {runs}", file=sys.stderr)
        for case in cases:
            found[case].append(replay(run, outputs, case))
    return found


def replay(run: Path, outputs: Path, case: Case) -> Replay:
    """One replay, each output an EMA of another half-life; without a sync, which measures the disk."""
    from belay_cli import Ema, average

    outputs.mkdir()
    try:
        reports = average(
            [run],
            rules=[Ema(half_life=1 + k / 4) for k in range(case.outputs)],
            outputs=[outputs / f"{k}.safetensors" for k in range(case.outputs)],
            unit="checkpoint",
            device=case.device,
            sync=False,
            overwrite=True,
        )
    finally:
        shutil.rmtree(outputs)
    written = sum(report.bytes_written for report in reports)
    return Replay(reports[0].seconds or 0.0, reports[0].bytes_read, written)


def report(found: dict[Case, list[Replay]], rate: float, options: argparse.Namespace) -> str:
    """The text to print."""
    size = checkpoint_bytes(options.layers)
    rows = []
    for case, replays in found.items():
        seconds, read = median(replay.seconds for replay in replays), replays[0].bytes_read
        row = [case.device, str(case.outputs), f"{seconds:.2f}", f"{read / seconds / 1e9:.2f}"]
        rows.append([*row, f"{replays[0].bytes_written / seconds / 1e9:.2f}", f"{read / seconds / rate:.2f}"])
    head = ["", "outputs", "wall, s", "GB/s read", "GB/s written", "read ÷ pinned copy"]
    return (
        f"{options.checkpoints} checkpoints of {size / 1e6:.0f} MB, bfloat16, median of {options.runs} replays\n"
        f"{describe_machine()}\n{torch.cuda.get_device_name()}, pinned copy {rate / 1e9:.2f} GB/s\n\n"
        f"{table(head, rows)}"
    )


def figures(found: dict[Case, list[Replay]], rate: float) -> dict[str, object]:
    """What `--json` writes."""
    return {
        "machine": {**machine(), "gpu": torch.cuda.get_device_name()},
        "pinned_copy_bytes_per_second": rate,
        "replays": [{**vars(case), "runs": [vars(replay) for replay in replays]} for case, replays in found.items()],
    }


@contextlib.contextmanager
def work_directory(options: argparse.Namespace) -> Iterator[Path]:
    """A directory of the benchmark's own, removed at the end: in memory if the series and the outputs fit there."""
    needed = 1.1 * checkpoint_bytes(options.layers) * (options.checkpoints + max(options.outputs))
    parent: Path | None = options.work
    if parent is None and _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > needed:
        parent = _SHARED_MEMORY
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="belay-gpu-", dir=parent) as work:
        yield Path(work)


if __name__ == "__main__":
    main()
