"""Several runs, models or series among the checkpoints: what is refused, in which words, and what is one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Selection, find_series
from belay_cli.errors import BelayError, CheckpointError, SeriesError
from tests.conftest import Ran

GIVEN = "give the checkpoints in order, with --order given"
SETTING = "the number is a setting, a size or a version, so its place in the series is unknown"


def saved(root: Path, *names: str) -> list[Path]:
    """Files of these names, the value of each its place."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {"w": torch.full((2,), float(value))}
        save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return [root / name for name in names]


def recorded(root: Path, *checkpoints: tuple[str, int]) -> list[Path]:
    """Files that record their step, as Lightning's do."""
    for name, step in checkpoints:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        state = {"w": torch.full((2,), float(step))}
        torch.save({"pytorch-lightning_version": "2.1", "global_step": step, "state_dict": state}, root / name)
    return [root / name for name, _ in checkpoints]


def refused(paths: list[Path]) -> tuple[str, str]:
    """The name of the checkpoint that is refused, and why, in whatever order they are given."""
    said = set()
    for given in (paths, paths[::-1]):
        with pytest.raises(SeriesError) as caught:
            find_series(given)
        assert caught.value.hint == GIVEN
        said.add((Path(caught.value.file or "").name, caught.value.message))
    assert len({message for _, message in said}) <= 2
    return min(said)


@pytest.mark.parametrize(
    ("names", "odd", "message"),
    [
        ("step_9 step_10 step_11.tmp", "step_11.tmp.pt", "is not named as step_9 is, and only its name states a step"),
        ("step_9.bak step_10 step_11", "step_9.bak.pt", "is not named as step_10 is, and only its name states a step"),
        ("step_1.5k step_9-int8 step_2k", "step_9-int8.pt", "is not named as step_1.5k is"),
        ("lr1e-4_step_9 lr1e-4_step_10 lr2e-4_step_11", "lr2e-4_step_11.pt", "is not named as lr1e-4_step_9 is"),
        ("a-3b-step-9 a-3b-step-10 a-8b-step-11", "a-8b-step-11.pt", "is not named as a-3b-step-9 is"),
        ("epoch_0.5_step_50 epoch_1.5_step_75 epoch_1.0_step_100", "epoch_1.0_step_100.pt",
         "comes after epoch_1.5_step_75.pt by its step, and before it by another number"),
        ("s42_step_9 s41_step_10", "s41_step_10.pt", "comes after s42_step_9.pt by its step"),
        ("model_9 model_10 optimizer_9 optimizer_10", "model_9.pt", "is not named as optimizer_9.pt is"),
    ],
)  # fmt: skip
def test_the_odd_name_is_the_one_that_is_told(tmp_path: Path, names: str, odd: str, message: str) -> None:
    paths = saved(tmp_path, *(f"{name}.pt" for name in names.split()))
    with pytest.raises(SeriesError) as caught:
        find_series(paths)
    assert (Path(caught.value.file or "").name, caught.value.hint) == (odd, GIVEN)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "names",
    [
        "run@9 run@10",
        "model_seed=0 model_seed=1",
        "kfold_0 kfold_1",
        "randomseed1 randomseed2",
        "replica_0 replica_1",
        "site_3 site_4",
        "head0 head1",
        "cv_1 cv_2",
        "agent_1 agent_2",
        "lr_1e-4 lr_2e-4",
    ],
)
def test_a_setting_counts_nothing_and_that_is_the_reason_given(tmp_path: Path, names: str) -> None:
    paths = saved(tmp_path, *(f"{name}.pt" for name in names.split()))
    assert refused(paths)[1] == f"has no step and no integer in its name that counts: {SETTING}"


@pytest.mark.parametrize("names", ["client_0_round_9 client_1_round_9", "fold1_epoch9 fold2_epoch10", "7b_9 13b_10"])
def test_a_setting_beside_what_counts(tmp_path: Path, names: str) -> None:
    one, other = names.split()
    said = refused(saved(tmp_path, f"{one}.pt", f"{other}.pt"))[1]
    assert said in (f"differs from {one}: {SETTING}", f"differs from {other}: {SETTING}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("seed1/step_100 seed2/step_200", "is not named as seed1/step_100 is, and only its name states a step"),
        ("v1/step_100 v2/step_900", "is not named as v1/step_100 is, and only its name states a step"),
        ("pre/step_100 post/step_900", "is not named as pre/step_100 is, and only its name states a step"),
        ("a1/b/c/d/step_100 a2x/b/c/d/step_900", "is not named as a1/b/c/d/step_100 is"),
        ("2024-05-02/step_100 2024-05-01/step_900", "comes after step_100.pt by its step, and before it by another"),
        ("job_8/step_100 job_7/step_900", "comes after step_100.pt by its step, and before it by its directory, job_7"),
        ("seed1/epoch_1 seed2/epoch_2", "in a setting, a size or a version, so its place in the series is unknown"),
        ("net-7b/epoch_1 net-13b/epoch_2", "in a setting, a size or a version, so its place in the series is unknown"),
    ],
)
def test_directories_of_several_runs(tmp_path: Path, names: str, message: str) -> None:
    assert message in refused(saved(tmp_path, *(f"{name}.pt" for name in names.split())))[1]


