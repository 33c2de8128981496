"""Names as people have them: in order by what they prove, or refused; never a series of what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from belay_cli.checkpoints import Selection, find_series
from belay_cli.errors import BelayError, CheckpointError, SeriesError
from tests.conftest import Ran

IN_ORDER = {  # oldest first -> steps, or None where they are counted
    ("step-900", "step-1,000", "step-10,000"): [900, 1000, 10_000],
    ("step_500", "step_1_000", "step_2_000"): [500, 1000, 2000],
    ("step_900k", "step_1M"): [900_000, 1_000_000],
    ("rl_model_1000_steps", "rl_model_2000_steps", "rl_model_10000_steps"): [1000, 2000, 10_000],
    ("step1000epoch1", "step2000epoch2"): [1000, 2000],
    ("epoch=8-val_loss=0.31", "epoch=9-val_loss=0.02", "epoch=10-val_loss=-0.21"): None,
    ("epoch=8-val_loss=0.31", "epoch=9-val_loss=nan", "epoch=10-val_loss=0.2"): None,
    ("epoch_09_of_10", "epoch_10_of_10"): None,
    ("epoch_9_avg_train_loss_0.3", "epoch_10_avg_train_loss_0.2"): None,
    ("epoch=9-loss_moving_avg=0.80", "epoch=10-loss_moving_avg=0.70"): None,
    ("80b_tokens", "120b_tokens", "1.2t_tokens"): None,
    ("CKPT+epoch_9+2024-05-01+22-58-41+00", "CKPT+epoch_10+2024-05-02+00-21-05+00"): None,
    ("step-50k-105B", "step-100k-210B", "step-240k-503B"): [50_000, 100_000, 240_000],
    ("llama-7b-step-100", "llama-7b-step-200"): [100, 200],
    ("step_100_loss_0.9", "step_200_loss_0.3", "step_1000_loss_0.5"): [100, 200, 1000],
}
REFUSED = [
    ("step_500thousand", "step_1million"),
    ("iter_500Kstep", "iter_1Mstep"),
    ("step_900", "step_1_5k"),
    ("step_512", "step_1Ki"),
    ("step-900", "step-1'000"),
    ("step_-2", "step_-1"),
    ("step_100_512", "step_200_512"),
    ("seed1_step_100", "seed2_step_200"),
    ("llama-7b-step-100", "llama-13b-step-200"),
    ("expert_0_step_9", "expert_1_step_10"),
    ("checkpoint_step000900", "disc_checkpoint_step001000"),
    ("step_9", "step_10", "step_11.tmp"),
    ("step_9", "step_150-int8"),
    ("step_9", "step_11_mean"),
    ("epoch_0.5_step_50", "epoch_1.0_step_100", "epoch_1.5_step_75"),
    ("client_0_round_9", "client_1_round_9"),
    ("kfold_0", "kfold_1"),
    ("randomseed1", "randomseed2"),
    ("best_mAP50_71", "best_mAP50_72"),
    ("top1_71", "top1_72"),
    ("best_recall_71", "best_recall_72"),
    ("valacc_71", "valacc_72"),
    ("winrate55", "winrate56"),
    ("ckpt_22h58", "ckpt_00h21"),
    ("run_2024-05-01", "run_2024-05-02"),
]


def saved(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.full((2,), float(value))}, path)
    return path


@pytest.mark.parametrize("names", IN_ORDER, ids=" ".join)
def test_what_names_prove(tmp_path: Path, names: tuple[str, ...]) -> None:
    paths = [saved(tmp_path / f"{name}.pt", n) for n, name in enumerate(names)]
    for given in (paths, paths[::-1], sorted(paths)):
        series = find_series(given)
        assert [checkpoint.path for checkpoint in series.checkpoints] == paths
        if IN_ORDER[names] is not None:
            assert list(series.ticks) == IN_ORDER[names]


@pytest.mark.parametrize("names", REFUSED, ids=" ".join)
def test_what_names_do_not_prove(tmp_path: Path, names: tuple[str, ...]) -> None:
    paths = [saved(tmp_path / f"{name}.pt", n) for n, name in enumerate(names)]
    for given in (paths, paths[::-1]):
        with pytest.raises(SeriesError) as caught:
            find_series(given)
        assert "--order given" in str(caught.value.hint)
    assert [c.path for c in find_series(paths, Selection(order="given")).checkpoints] == paths


@pytest.mark.parametrize(
    "names",
    [
        ("seed1/step_100", "seed2/step_200"),
        ("2024-05-01/step_900", "2024-05-02/step_100"),
        ("global_step_10/actor/huggingface/model", "global_step_20/critic/huggingface/model"),
    ],
)
def test_steps_in_other_directories(tmp_path: Path, names: tuple[str, str]) -> None:
    paths = [saved(tmp_path / f"{name}.pt", n) for n, name in enumerate(names)]
    with pytest.raises(SeriesError, match="only its name states|before it by another number|its place in the series"):
        find_series(paths)


def recorded(path: Path, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"w": torch.full((2,), float(step))}
    torch.save({"pytorch-lightning_version": "2.1", "global_step": step, "state_dict": state}, path)


def test_a_run_that_goes_on_in_another_directory(tmp_path: Path) -> None:
    for directory, steps in (("a", (100, 200)), ("b", (300, 400))):
        for step in steps:
            recorded(tmp_path / directory / f"epoch=0-step={step}.ckpt", step)
    series = find_series([tmp_path / "b", tmp_path / "a"])
    assert series.ticks == (100, 200, 300, 400)
    assert f"takes checkpoints of 2 directories as one run: {tmp_path}/a (100 to 200), {tmp_path}/b (300 to 400)" in (
        series.notes
    )


def test_two_runs_are_no_series(tmp_path: Path) -> None:
    for directory, steps in (("version_0", (100, 300)), ("version_1", (200, 400))):
        for step in steps:
            recorded(tmp_path / directory / f"epoch=0-step={step}.ckpt", step)
    with pytest.raises(SeriesError, match="whose steps are between those of"):
        find_series([tmp_path / "version_0", tmp_path / "version_1"])


def test_several_series_in_a_run_directory(tmp_path: Path) -> None:
    for name in ("actor_step_100", "critic_step_200", "actor_step_300", "critic_step_400"):
        saved(tmp_path / f"run/{name}.pt", 1)
    with pytest.raises(CheckpointError, match="holds 2 series: actor_step_100.pt …, critic_step_200.pt …"):
        find_series([tmp_path / "run"])


def test_a_run_in_two_formats(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for step in (100, 200, 300):
        saved(tmp_path / f"run/step_{step}.pt", step)
    for step in (100, 200):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"run/step_{step}.safetensors")
    with pytest.raises(CheckpointError, match=r"holds a series as .safetensors, 2 checkpoints, and one as .pt, 3"):
        find_series([tmp_path / "run"])
    save_file({"w": torch.full((2,), 300.0)}, tmp_path / "run/step_300.safetensors")
    assert {c.path.suffix for c in find_series([tmp_path / "run"]).checkpoints} == {".safetensors"}


@pytest.mark.parametrize("beside", ["final.safetensors", "vae.safetensors", "model.safetensors"])
def test_torch_files_beside_one_of_safetensors(tmp_path: Path, beside: str) -> None:
    from safetensors.torch import save_file

    for epoch in (9, 10):
        saved(tmp_path / f"run/epoch_{epoch}.pt", epoch)
    save_file({"w": torch.zeros(2)}, tmp_path / "run" / beside)
    series = find_series([tmp_path / "run"])
    assert [c.name for c in series.checkpoints] == ["epoch_9.pt", "epoch_10.pt"]
    assert any(beside in note for note in series.notes)


@pytest.mark.parametrize("folder", ["ema", "ema_weights", "weights_ema", "swa", "averaged"])
def test_averages_by_their_directory(tmp_path: Path, folder: str) -> None:
    paths = [saved(tmp_path / folder / f"step_{step}.pt", step) for step in (9, 10)]
    with pytest.raises(BelayError, match="by the name of its directory"):
        find_series(paths)
    assert len(find_series(paths, Selection(allow_averages=True)).checkpoints) == 2
    if "ema" in folder:
        assert len(find_series(paths, Selection(source="ema")).checkpoints) == 2


def test_a_run_that_is_called_after_its_ema(tmp_path: Path) -> None:
    paths = [saved(tmp_path / "my-ema-run" / f"step_{step}.pt", step) for step in (9, 10)]
    assert find_series(paths).ticks == (9, 10)


@pytest.mark.parametrize("name", ["EMAModel_{}", "EmaModel_{}", "AveragedModel_{}", "avgmodel_step_{}", "polyak_{}"])
def test_averages_in_one_word(tmp_path: Path, name: str) -> None:
    paths = [saved(tmp_path / f"{name.format(n)}.pt", n) for n in (9, 10)]
    with pytest.raises(BelayError, match="average"):
        find_series(paths)


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (("step9/part0", "step9/part1", "step10/part0", "step10/part1"), ("step9/part0", "step10/part0")),
        (("worker0_step9", "worker1_step9", "worker0_step10"), ("worker0_step9", "worker0_step10")),
        (("step9.part0", "step9.part1", "step10.part0", "step10.part1"), ("step9.part0", "step10.part0")),
    ],
)
def test_parts_by_what_lies_beside_them(tmp_path: Path, names: tuple[str, ...], given: tuple[str, str]) -> None:
    for name in names:
        saved(tmp_path / f"{name}.pt", 1)
    with pytest.raises(BelayError, match="one rank|a part of a checkpoint"):
        find_series([tmp_path / f"{name}.pt" for name in given])


@pytest.mark.parametrize(
    "given",
    [
        ("epoch_10.5", "epoch_9.5"),
        ("ckpt_1.5T", "ckpt_1T"),
        ("t_100B", "t_20B"),
        ("step_10", "final", "step_9"),
    ],
)
def test_an_order_given_that_falls_is_warned_of(
    tmp_path: Path, belay: Callable[..., Ran], given: tuple[str, ...]
) -> None:
    paths = [saved(tmp_path / f"{name}.pt", n) for n, name in enumerate(given)]
    ran = belay("plan", *paths, "--order", "given")
    assert ran.code == 0
    assert f"warning: the numbers fall: {paths[0].name} is given before {paths[-1].name}" in " ".join(ran.err.split())


def test_two_saves_of_one_checkpoint_are_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for step in (9, 10):
        torch.save({"model": {"w": torch.full((2,), float(step))}, "step": step}, tmp_path / f"step_{step}.pt")
    torch.save({"step": 10, "model": {"w": torch.full((2,), 10.0)}, "more": "x"}, tmp_path / "last.pt")
    save_file({"w": torch.full((2,), 9.0)}, tmp_path / "step_9.safetensors")
    paths = [tmp_path / name for name in ("step_9.pt", "step_10.pt", "last.pt", "step_9.safetensors")]
    series = find_series(paths)
    assert [c.step for c in series.checkpoints] == [9, 10]
    assert sum("it counts once" in note for note in series.notes) == 2


def test_a_folder_that_holds_an_ema_only(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (9, 10):
        saved(tmp_path / f"run/checkpoint-{step}/unet_ema/diffusion_pytorch_model.bin", step)
    ran = belay("plan", tmp_path / "run")
    assert ran.code == 1
    assert "holds only an EMA of weights, in unet_ema" in " ".join(ran.err.split())
    assert belay("plan", tmp_path / "run", "--source", "ema").code == 0
    assert Path(tmp_path).exists()
