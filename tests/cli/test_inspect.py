"""`belay inspect`: what a series is, and everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.damaged import truncated
from tests.conftest import Ran, make_files, make_run, tensors


def test_inspect_a_series(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("inspect", make_run(tmp_path / "run", steps=(1000, 200)))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "run: 2 checkpoints, every 800 · Tiny · 456 parameters",
        "",
        "  checkpoint       step  tensors  dtype              size",
        "  checkpoint-200    200        6  float32, int64  2.27 kB",
        "  checkpoint-1000  1000        6  float32, int64  2.27 kB",
        "",
        "recognised:",
        "  format      safetensors",
        "  state dict  at the top",
        "  weights     raw",
        "  step        recorded in trainer_state.json",
        "",
        "one series; what an average of it would be: belay plan, with the same arguments",
    ]


def test_inspect_lists_everything_that_is_wrong(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path, steps=(100, 200, 300, 700))
    truncated(paths[1])
    save_file(tensors() | {"scale": torch.zeros(3)}, paths[2])
    ran = belay("inspect", *paths, tmp_path / "nowhere")
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("belay: ")]
    assert [re.sub(r"^belay: .*/", "", line) for line in errors] == [
        "step-200.safetensors: is cut short: its tensors take 1832 bytes, and 1827 are there",
        "nowhere: does not exist",
        "step-300.safetensors: 'scale' is 3; in step-100.safetensors it is a scalar",
        "step-700.safetensors: 'scale' is a scalar; in step-300.safetensors it is 3",
    ]
    assert "warning: 400 steps lie behind step-300.safetensors, 200 elsewhere: is a checkpoint missing?" in ran.err
    found = belay("inspect", *paths, "--json")
    assert found.code == 1
    assert len(found.json["problems"]) == 3
    assert [entry["step"] for entry in found.json["checkpoints"]] == [100, 300, 700]


def test_inspect_lists_tensors(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("inspect", *make_files(tmp_path), "--tensors")
    assert "  embed.weight  float32  37×11     average" in ran.out.splitlines()
    assert "  seen          int64    a scalar  last" in ran.out.splitlines()
    listed = belay("inspect", *make_files(tmp_path), "--tensors", "--json").json["tensors"]
    assert {"name": "layer.bias", "dtype": "float32", "shape": [8], "bytes": 32} in listed


def test_inspect_without_an_order(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("inspect", *make_files(tmp_path, steps=("a", "b"), name="{}.safetensors"))
    assert ran.code == 1
    assert "a.safetensors: has no step and no integer in its name" in ran.err


def test_inspect_values_finds_what_is_not_finite(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = make_files(Path("ckpts"))
    spoiled = load_file(paths[2])
    spoiled["layer.weight"][0, :2] = torch.tensor([float("nan"), float("inf")])
    spoiled["scale"] = torch.full_like(spoiled["scale"], float("-inf"))
    save_file(spoiled, paths[2])
    assert belay("inspect", "ckpts").code == 0
    ran = belay("inspect", "ckpts", "--values")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "belay: ckpts/step-300.safetensors: 'layer.weight' holds 1 NaN and 1 inf, and so does 1 more tensor",
        "       leave the checkpoint out, or average them all the same: belay average --allow-nonfinite",
    ]
    assert belay("inspect", "ckpts", "--values", "--json").json["error"]["tensor"] == "layer.weight"


def test_inspect_an_output(tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert belay("average", "run", "-o", "out", "-q", "--half-life", "10%").code == 0
    ran = belay("inspect", "out")
    assert ran.code == 0
    assert "out: an average of 4 checkpoints, steps 100 to 400, every 100" in ran.out
    assert "EMA, half-life 30 steps = 0.3 checkpoints · decay 0.97716 a step" in ran.out
    assert ran.out.endswith("check every byte: belay verify out\n")
    told = belay("inspect", "out", "--json").json["average"]
    assert told["rule"]["half_life"] == 30
    assert [entry["step"] for entry in told["series"]] == [100, 200, 300, 400]
    assert all(file["wrong"] is None for file in told["files"])
    Path("out/config.json").unlink()
    ran = belay("inspect", "out")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "belay: out: config.json is missing",
        "       make it again; belay verify out says more",
    ]
    whole = Path("out/belay.json").read_text()
    Path("out/belay.json").write_text(whole[:100])
    assert "belay: out: belay.json is not valid JSON" in belay("inspect", "out").err
    Path("out/belay.json").write_text(whole.replace("same", "float32", 1))
    assert "belay: out: belay.json says something else than the metadata" in belay("inspect", "out").err
