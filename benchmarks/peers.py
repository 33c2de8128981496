"""What is measured side by side: belay, the loop that people write by hand, the floor, and mergekit if there is one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import ROOT

DECAY = 0.9
BELAY, HAND_WRITTEN, FLOOR, MERGEKIT = "belay", "hand-written", "floor", "mergekit"
FLOOR_OF_TORCH = "floor with torch"
WITHOUT_DIGESTS = "without digests"

_HERE = Path(__file__).resolve().parent

# What no tool can do without: read the inputs, and write the output to the disk. Most import torch too.
_FLOOR = """
average=$1 copy=$2; shift 2
cat "$@" >/dev/null && cp "$average" "$copy" && sync "$copy"
"""
_FLOOR_OF_TORCH = """
python=$1; shift
"$python" -c 'import torch' && """


@dataclass(frozen=True)
class Peer:
    """A whole process: its command, where it puts its output, and the weights in there."""

    name: str
    command: Sequence[str]
    output: Path
    weights: Path
    env: Mapping[str, str] | None = None


def belay(series: Path, output: Path) -> Peer:
    """This checkout of belay, whatever else is installed."""
    return _belay(BELAY, ["-m", "belay_cli"], series, output)


def without_digests(series: Path, output: Path) -> Peer:
    """The same, but it writes zeros in place of the digests."""
    return _belay(WITHOUT_DIGESTS, [str(_HERE / "without_digests.py")], series, output)


def _belay(name: str, program: Sequence[str], series: Path, output: Path) -> Peer:
    options = ["--decay", str(DECAY), "--unit", "checkpoint", "--overwrite", "-q", "--device", "cpu"]
    command = [sys.executable, *program, "average", str(series), "-o", str(output), *options]
    return Peer(name, command, output, output / "model.safetensors", environment())


def environment() -> dict[str, str]:
    """In which this checkout is imported, from bytecode like any that was installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": path}


def hand_written(series: Path, output: Path) -> Peer:
    """The loop over load_file."""
    command = [sys.executable, str(_HERE / "hand_written_ema.py"), str(series), str(output), str(DECAY)]
    return Peer(HAND_WRITTEN, command, output, output)


def floor(inputs: Sequence[Path], average: Path, output: Path) -> Peer:
    """The least that a run can cost; `average` is what it copies in place of an output."""
    words = [str(average), str(output), *map(str, inputs)]
    return Peer(FLOOR, ["sh", "-c", _FLOOR, "floor", *words], output, output)


def floor_of_torch(inputs: Sequence[Path], average: Path, output: Path) -> Peer:
    """The least that a run can cost which imports torch."""
    script = _FLOOR_OF_TORCH + "{" + _FLOOR + "}"
    words = [sys.executable, str(average), str(output), *map(str, inputs)]
    return Peer(FLOOR_OF_TORCH, ["sh", "-c", script, "floor", *words], output, output, environment())


def mergekit(executable: Path, inputs: Sequence[Path], config: Path, output: Path) -> Peer:
    """The same EMA as a linear merge; writes its configuration."""
    config.write_text(_mergekit_config([path.parent for path in inputs]))
    options = ["--no-copy-tokenizer", "--quiet", "-j", "2"]
    return Peer(MERGEKIT, [str(executable), str(config), str(output), *options], output, output / "model.safetensors")


def _mergekit_config(checkpoints: Sequence[Path]) -> str:
    """Each checkpoint with its coefficient in the EMA. Not with exponents: YAML takes `1e-05` for text."""
    last = len(checkpoints) - 1
    weights = [DECAY ** (last - i) * (1 - DECAY if i else 1) for i in range(len(checkpoints))]
    lines = ["merge_method: linear", "dtype: bfloat16", "parameters: {normalize: false}", "models:"]
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        lines += [f"  - model: {json.dumps(str(checkpoint))}", f"    parameters: {{weight: {weight:.17f}}}"]
    return "\n".join(lines) + "\n"
