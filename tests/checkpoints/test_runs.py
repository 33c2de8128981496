"""Run directories: which of their entries are checkpoints, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Selection, find_series
from belay_cli.checkpoints.runs import checkpoints_inside
from belay_cli.errors import CheckpointError


def folders(run: Path, *names: str, inner: str = "") -> None:
    for value, name in enumerate(names):
        directory = run / name / inner
        directory.mkdir(parents=True)
        save_file({"w": torch.full((2,), float(value))}, directory / "model.safetensors")


def files(run: Path, *names: str) -> None:
    run.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        torch.save({"w": torch.full((2,), float(value))}, run / name)


def inside(run: Path) -> tuple[list[str], list[str]]:
    found, left_out = checkpoints_inside(run)
    return [path.name for path in found], left_out


def test_the_whole_name_must_fit(tmp_path: Path) -> None:
    folders(tmp_path, "step-100", "step-200", "step-1000")
    folders(tmp_path, "step-400.backup", "foo-step-250", "step-500.tmp", "step-200-hf", "step-100_ema", "final")
    assert inside(tmp_path) == (
        ["step-100", "step-200", "step-1000"],
        ["final", "foo-step-250", "step-100_ema", "step-200-hf", "step-400.backup", "step-500.tmp"],
    )


def test_directories_that_differ_in_one_integer_are_a_run(tmp_path: Path) -> None:
    folders(tmp_path, "samples_1000", "samples_2000", "samples_10000", "best")
    assert inside(tmp_path) == (["samples_1000", "samples_2000", "samples_10000"], ["best"])
    with pytest.raises(CheckpointError, match="holds no weights in samples_1000"):
        find_series([tmp_path], Selection(subfolder="samples_1000"))


def test_lerobot(tmp_path: Path) -> None:
    folders(tmp_path, "001000", "002000", "010000", inner="pretrained_model")
    folders(tmp_path, "001000", "002000", "010000", inner="training_state")
    (tmp_path / "last").symlink_to("010000")
    assert inside(tmp_path) == (["001000", "002000", "010000"], ["last (a link to 010000)"])
    (tmp_path / "solo").mkdir()
    folders(tmp_path / "solo", "003000", inner="pretrained_model")
    (tmp_path / "solo/last").symlink_to("003000")
    assert inside(tmp_path / "solo") == (["003000"], ["last (a link to 003000)"])


def test_a_member_of_a_run_that_is_broken_is_not_left_out(tmp_path: Path) -> None:
    folders(tmp_path, "samples_1", "samples_2", "samples_3")
    (tmp_path / "samples_2/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="samples_2: holds no weights that belay reads"):
        find_series([tmp_path])


def test_several_series_in_one_directory_are_told_apart_by_a_person(tmp_path: Path) -> None:
    folders(tmp_path, "gen_1", "gen_2", "disc_1", "disc_2")
    with pytest.raises(CheckpointError, match=r"holds 2 series: disc_1 …, gen_1 …") as caught:
        find_series([tmp_path])
    assert caught.value.hint == f"give the checkpoints of one of them as arguments: {tmp_path}/disc*"


@pytest.mark.parametrize(
    "names",
    [
        ["unet", "text_encoder", "text_encoder_2", "text_encoder_3"],
        ["2_Dense", "3_Dense"],
        ["expert_0", "expert_1"],
        ["seed_0", "seed_1"],
        ["mp_rank_00", "mp_rank_01"],
    ],
)
def test_parts_of_a_model_are_no_run(tmp_path: Path, names: list[str]) -> None:
    folders(tmp_path, *names)
    assert inside(tmp_path) == ([], [])


@pytest.mark.parametrize("marker", ["model_index.json", "modules.json"])
def test_a_pipeline_is_no_run(tmp_path: Path, marker: str) -> None:
    folders(tmp_path, "stage_a_1", "stage_a_2")
    (tmp_path / marker).write_text("{}")
    assert inside(tmp_path) == ([], [])


def test_a_checkpoint_of_the_trainer_with_shards_of_deepspeed_inside_is_one(tmp_path: Path) -> None:
    for step in (100, 200):
        folders(tmp_path, f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}/global_step{step}").mkdir()
        shard = tmp_path / f"checkpoint-{step}/global_step{step}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        shard.write_bytes(b"")
    assert find_series([tmp_path]).ticks == (100, 200)
    assert find_series(sorted(tmp_path.glob("checkpoint-*"))).ticks == (100, 200)


@pytest.mark.parametrize(
    ("names", "taken", "left_out"),
    [
        ("ckpt_100.pt ckpt_20.pt", "ckpt_20.pt ckpt_100.pt", ""),
        ("epoch_1.pth epoch_10.pth best.pth last.pth", "epoch_1.pth epoch_10.pth", "best.pth last.pth"),
        ("step_1.pt step_2.pt step_1_ema.pt step_2_ema.pt", "step_1.pt step_2.pt", "step_1_ema.pt step_2_ema.pt"),
        ("step_1.pt step_2.pt step_3.backup.pt", "step_1.pt step_2.pt", "step_3.backup.pt"),
        ("step_1.pt step_2.pt step_2_avg.pt swa_model.pt", "step_1.pt step_2.pt", "step_2_avg.pt swa_model.pt"),
        ("model01.pt model02.pt ema_0.9999_01.pt ema_0.9999_02.pt opt01.pt opt02.pt", "model01.pt model02.pt",
         "ema_0.9999_01.pt ema_0.9999_02.pt opt01.pt opt02.pt"),
        ("ema_0.9999_01.pt ema_0.9999_02.pt", "ema_0.9999_01.pt ema_0.9999_02.pt", ""),
        ("x-step1.pt x-step2.pt x-000001.pt x.pt", "x-step1.pt x-step2.pt", "x-000001.pt x.pt"),
        ("epoch_1.pt epoch_2.pt foo_1.pt foo_2.pt", "epoch_1.pt epoch_2.pt", "foo_1.pt foo_2.pt"),
        ("epoch=0-step=9.ckpt epoch=1-step=18.ckpt epoch=1-step=18-v1.ckpt last.ckpt x_1.ckpt",
         "epoch=0-step=9.ckpt epoch=1-step=18-v1.ckpt epoch=1-step=18.ckpt last.ckpt", "x_1.ckpt"),
        ("epoch=1.ckpt epoch=2.ckpt last.ckpt", "epoch=1.ckpt epoch=2.ckpt", "last.ckpt"),
        ("step_1.pt", "", ""),
        ("G_1.pth G_2.pth D_1.pth D_2.pth", "", ""),
        ("part00.pt part01.pt", "", ""),
        ("model.pt model_1.pt model_2.pt", "", ""),
        ("a_0.1.pt a_0.2.pt", "", ""),
    ],
)  # fmt: skip
def test_files_of_one_template_are_a_run(tmp_path: Path, names: str, taken: str, left_out: str) -> None:
    files(tmp_path / "run", *names.split())
    found, others = inside(tmp_path / "run")
    assert (found, sorted(others)) == (taken.split(), sorted(left_out.split()))


def test_epochs_and_steps_in_one_run_do_not_mix(tmp_path: Path) -> None:
    files(tmp_path / "run", *(f"checkpoint-{kind}-{n}.pth" for kind in ("epoch", "step") for n in (1, 500)))
    for order in ("step", "given"):
        with pytest.raises(CheckpointError, match="holds 2 series: checkpoint-epoch-1.pth …, checkpoint-step-1.pth …"):
            find_series([tmp_path / "run"], Selection(order=order))


def test_what_is_left_out_is_not_all_listed(tmp_path: Path) -> None:
    files(tmp_path / "run", "step_1.pt", "step_2.pt", *(f"x{c}.pt" for c in "abcdefghijk"))
    assert find_series([tmp_path / "run"]).notes == (
        f"{tmp_path}/run: takes the 2 checkpoints inside, not xa.pt, xb.pt, xc.pt, xd.pt, xe.pt, xf.pt, xg.pt, xh.pt "
        "and 3 more",
    )
