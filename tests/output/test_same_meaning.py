"""An output in the files of its last checkpoint, where these hold more than one thing, or hold it somewhere inside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from belay_cli import average, inspect, verify
from belay_cli.errors import InTheWayError, OutputError, UsageError
from tests.conftest import Ran
from tests.output.same import loaded, saved
from tests.output.test_same_directories import files

STEPS = (1, 2, 3)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source", ["raw", "ema"])
def test_raw_weights_and_their_ema_in_one_file(tmp_path: Path, source: Any) -> None:
    series = [tmp_path / f"step-{step}.pt" for step in STEPS]
    for step, path in zip(STEPS, series, strict=True):
        torch.save(
            {"state_dict": {"w": randn(step, 9)}, "state_dict_ema": {"w": randn(10 + step, 9)}, "step": step}, path
        )
    average(series, "out.pt", method="uniform", source=source)
    out, last = loaded("out.pt"), loaded(series[-1])
    taken, other = ("state_dict", "state_dict_ema")[:: 1 if source == "raw" else -1]
    mean = torch.stack([loaded(path)[taken]["w"].double() for path in series]).mean(0).float()
    torch.testing.assert_close(out[taken]["w"], mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(out[other]["w"], last[other]["w"])
    assert verify("out.pt", checkpoints=series, sample="all").ok


def test_a_key_that_was_named(tmp_path: Path) -> None:
    series = [tmp_path / f"step-{step}.pt" for step in STEPS]
    for step, path in zip(STEPS, series, strict=True):
        torch.save({"generator": {"w": randn(step, 9)}, "critic": {"w": randn(10 + step, 9)}, "step": step}, path)
    average(series, "out.pt", state_key="critic")
    out, last = loaded("out.pt"), loaded(series[-1])
    assert torch.equal(out["generator"]["w"], last["generator"]["w"])
    assert not torch.equal(out["critic"]["w"], last["critic"]["w"])
    assert verify("out.pt", checkpoints=series, sample="all").ok


def several_models(run: Path) -> list[Path]:
    paths = [run / f"checkpoint-{step}" for step in STEPS]
    for step, path in zip(STEPS, paths, strict=True):
        for number, folder in enumerate(("unet", "vae")):
            (path / folder).mkdir(parents=True)
            state = {"conv.weight": randn(step + 10 * number, 6, 5), "seen": torch.tensor(step)}
            torch.save(state, path / folder / "diffusion_pytorch_model.bin")
            (path / folder / "config.json").write_text('{"_class_name": "X"}')
        torch.save({"step": step}, path / "optimizer.bin")
    return paths


@pytest.mark.parametrize(("subfolder", "changed"), [("all", {"unet", "vae"}), ("unet", {"unet"})])
def test_several_models_in_a_directory(tmp_path: Path, subfolder: str, changed: set[str]) -> None:
    series = several_models(tmp_path / "run")
    average(series, "out", format="same", subfolder=subfolder)
    average(series, "plain", subfolder=subfolder)
    last, out = files(series[-1]), files("out")
    assert out.keys() == last.keys() | {"belay.json", ".belay/local.json"}
    assert {name.partition("/")[0] for name in last if last[name] != out[name]} == changed
    assert verify("out", sample="all").ok
    found = inspect("out", subfolder=subfolder).average
    assert found is not None
    assert [name for name, _, _ in found.files] == sorted(last)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_sharded_checkpoint_in_a_folder_of_a_directory(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    series = [tmp_path / f"run/checkpoint-{step}" for step in STEPS]
    for step, path in zip(STEPS, series, strict=True):
        state = {"model": {"w": randn(step, 6, 5), "b": randn(step, 5).bfloat16()}, "optim": {"w": randn(step, 6, 5)}}
        dcp.save(state, checkpoint_id=path / "pytorch_model_fsdp_0", no_dist=True)
        (path / "scheduler.bin").write_bytes(b"state %d" % step)
    average(series, "out", format="same", method="uniform")
    last, out = files(series[-1]), files("out")
    assert {name for name in last if last[name] != out[name]} == {"pytorch_model_fsdp_0/__0_0.distcp"}
    state = {"model": {"w": torch.empty(6, 5), "b": torch.empty(5).bfloat16()}, "optim": {"w": torch.empty(6, 5)}}
    dcp.load(state, checkpoint_id="out/pytorch_model_fsdp_0", no_dist=True)
    mean = torch.stack([randn(step, 6, 5).double() for step in STEPS]).mean(0).float()
    torch.testing.assert_close(state["model"]["w"], mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(state["optim"]["w"], randn(3, 6, 5))
    assert belay("verify", "out", "--sample", "all").code == 0
    for path in series:
        dcp.save({"m": randn(1, 3)}, checkpoint_id=path / "optimizer_0", no_dist=True)
    ran = belay("average", *series, "--format", "same", "--without-optimizer", "-o", "less")
    assert (ran.code, [line for line in ran.err.splitlines() if "left out" in line]) == (
        0,
        ["note: optimizer_0/: of an optimizer, and left out"],
    )
    assert files("less").keys() == out.keys()
    for path in series:
        shutil.rmtree(path / "optimizer_0")
    ran = belay("average", *series, "--format", "same", "--without-optimizer", "-o", "other")
    assert (ran.code, ran.err.splitlines()[0]) == (
        2,
        f"belay: --without-optimizer: {series[-1]} has no file of an optimizer alone",
    )


def test_it_is_inspected(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(saved(tmp_path), "out.pt")
    ran = belay("inspect", "out.pt")
    assert ran.code == 0
    assert "out.pt: an average of 3 checkpoints, steps 100 to 300, every 100" in ran.out
    assert ran.out.splitlines()[-1] == "check every byte: belay verify out.pt --checkpoints RUN"
    os.remove("out.pt.belay.json")
    assert "an average of 3" not in belay("inspect", "out.pt").out


def test_a_record_whose_file_was_removed(tmp_path: Path) -> None:
    series = saved(tmp_path)
    average(series, "out.pt")
    os.remove("out.pt")
    with pytest.raises(InTheWayError) as caught:
        average(series, "out.pt")
    assert (caught.value.file, caught.value.hint) == (
        "out.pt.belay.json",
        "say --overwrite, or write somewhere else: -o",
    )
    average(series, "out.pt", overwrite=True)
    assert verify("out.pt", checkpoints=series).ok


def test_a_name_that_leaves_no_room_for_that_of_the_record(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        average(saved(tmp_path), "x" * 250 + ".pt")
    assert caught.value.message == "cannot be written: its name is too long"


def test_checkpoints_whose_names_leave_no_room_for_that_of_a_record(tmp_path: Path) -> None:
    series = [path.rename(path.with_name("x" * 245 + path.name[-6:])) for path in saved(tmp_path)]
    assert average(series, "out.pt").format == "same"
    assert verify("out.pt", checkpoints=series).ok


def test_checkpoints_that_are_far_away(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    series = saved(tmp_path)
    average(series, "expected.pt")
    there = fsspec.filesystem("memory")
    for path in series:
        there.pipe(f"/same/{path.name}", path.read_bytes())
    far = [f"memory://same/{path.name}" for path in series]
    average([*far[:2], series[-1]], "out.pt")
    assert Path("out.pt").read_bytes() == Path("expected.pt").read_bytes()
    with pytest.raises(UsageError) as caught:
        average(far, "other.pt")
    assert caught.value.message == (
        f"--format same writes over a copy of the last checkpoint, and {far[-1]} is not on this machine"
    )
    there.rm("/same", recursive=True)
