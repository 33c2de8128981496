"""`averages`: the same bits as the files, of the series that was there, in memory."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import Belay, Ema, UsageError, average, averages, plan
from belay_cli.cli import run
from belay_cli.errors import CheckpointError
from belay_cli.formats.safetensors import read_header
from belay_cli.record import read_record
from tests.conftest import make_files, make_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_the_bits_are_those_of_the_files(at_once: int) -> None:
    make_run(Path("run"), dtype=torch.bfloat16)
    rules = [Ema(), Belay(half_life="50%"), Ema(damping_ratio=0.5)]
    for number, (rule, state) in enumerate(averages("run", rules, at_once=at_once, drop="layer.bias")):
        average("run", f"{number}.safetensors", method=rules[number], drop="layer.bias")
        written = load_file(f"{number}.safetensors")
        assert rule.parameters() == rules[number].resolve([100, 200, 300, 400], "step").parameters()
        assert state.keys() == written.keys()
        assert all(torch.equal(state[name], written[name]) for name in written)
        assert all(state[name].dtype == written[name].dtype for name in written)


def test_the_series_is_the_one_of_the_call() -> None:
    make_files(Path("ckpts"))
    found = averages("ckpts", ["ema", "ema"])
    (_, one) = next(found)
    shutil.copy("ckpts/step-400.safetensors", "ckpts/step-9000.safetensors")
    (_, other) = next(found)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_that_changes_meanwhile_is_an_error() -> None:
    paths = make_files(Path("ckpts"))
    found = averages("ckpts", ["ema", "ema"])
    next(found)
    save_file(load_file(paths[1]), paths[1], {"other": "header"})
    with pytest.raises(CheckpointError):
        next(found)


def test_what_is_wrong_is_said_at_the_call() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        averages("nowhere", ["ema"])
    with pytest.raises(UsageError, match="at_once must be 1 or more, not 1.5"):
        averages("nowhere", ["ema"], at_once=1.5)  # type: ignore[arg-type]


def test_adapters_of_another_rank_need_no_file() -> None:
    for step in (10, 20, 30):
        folder = Path(f"lora/checkpoint-{step}")
        folder.mkdir(parents=True)
        a, b = torch.randn(4, 16), torch.randn(20, 4)
        weights = {"base_model.model.q.lora_A.weight": a, "base_model.model.q.lora_B.weight": b}
        save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    ((_, state),) = averages("lora", ["ema"], lora="delta", lora_rank=2)
    assert state["base_model.model.q.lora_A.weight"].shape == (2, 16)


def test_numbers_of_numpy_are_numbers() -> None:
    make_files(Path("ckpts"))
    options: dict[str, Any] = {"every": np.int64(1)}
    average("ckpts", "a.safetensors", method=Ema(decay=np.float64(0.99)), **options)
    average("ckpts", "b.safetensors", method=Ema(decay=0.99))
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    whole = Belay(half_life=100, feedback=2).resolve([0, 100], "step").arguments()
    assert whole == ["--half-life", "100.0", "--feedback", "2.0", "--curvature", "1.0"]


def test_the_command_of_names_that_begin_with_a_dash_repeats() -> None:
    for step in (100, 200):
        save_file({"w": torch.randn(3)}, f"-step-{step}.safetensors", {"format": "pt"})
    average(["./-step-100.safetensors", "./-step-200.safetensors"], "a.safetensors")
    said = shlex.split(read_record(read_header(Path("a.safetensors")).metadata, "a.safetensors").command)
    assert said[-3:] == ["--", "-step-100.safetensors", "-step-200.safetensors"]
    assert run([*said[1:-3], "-o", "b.safetensors", "-q", *said[-3:]]) == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_a_plan_says_what_to_know_before() -> None:
    make_files(Path("ckpts"))
    assert any("the last one weighs" in text for text in plan("ckpts", method=Ema("1%")).warnings)