def test_numbers_that_take_turns_are_those_of_two_runs(tmp_path: Path) -> None:
    paths = saved(tmp_path, "a/epoch_1.pt", "b/epoch_2.pt", "a/epoch_3.pt")
    said = f"is one of {tmp_path}/b, whose numbers are between those of {tmp_path}/a"
    assert refused(paths) == ("epoch_2.pt", said)
    series = find_series(saved(tmp_path, "c/epoch_1.pt", "c/epoch_2.pt", "d/epoch_3.pt"))
    assert [c.name for c in series.checkpoints] == ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"]
    assert series.notes[0] == (
        f"takes checkpoints of 2 directories as one run: {tmp_path}/c (epoch_1.pt to epoch_2.pt), "
        f"{tmp_path}/d (epoch_3.pt to epoch_3.pt)"
    )


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ((("a/x.ckpt", 100), ("b/y.ckpt", 200), ("a/z.ckpt", 300)), "whose steps are between those of"),
        ((("sft/step=900.ckpt", 900), ("dpo/step=100.ckpt", 100)), "nothing says that it goes on from dpo"),
        ((("version_0/x.ckpt", 900), ("version_1/y.ckpt", 100)), "and before it by its directory, version_0"),
        ((("2024-05-01/x.ckpt", 900), ("2024-05-02/y.ckpt", 100)), "and before it by its directory, 2024-05-01"),
        ((("seed1/x.ckpt", 100), ("seed2/y.ckpt", 900)), "lies in seed2, which differs from seed1 in a setting"),
    ],
)  # fmt: skip
def test_recorded_steps_of_several_runs(tmp_path: Path, checkpoints: tuple[tuple[str, int], ...], message: str) -> None:
    assert message in refused(recorded(tmp_path, *checkpoints))[1]


@pytest.mark.parametrize(
    "directories",
    [("run", "run-resumed"), ("version_0", "version_1"), ("run1", "run2"), ("2024-05-01", "2024-05-02"), ("a", "b")],
)
def test_a_run_that_goes_on_elsewhere_is_one_and_that_is_said(tmp_path: Path, directories: tuple[str, str]) -> None:
    one, other = directories
    names = ((one, 100), (one, 200), (other, 300), (other, 400))
    paths = recorded(tmp_path, *((f"{directory}/epoch=0-step={step}.ckpt", step) for directory, step in names))
    for given in (paths, paths[::-1], [tmp_path / other, tmp_path / one]):
        series = find_series(given)
        assert series.ticks == (100, 200, 300, 400)
        assert series.notes[-1] == (
            "takes checkpoints of 2 directories as one run: "
            f"{tmp_path}/{one} (100 to 200), {tmp_path}/{other} (300 to 400)"
        )


@pytest.mark.parametrize(
    "names", ["100/step_100 200/step_200", "epoch_1/step_10 epoch_2/step_20", "ckpt_1/m_1 ckpt_2/m_2"]
)
def test_directories_of_one_checkpoint_each_are_no_runs(tmp_path: Path, names: str) -> None:
    series = find_series(saved(tmp_path, *(f"{name}.pt" for name in names.split())))
    assert not any("directories as one run" in note for note in series.notes)


def test_the_same_directory_by_another_way_is_one(tmp_path: Path) -> None:
    saved(tmp_path, "run/step_9.pt", "run/step_10.pt", "other/x.pt")
    paths = [tmp_path / "run/step_9.pt", tmp_path / "other/../run/step_10.pt"]
    assert find_series(paths).ticks == (9, 10)


@pytest.mark.parametrize(
    ("names", "series", "hint"),
    [
        ("G_step_1 G_step_3 D_step_2 D_step_4", "D_step_2.pt …, G_step_1.pt …", ": {}/D_step*"),
        ("step_100 step_200 step_100_merged step_200_merged", "step_100.pt …, step_100_merged.pt …", ""),
        ("v1-step-1 v1-step-2 v2-step-1 v2-step-2", "v1-step-1.pt …, v2-step-1.pt …", ": {}/v1-step*"),
    ],
)
def test_series_in_one_directory(tmp_path: Path, names: str, series: str, hint: str) -> None:
    run = saved(tmp_path, *(f"run/{name}.pt" for name in names.split()))[0].parent
    with pytest.raises(CheckpointError) as caught:
        find_series([run])
    assert caught.value.message == f"holds 2 series: {series}"
    assert caught.value.hint == "give the checkpoints of one of them as arguments" + hint.format(run)
    with pytest.raises(CheckpointError) as caught:
        find_series([run], Selection(order="given"))
    assert caught.value.hint == "give the checkpoints themselves as arguments, in order"


