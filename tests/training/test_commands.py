"""An average that was kept in training, met by the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from belay_cli.training import Belay
from tests.conftest import Ran


@pytest.fixture
def run() -> Path:
    """Three averages, at steps 10, 20 and 30."""
    folder = Path("run")
    folder.mkdir()
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    belay = Belay(optimizer, model=model, half_life=10, stiffness=1.0)
    for step in range(1, 31):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.ones(1, 4)).square().sum())
        optimizer.step()
        if step % 10 == 0:
            belay.save(folder / f"step-{step}.safetensors")
    return folder


def test_it_is_refused_among_checkpoints(belay: Callable[..., Ran], run: Path) -> None:
    ran = belay("average", run, "-o", "out.safetensors")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "belay: run/step-10.safetensors: was written by belay: it is an average, not a checkpoint\n"
        "       leave it out, or say --allow-averages\n"
    )
    assert not Path("out.safetensors").exists()


def test_it_is_taken_when_averages_are_allowed(belay: Callable[..., Ran], run: Path) -> None:
    ran = belay("average", run, "-o", "out.safetensors", "--allow-averages", "--json")
    assert ran.code == 0
    assert [one["step"] for one in ran.json["checkpoints"]] == [10, 20, 30]
    assert belay("verify", "out.safetensors", "--checkpoints", run).code == 0


def test_inspect_says_what_it_is(belay: Callable[..., Ran], run: Path) -> None:
    ran = belay("inspect", run / "step-10.safetensors")
    assert ran.code == 0
    assert "  weights     an average\n  average     of training, by belay_cli.training\n" in ran.out
    assert "step-20.safetensors was written by belay: it is an average" in belay("inspect", run).err


@pytest.mark.parametrize("command", [["verify"], ["verify", "--checkpoints", "run", "--"]])
def test_it_cannot_be_verified(belay: Callable[..., Ran], run: Path, command: list[str]) -> None:
    ran = belay(*command, run / "step-10.safetensors")
    assert ran.code == 1
    assert ran.err == (
        "belay: run/step-10.safetensors: is an average that was kept in training: there are no checkpoints to make it "
        "again from\n       what made it is in its metadata, under belay.training\n"
    )


def test_the_state_of_belay_is_no_weights(belay: Callable[..., Ran]) -> None:
    """A checkpoint of the Trainer holds it beside the weights."""
    for step in (10, 20, 30, 40):
        folder = Path(f"run/checkpoint-{step}")
        folder.mkdir(parents=True)
        torch.save({"weight": torch.ones(2) * step}, folder / "pytorch_model.bin")
        torch.save({"steps": step, "average": {"weight": torch.zeros(2)}}, folder / "belay.pt")
    ran = belay("average", "run", "-o", "out", "--json")
    assert ran.code == 0
    assert ran.json["warnings"] == []
