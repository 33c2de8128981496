"""The step that a name and a record agree on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli.checkpoints import open_checkpoint
from belay_cli.checkpoints.meaning.recorded import RecordedStep, names_one_low
from belay_cli.checkpoints.order.steps import agreed_step
from belay_cli.errors import SeriesError
from tests.conftest import Ran

TEN = RecordedStep(10, "recorded as global_step")
PATH = Path("epoch=0-step=9.ckpt")


@pytest.mark.parametrize("version", ["1.5.10", "1.5.0rc1", "0.9.0", "1.4"])
def test_early_lightning_names_one_step_too_low(version: str) -> None:
    assert names_one_low({"pytorch-lightning_version": version})
    assert agreed_step(TEN, 9, PATH, True, named_low=names_one_low({"pytorch-lightning_version": version})) == TEN
    assert agreed_step(TEN, 10, PATH, True, named_low=True) == TEN
    with pytest.raises(SeriesError, match="records step 10, but its name says 8"):
        agreed_step(TEN, 8, PATH, True, named_low=True)
    with pytest.raises(SeriesError, match="records step 10, but its name says 11"):
        agreed_step(TEN, 11, PATH, True, named_low=True)


@pytest.mark.parametrize("version", ["1.6.0", "2.6.6", "1.10.0", "", None, 1.5, "a", "9" * 5000])
def test_others_name_the_step(version: Any) -> None:
    assert not names_one_low({"pytorch-lightning_version": version})
    with pytest.raises(SeriesError, match="records step 10, but its name says 9"):
        agreed_step(TEN, 9, PATH, True, named_low=names_one_low({"pytorch-lightning_version": version}))
    assert agreed_step(TEN, 9, PATH, False) is None


@pytest.mark.parametrize("version", ["1.5.10", "1.6.0"])
def test_checkpoints_of_lightning(tmp_path: Path, belay: Callable[..., Ran], version: str) -> None:
    for step in (10, 20):
        state = {"w": torch.full((4,), float(step))}
        saved = {"epoch": 0, "global_step": step, "pytorch-lightning_version": version, "state_dict": state}
        torch.save(saved, tmp_path / f"epoch=0-step={step - 1}.ckpt")
    ran = belay("plan", *sorted(tmp_path.glob("*.ckpt")), "--json")
    if version == "1.5.10":
        assert [checkpoint["step"] for checkpoint in ran.json["checkpoints"]] == [10, 20]
    else:
        assert ran.json["error"]["message"].endswith("records step 20, but its name says 19")


@pytest.mark.parametrize("key", ["step", "global_step", "iter_num", "iteration", "steps"])
def test_a_step_at_the_top_of_a_torch_file_counts(tmp_path: Path, belay: Callable[..., Ran], key: str) -> None:
    for step in (10, 20, 40):
        torch.save(
            {"model": {"w": torch.full((4,), float(step))}, key: step, "epoch": 1}, tmp_path / f"{step // 10}.pt"
        )
    ran = belay("plan", *sorted(tmp_path.glob("*.pt")), "--json")
    assert [entry["step"] for entry in ran.json["checkpoints"]] == [10, 20, 40]
    assert ran.json["rule"]["unit"] == "step"
    ran = belay("inspect", *sorted(tmp_path.glob("*.pt")), "--json")
    assert {entry["recognised"]["step"] for entry in ran.json["checkpoints"]} == {f"recorded as {key}"}


@pytest.mark.parametrize(("step", "recorded"), [(100, 101), (100, 99), (100, 100)])
def test_counters_may_be_saved_before_or_after_they_count(
    tmp_path: Path, belay: Callable[..., Ran], step: int, recorded: int
) -> None:
    for n in (step, 2 * step):
        saved = {"model": {"w": torch.zeros(2)}, "step": recorded - step + n}
        torch.save(saved, tmp_path / f"step_{n}.pt")
    ran = belay("plan", *sorted(tmp_path.glob("*.pt")), "--json")
    assert [entry["step"] for entry in ran.json["checkpoints"]] == [step, 2 * step]


@pytest.mark.parametrize("value", [100.0, "100", True, None, -1, 10**18, torch.tensor(100)])
def test_what_is_no_plain_integer_is_no_step(tmp_path: Path, value: Any) -> None:
    torch.save({"model": {"w": torch.zeros(2)}, "step": value}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").step is None


def test_two_records_that_disagree_are_none(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    torch.save({"model": {"w": torch.zeros(2)}, "step": 3, "global_step": 300}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt").step is None
    torch.save({"model": {"w": torch.zeros(2)}, "step": 300}, tmp_path / "step_400.pt")
    ran = belay("plan", tmp_path / "step_400.pt")
    assert ran.code == 1
    assert "records step 300, but its name says 400" in " ".join(ran.err.split())


def test_a_step_of_each_epoch_is_no_step_of_the_run(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for epoch in (1, 2, 10):
        saved = {"model": {"w": torch.full((2,), float(epoch))}, "epoch": epoch, "step": 500}
        torch.save(saved, tmp_path / f"epoch_{epoch}.pt")
    ran = belay("plan", *sorted(tmp_path.glob("*.pt")), "--json")
    assert [entry["name"] for entry in ran.json["checkpoints"]] == ["epoch_1.pt", "epoch_2.pt", "epoch_10.pt"]
    assert ran.json["rule"]["unit"] == "checkpoint"