def test_series_of_directories_in_one(tmp_path: Path) -> None:
    saved(tmp_path, *(f"run/{kind}_{n}/model.safetensors" for kind in ("epoch", "step") for n in (1, 2)))
    with pytest.raises(CheckpointError, match=r"holds 2 series: epoch_1 …, step_1 …"):
        find_series([tmp_path / "run"])


def test_an_optimizer_beside_each_checkpoint_is_no_series(tmp_path: Path) -> None:
    names = ("step_100", "step_200", "step_100_optimizer", "step_200_optimizer", "step_100_ema", "step_200_ema")
    saved(tmp_path, *(f"run/{name}.safetensors" for name in names))
    assert find_series([tmp_path / "run"]).ticks == (100, 200)


def test_a_run_of_scores_asks_for_the_checkpoints_in_order(tmp_path: Path) -> None:
    saved(tmp_path, "run/best_0.4.pt", "run/best_0.5.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 sets of weights: best_0\.4\.pt, best_0\.5\.pt") as caught:
        find_series([tmp_path / "run"], Selection(order="given"))
    assert caught.value.hint == "give the checkpoints themselves as arguments, in order"


def test_torch_files_that_were_converted_in_part(tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved(
        tmp_path,
        *(f"run/step_{n}.pt" for n in (100, 200, 300, 400)),
        *(f"run/step_{n}.safetensors" for n in (100, 200)),
    )
    with pytest.raises(CheckpointError) as caught:
        find_series([run])
    assert caught.value.message == "holds a series as .safetensors, 2 checkpoints, and one as .pt, 4"
    assert caught.value.hint == f"give the files of one of them: {run}/*.pt"


def test_torch_files_that_were_converted_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    saved(tmp_path, *(f"run/step_{n}{suffix}" for n in (9, 10) for suffix in (".pt", ".safetensors")))
    series = find_series([tmp_path / "run"])
    assert [c.name for c in series.checkpoints] == ["step_9.safetensors", "step_10.safetensors"]
    assert series.notes == (f"{tmp_path}/run: takes the 2 checkpoints inside, not step_10.pt, step_9.pt",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("epoch_10 epoch_9", "epoch_10.pt is given before epoch_9.pt, as a shell sorts names"),
        ("epoch_9.5 epoch_8.5", "epoch_9.5.pt is given before epoch_8.5.pt"),
        ("best_0.5 best_0.4", "best_0.5.pt is given before best_0.4.pt"),
        ("m_2024-05-02 m_2024-05-01", "m_2024-05-02.pt is given before m_2024-05-01.pt"),
        ("step_10 final step_9", "step_10.pt is given before step_9.pt, as a shell sorts names"),
        ("loss_0.9_epoch_1 loss_0.1_epoch_2", ""),
        ("epoch_9_loss_0.3 epoch_10_loss_0.2", ""),
        ("m_28-04-2024 m_02-05-2024", ""),
        ("step_9 final step_10", ""),
        ("a_10 b_9", ""),
    ],
)
def test_an_order_given_is_compared_with_what_names_say(
    tmp_path: Path, belay: Callable[..., Ran], given: str, said: str
) -> None:
    paths = saved(tmp_path, *(f"{name}.pt" for name in given.split()))
    warnings = belay("plan", *paths, "--order", "given", "--json").json["warnings"]
    fall = [warning for warning in warnings if warning.startswith("the numbers fall")]
    more = "; without --order given, belay orders by number what it can"
    assert fall == ([f"the numbers fall: {said}{more if 'shell' in said else ''}"] if said else [])


@pytest.mark.parametrize("folder", ["swa/checkpoint-{}/unet", "averaged_models/step_{}", "checkpoint-{}/swa"])
def test_averages_in_directories_of_averages(tmp_path: Path, folder: str) -> None:
    for n in (9, 10):
        saved(tmp_path, f"{folder.format(n)}/model.safetensors")
    top = folder.partition("{}")[0].rpartition("/")[0] or "."
    paths = sorted((tmp_path / top).iterdir() if top != "." else tmp_path.glob("checkpoint-*"))
    with pytest.raises(BelayError) as caught:
        find_series(paths)
    assert "an average" in caught.value.message
    assert caught.value.hint == "leave it out, or say --allow-averages"
    assert find_series(paths, Selection(allow_averages=True)).ticks == (9, 10)
