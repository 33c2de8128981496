"""A note that holds for many checkpoints is one note."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from belay_cli.checkpoints import find_series
from tests.conftest import make_files, make_run, tensors

FP16 = "takes model.safetensors, not model.fp16.safetensors"


def with_fp16(run: Path, *steps: int) -> None:
    for step in steps:
        save_file(tensors(), run / f"checkpoint-{step}/model.fp16.safetensors")


def test_what_holds_for_all_is_said_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with_fp16(run, 100, 200, 300, 400)
    assert find_series([run]).notes == (FP16,)


def test_what_holds_for_some_names_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=range(100, 1300, 100))
    with_fp16(run, 200, 400)
    assert find_series([run]).notes == (f"{FP16} (in checkpoint-200, checkpoint-400)",)
    with_fp16(run, *range(100, 1200, 100))
    shown = ", ".join(f"checkpoint-{step}" for step in range(100, 900, 100))
    assert find_series([run]).notes == (f"{FP16} (in {shown} and 3 more)",)


def test_emas_passed_over_in_every_checkpoint_are_one_note(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        for name in ("unet", "unet_ema"):
            folder = tmp_path / f"run/checkpoint-{step}/{name}"
            folder.mkdir(parents=True)
            save_file(tensors(step), folder / "diffusion_pytorch_model.safetensors")
    assert find_series([tmp_path / "run"]).notes == ("takes unet, not unet_ema",)


def test_checkpoints_given_again_are_one_note_if_they_are_many(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    again = "is {0} again; it counts once"
    assert find_series([*paths, *paths[:2]]).notes == tuple(f"{p} {again.format(p)}" for p in paths[:2])
    listed = ", ".join(path.name for path in paths)
    said = f"4 checkpoints are others again, and count once: {listed}"
    assert find_series([tmp_path, *paths]).notes == (said,)


def test_twins_are_one_note_if_they_are_many(tmp_path: Path) -> None:
    paths = make_files(tmp_path / "a")
    copies = [shutil.copy(path, tmp_path / path.name) for path in paths[:3]]
    series = find_series([*paths, *copies])
    assert len(series.checkpoints) == 4
    listed = ", ".join(path.name for path in paths[:3])
    assert series.notes == (f"3 checkpoints are others again, and count once: {listed}",)
