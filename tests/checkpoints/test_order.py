"""The order of a series is proved or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from belay_cli.checkpoints import Selection, find_series
from belay_cli.checkpoints.order.places import place_of
from belay_cli.checkpoints.order.proof import in_order
from belay_cli.errors import BelayError, SeriesError, UsageError
from tests.conftest import Ran, make_files, tensors

GIVEN = "give the checkpoints in order, with --order given"


def saved(directory: Path, *names: str, **metadata: str) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    for value, name in enumerate(names):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((2,), float(value))}, directory / name, metadata=metadata or None)
    return [directory / name for name in names]


def ordered(*names: str) -> list[str]:
    return [names[i] for i in in_order([place_of(Path(f"/run/{name}"), is_file=True) for name in names])]


def refused(*names: str) -> str:
    with pytest.raises(SeriesError) as caught:
        ordered(*names)
    assert caught.value.hint == GIVEN
    return caught.value.message


@pytest.mark.parametrize(
    "names",
    [
        ["m_9.pt", "m_10.pt", "m_100.pt"],
        ["a_1_10.pt", "a_1_20.pt", "a_2_20.pt", "a_3_40.pt"],
        ["m_900.pt", "m_1k.pt", "m_1.5k.pt", "m_1M.pt"],
        ["loss0.9_3.pt", "loss0.1_12.pt"],
        ["2024-05-01_m2.pt", "2024-05-02_m10.pt"],
        ["e1/model.pt", "e2/model.pt", "e10/model.pt"],
        ["1/x/model.pt", "2/x/model.pt", "10/x/model.pt"],
        ["e1/best_0.9.pt", "e10/best_0.8.pt"],
        ["x/m_1.pt", "y/m_2.pt"],
    ],
)
def test_one_template_in_which_the_integers_agree_is_an_order(names: list[str]) -> None:
    assert ordered(*names) == ordered(*names[::-1]) == ordered(*sorted(names)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_1_2.pt", "a_2_1.pt"], "comes after a_1_2.pt by one number, and before it by another"),
        (["2024-05-02_m1.pt", "2024-05-01_m2.pt"], "comes after 2024-05-02_m1.pt by one number"),
        (["2/m_1.pt", "1/m_2.pt"], "by one number, and before it by another"),
        (["m_1.pt", "m_01.pt"], "has the same number 1 as /run/m_1.pt"),
        (["m_1_0.5.pt", "m_1_0.6.pt"], "differs from m_1_0.5.pt in a decimal number only"),
        (["m_1.pt", "m_2.pt", "final.pt"], "has no step and no integer in its name"),
        (["m_1.pt", "m_2.pt", "m_3_ema.pt"], "is not named as m_1.pt is, so its place in the series is unknown"),
        (["m_1.pt", "m_0.5.pt", "m_2.pt"], "has no step and no integer in its name"),
        (["a/model.pt", "b/model.pt"], "has no step and no integer in its name"),
        (["v1/model.pt", "v2/model.pt"], "has no step and no integer in its name"),
        (["net-v1.pt", "net-v2.pt"], "has no step and no integer in its name"),
        (["m7b.pt", "m13b.pt"], "differs from m7b.pt in a size of a model only"),
        (["epoch_1.pt", "epoch-2.pt"], "is not named as"),
        (
            ["m_7d1c0bb.pt", "m_0e9f3a2.pt"],
            "differs from m_7d1c0bb.pt in a hash only, which does not count checkpoints",
        ),
    ],
)
def test_what_proves_no_order_is_refused(names: list[str], message: str) -> None:
    assert message in refused(*names)


TEXT = st.text("abcdghjwxyz", min_size=1, max_size=6).filter(
    lambda text: text not in ("v", "sd", "dp", "bs", "wd") and not text.endswith("acc")
)


@given(TEXT, TEXT, st.sampled_from("_-."), st.sets(st.integers(0, 10**9), min_size=2, max_size=8), st.randoms())
def test_any_one_integer_that_varies_orders(head: str, tail: str, between: str, numbers: set[int], random: Any) -> None:
    numbers = {number for number in numbers if not 19_000_101 <= number <= 20_991_231} | {0, 1}  # dates count nothing
    names = [f"net{head}{between}{number}{between}x{tail}" for number in sorted(numbers)]
    mixed = random.sample(names, len(names))
    assert [mixed[i] for i in in_order([place_of(Path(name), is_file=False) for name in mixed])] == names


@given(
    st.sampled_from(["{}", "loss={}", "x_{}"]),
    st.lists(st.decimals("0.0001", "99", places=4), min_size=2, max_size=5, unique=True),
    st.randoms(),
)
def test_numbers_that_do_not_count_never_order(template: str, decimals: list[Any], random: Any) -> None:
    names = [f"net_{template.format(number)}" for number in decimals]
    with pytest.raises(SeriesError):
        in_order([place_of(Path(name), is_file=False) for name in names])
    counted = [f"net_{i:03}_{template.format(number)}" for i, number in enumerate(decimals)]
    mixed = random.sample(counted, len(counted))
    assert [mixed[i] for i in in_order([place_of(Path(name), is_file=False) for name in mixed])] == counted


def test_steps_that_start_again_are_ordered_with_their_epoch_and_measure_no_time(tmp_path: Path) -> None:
    names = ["epoch_1_step_100.safetensors", "epoch_2_step_50.safetensors", "epoch_2_step_100.safetensors"]
    paths = saved(tmp_path, *names)
    series = find_series(paths[::-1])
    assert [c.name for c in series.checkpoints] == names
    assert (series.ticks, series.unit) == ((0, 1, 2), "checkpoint")
    assert [c.step for c in series.checkpoints] == [None, None, None]
    assert series.notes[-1] == (
        f"steps start again in each epoch: checkpoints are counted, in this order: {', '.join(names)}"
    )
    with pytest.raises(SeriesError, match="states a step that starts again in each epoch"):
        find_series(paths, Selection(unit="step"))
    with pytest.raises(UsageError, match="need the step of every checkpoint"):
        find_series(paths, Selection(to_step=60))


def test_steps_start_again_in_directories_too(tmp_path: Path) -> None:
    names = ["epoch_1/step_90.safetensors", "epoch_2/step_80.safetensors", "epoch_2/step_90.safetensors"]
    series = find_series(saved(tmp_path, *names)[::-1])
    assert [os.path.relpath(c.path, tmp_path) for c in series.checkpoints] == names
    assert series.unit == "checkpoint"


def test_a_recorded_step_that_an_earlier_epoch_has_passed_is_refused(tmp_path: Path) -> None:
    for epoch, step in ((1, 100), (2, 50)):
        saved(tmp_path, f"epoch_{epoch}.safetensors", step=str(step))
    with pytest.raises(SeriesError, match="is at step 50, which another epoch in the names has too, or has passed"):
        find_series(sorted(tmp_path.glob("epoch*")))


def test_steps_that_rise_with_the_epoch_are_steps(tmp_path: Path) -> None:
    names = ["epoch_1_step_100.safetensors", "epoch_2_step_200.safetensors", "epoch_2_step_300.safetensors"]
    assert find_series(saved(tmp_path, *names)).ticks == (100, 200, 300)


def test_recorded_steps_must_not_fall_where_names_rise(tmp_path: Path) -> None:
    one = saved(tmp_path, "m_1.safetensors", step="200")
    two = saved(tmp_path, "m_2.safetensors", step="100")
    with pytest.raises(SeriesError, match="comes after m_1.safetensors by its name, and before it by its step, 100"):
        find_series([*one, *two, *saved(tmp_path, "m_3.safetensors")])


def test_thousands_are_written_one_way(tmp_path: Path) -> None:
    paths = saved(tmp_path, "iter_50_512.safetensors", "iter_100_512.safetensors", "iter_1000_512.safetensors")
    with pytest.raises(SeriesError, match=r"may state the step with a `_` between its digits or not"):
        find_series(paths)


@pytest.mark.parametrize("order", ["step", "given"])
@pytest.mark.parametrize(
    "names",
    [
        ["rank0.safetensors", "rank1.safetensors"],
        ["step_100_rank0.safetensors", "step_100_rank1.safetensors"],
        ["step_100_rank0.safetensors", "step_200_rank1.safetensors"],
        ["mp_rank_00/model.safetensors", "mp_rank_01/model.safetensors"],
        ["step_5/tp_0/model.safetensors", "step_5/tp_1/model.safetensors"],
    ],
)
def test_parts_of_one_checkpoint_are_no_series_in_any_order(tmp_path: Path, names: list[str], order: Any) -> None:
    with pytest.raises(BelayError) as caught:
        find_series(saved(tmp_path, *names), Selection(order=order))
    assert caught.value.hint and "--order" not in caught.value.hint


@pytest.mark.parametrize("order", ["step", "given"])
def test_shards_by_words_that_mean_ranks_are_parts(tmp_path: Path, order: Any) -> None:
    paths = saved(tmp_path, "step_1_worker_0.safetensors", "step_2_worker_1.safetensors")
    with pytest.raises(SeriesError, match="is a part of a checkpoint, as step_1_worker_0.safetensors is") as caught:
        find_series(paths, Selection(order=order))
    assert caught.value.hint == "put the parts together first, with the converter of the training code"


def test_one_rank_throughout_is_no_obstacle(tmp_path: Path) -> None:
    names = ["rank0/step_90.safetensors", "rank0/step_100.safetensors"]
    assert find_series(saved(tmp_path, *names)).ticks == (90, 100)


def test_the_note_shows_the_order_of_many(tmp_path: Path) -> None:
    paths = saved(tmp_path, *(f"e{i}.safetensors" for i in range(12)))
    assert (
        find_series(paths)
        .notes[-1]
        .endswith(
            "checkpoints are counted, in this order: e0.safetensors, e1.safetensors, e2.safetensors … e11.safetensors"
        )
    )


def test_an_order_that_is_given_as_a_shell_sorts_names_is_warned_of(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = sorted(saved(tmp_path, *(f"ep0-ba{i}-rank0.safetensors" for i in (200, 600, 1000))))
    said = "the numbers fall: ep0-ba1000-rank0.safetensors is given before ep0-ba200-rank0.safetensors"
    for command in ("plan", "inspect"):
        ran = belay(command, *paths, "--order", "given", "--json")
        assert [warning for warning in json.loads(ran.out)["warnings"] if warning.startswith(said)]
        ran = belay(command, *paths[1:], paths[0], "--order", "given", "--json")
        assert not any("fall" in warning for warning in json.loads(ran.out)["warnings"])


def test_epochs_that_rise_are_not_said_to_fall(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = saved(tmp_path, "epoch_1_step_100.safetensors", "epoch_2_step_50.safetensors")
    ran = belay("plan", *paths, "--order", "given", "--json")
    assert not any("fall" in warning for warning in json.loads(ran.out)["warnings"])


def test_what_is_outside_the_selection_need_not_be_whole(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(10, 20, 30))
    paths[2].write_bytes(b"")
    assert find_series(paths, Selection(to_step=20)).ticks == (10, 20)
    assert find_series(paths[:2], Selection(from_step=0)).ticks == (10, 20)


def test_links_count_once_and_copies_in_a_cache_stay(tmp_path: Path) -> None:
    for step in ("001000", "002000"):
        save_file(tensors(int(step)), saved(tmp_path / step / "pretrained_model", "model.safetensors")[0])
    (tmp_path / "last").symlink_to("002000")
    series = find_series([tmp_path / name / "pretrained_model" for name in ("last", "001000", "002000")])
    assert [c.name for c in series.checkpoints] == ["001000/pretrained_model", "002000/pretrained_model"]
    assert (
        series.notes[0]
        == f"{tmp_path}/last/pretrained_model is {tmp_path}/002000/pretrained_model again; it counts once"
    )
    save_file(tensors(), tmp_path / "blob")
    for number in (1, 2):
        (tmp_path / f"step_{number}.safetensors").symlink_to("blob")
    assert find_series([tmp_path / "step_1.safetensors", tmp_path / "step_2.safetensors"]).ticks == (1, 2)
