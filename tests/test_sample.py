"""The sample run is what its README says, its averages do what the table says, and its maker still makes it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from belay_cli import average
from belay_cli.rules import METHODS
from belay_cli.show.report import TensorCounts
from docs import transcripts

SAMPLE = Path(__file__).parent.parent / "sample_checkpoints"
RUN = SAMPLE / "run"
CHECKPOINTS = sorted(RUN.iterdir())
LAST = RUN / "step-2000.safetensors"

# Percent of the run; for its EMA, and for the BELAY of half of it: mean lag, held-out loss, accuracy.
# The sample's README and the demo show the losses.
CURVE = [
    (2, (54, 0.1507, 0.959), (55, 0.1493, 0.956)),
    (5, (137, 0.1336, 0.959), (137, 0.1338, 0.957)),
    (10, (273, 0.1253, 0.960), (273, 0.1284, 0.960)),
    (20, (531, 0.1307, 0.961), (511, 0.1346, 0.957)),
    (40, (902, 0.1675, 0.952), (820, 0.1658, 0.949)),
]
ROWS = [
    (method, share / divided, *expected)
    for share, ema, belay in CURVE
    for method, divided, expected in (("ema", 1, ema), ("belay", 2, belay))
]
LAST_ROW = (0.1879, 0.941)

Evaluate = Callable[[Path], tuple[float, float]]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """As a program, evaluate.py finds model.py beside itself; so it does here."""
    monkeypatch.syspath_prepend(SAMPLE)
    for name in ("evaluate", "model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found: Evaluate = importlib.import_module("evaluate").evaluate
    return found


def cells(lines: Sequence[str], title: str) -> list[str]:
    """What follows the title in the one line that begins with it."""
    (row,) = [line.strip() for line in lines if line.strip().startswith(title)]
    return row[len(title) :].replace("accuracy", " ").replace(",", " ").split()


def numbers(loss: float, accuracy: float) -> list[Any]:
    """As a table shows them, the last digit left open: processors round differently."""
    return [Near(loss, 2e-4), Near(accuracy, 2e-3)]


class Near:
    """Equal to a text that shows nearly this number."""

    def __init__(self, number: float, tolerance: float) -> None:
        self.number, self.tolerance = number, tolerance

    def __eq__(self, shown: object) -> bool:
        text = str(shown)
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        return abs(value - self.number) <= self.tolerance

    def __repr__(self) -> str:
        return f"{self.number} ± {self.tolerance}"


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SAMPLE / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_size_and_steps() -> None:
    files = [path for path in SAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert [path.name for path in CHECKPOINTS] == [f"step-{step:04d}.safetensors" for step in range(100, 2001, 100)]
    for path, step in zip(CHECKPOINTS, range(100, 2001, 100), strict=True):
        with safe_open(path, "pt") as checkpoint:
            assert checkpoint.metadata() == {"format": "pt", "step": str(step)}


def test_tensors() -> None:
    for number, path in enumerate(CHECKPOINTS, start=1):
        weights = load_file(path)
        seen = weights.pop("images_seen")
        assert seen.dtype == torch.int64
        assert seen.item() == 1600 * number
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_last_checkpoint(evaluate: Evaluate) -> None:
    loss, accuracy = evaluate(LAST)
    assert loss == pytest.approx(LAST_ROW[0], abs=1e-4)
    assert accuracy == pytest.approx(LAST_ROW[1], abs=2e-3)  # one image is 1.25e-3


@pytest.mark.parametrize(("method", "share", "lag", "loss", "accuracy"), ROWS)
def test_an_average_beats_the_last_checkpoint(
    method: str,
    share: float,
    lag: float,
    loss: float,
    accuracy: float,
    evaluate: Evaluate,
    tmp_path: Path,
) -> None:
    output = tmp_path / "average.safetensors"
    rule_of: Any = METHODS[method]
    report = average(RUN, output, method=rule_of(half_life=f"{share}%"))
    assert report.rule["half_life"] == pytest.approx(share / 100 * 1900)
    assert report.summary.mean_lag == pytest.approx(lag, abs=0.5)
    assert report.tensors == TensorCounts(averaged=10, last=1, dropped=0)
    rule: Any = report.rule
    assert report.warnings == [] or rule["half_life"] < 100  # less than from one checkpoint to the next
    found_loss, found_accuracy = evaluate(output)
    assert found_loss == pytest.approx(loss, abs=1e-4)
    assert found_accuracy == pytest.approx(accuracy, abs=2e-3)
    assert found_loss < evaluate(LAST)[0]
    assert torch.equal(load_file(output)["images_seen"], load_file(LAST)["images_seen"])


def test_evaluate_as_a_program() -> None:
    done = script("evaluate.py", CHECKPOINTS[0], LAST)
    assert (done.returncode, done.stderr) == (0, "")
    heading, first, last = done.stdout.splitlines()
    assert heading.split() == ["file", "loss", "accuracy"]
    assert first.startswith(str(CHECKPOINTS[0]))
    assert float(last.split()[-2]) == pytest.approx(LAST_ROW[0], abs=2e-4)
    assert len(heading) == len(first) == len(last)

    results = json.loads(script("evaluate.py", LAST, "--json").stdout)
    assert results[str(LAST)]["accuracy"] == pytest.approx(LAST_ROW[1], abs=2e-3)


def test_demo() -> None:
    done = script("demo.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert cells(lines, "The last checkpoint: loss") == numbers(*LAST_ROW)
    for method, share, lag, loss, _ in ROWS:
        row = cells(lines, f"{method} --half-life {share:g}% ")
        assert float(row[0]) == pytest.approx(lag, abs=0.5)
        assert float(row[2]) == pytest.approx(loss, abs=2e-4)
    assert sum(line.endswith("  best") for line in lines) == 1
    assert sum(line.startswith("Why BELAY?") for line in lines) == 1
    assert "belay plan" in lines[-2]
    assert all(len(line) <= 80 for line in lines if str(SAMPLE) not in line)  # paths are as long as they are


def test_readme() -> None:
    """It shows what the demo prints, but for the last digit of a number."""
    page = (SAMPLE / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^\$ python sample_checkpoints/demo.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with transcripts.session() as here:
        (step,) = [one for one in transcripts.steps(page.split("\n")) if one.text.endswith("demo.py")]
        assert transcripts.same(here.run(step).text, shown)


def test_demo_without_checkpoints(tmp_path: Path) -> None:
    done = script("demo.py", tmp_path)
    assert done.returncode == 2
    assert "holds no checkpoints" in done.stderr


def test_maker_repeats_the_first_checkpoint(tmp_path: Path) -> None:
    done = script("make.py", "--out", tmp_path, "--checkpoints", 1)
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = (tmp_path / "run").iterdir()
    assert made.name == CHECKPOINTS[0].name
    found, expected = load_file(made), load_file(CHECKPOINTS[0])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():  # to the bit on one kind of processor, nearly so on another
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    images = torch.load(tmp_path / "held_out.pt", weights_only=True)
    for name, tensor in torch.load(SAMPLE / "held_out.pt", weights_only=True).items():
        assert torch.equal(images[name], tensor)
