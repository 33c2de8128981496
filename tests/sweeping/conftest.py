"""A series, and an evaluation of it that takes a twentieth of a second: Python without its libraries."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

STEPS = range(100, 1300, 100)

# The mean of w², which noise makes larger, so that averages do better; every start is a line in the file `log`.
EVALUATE = """
import json, os, struct, sys
model = sys.argv[1]
path = model if model.endswith(".safetensors") else os.path.join(model, "model.safetensors")
with open("log", "a") as log:
    log.write(os.path.basename(model) + "\\n")
data = open(path, "rb").read()
length = int.from_bytes(data[:8], "little")
begin, end = json.loads(data[8 : 8 + length])["w"]["data_offsets"]
w = struct.unpack(f"<{(end - begin) // 4}f", data[8 + length + begin : 8 + length + end])
print(json.dumps({"loss": sum(x * x for x in w) / len(w), "loss_stderr": 0.001, "count": len(w)}))
"""


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory `run` with twelve files: a weight that shrinks, and noise on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for number, step in enumerate(STEPS):
        noise = np.random.default_rng(number).normal(size=400)
        weights = (8 * 0.4**number + 0.5 * noise).astype(np.float32)
        save_file({"w": weights, "n": np.array([step])}, tmp_path / f"run/step-{step}.safetensors", {"format": "pt"})
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    return tmp_path


def command(script: str = "evaluate.py") -> str:
    """The evaluation as it is typed."""
    return f"{shlex.quote(sys.executable)} -S -E {script} {{model}}"


def log() -> list[str]:
    """What was evaluated, a line a start."""
    path = Path("log")
    return path.read_text().split("\n")[:-1] if path.exists() else []
