"""An average in the files of a sharded checkpoint: three real processes train on from it, as one process does."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from belay_cli import verify
from tests.interop.same_ranks import LAYOUTS, MORE, RANKS, SAVED, Network, optimizer_of, train

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks have been."""
    directory = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.interop.same_ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(directory)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        errors = [rank.communicate(timeout=180)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)
    return directory


def seen(directory: Path, layout: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(directory / f"rank-{rank}.pt")[layout]
    return found


def dense(directory: Path) -> dict[str, Any]:
    """A sharded checkpoint as one process has it, by torch alone."""
    file = io.BytesIO()
    dcp_to_torch_save(directory, file)  # type: ignore[arg-type]
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=False)
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_processes_share_it_unevenly(directory: Path, layout: str) -> None:
    assert [seen(directory, layout, rank)["rows"]["embed.weight"] for rank in range(RANKS)] == [3, 3, 1]
    assert [seen(directory, layout, rank)["rows"]["head.weight"] for rank in range(RANKS)] == [1, 0, 0]
    assert len(list((directory / layout / "same").glob("*.distcp"))) == RANKS
    assert len(list((directory / layout / f"step-{SAVED[0]}").glob("*.distcp"))) == 2
    assert len(list((directory / layout / f"step-{SAVED[1]}").glob("*.distcp"))) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_the_average_and_all_else_is_the_last_checkpoint(directory: Path, layout: str) -> None:
    plain = load_file(directory / layout / "plain/model.safetensors")
    last, same = dense(directory / layout / f"step-{SAVED[-1]}"), dense(directory / layout / "same")
    weights = same["model"] if layout == "nested" else same
    before, after = flat(last), flat(same)
    assert list(before) == list(after)
    tensors = {name for name, value in before.items() if isinstance(value, torch.Tensor)}
    assert {n: before[n] for n in before.keys() - tensors} == {n: after[n] for n in before.keys() - tensors}
    differ = {name.rpartition("/")[2] for name in tensors if not torch.equal(before[name], after[name])}
    assert differ == plain.keys() - {"seen"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.items())
    assert (directory / layout / f"step-{SAVED[-1]}/.metadata").read_bytes() == (
        directory / layout / "same/.metadata"
    ).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_verified(directory: Path, layout: str) -> None:
    found = verify(directory / layout / "same", sample="all")
    assert [(check.name, check.status) for check in found.checks] == [
        (name, "held") for name in ("structure", "record", "digests", "coefficients", "inputs", "values")
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_training_goes_on_as_that_of_one_process_does(directory: Path, layout: str) -> None:
    found = seen(directory, layout)
    plain = load_file(directory / layout / "plain/model.safetensors")
    assert found["loaded"].keys() == plain.keys() - {"seen"}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found["loaded"].items())
    assert found["counted"] == SAVED[-1]

    model = Network()
    model.load_state_dict(plain)
    optimizer = optimizer_of(model)
    state = dense(directory / layout / f"step-{SAVED[-1]}")
    for name, p in model.named_parameters():
        if layout == "nested":
            optimizer.state[p] = {k: v.clone() for k, v in state["optim"]["state"][name].items()}
        else:
            optimizer.state[p] = {
                k: state["optimizer"][f"state.{name}.{k}"].clone() for k in ("step", "exp_avg", "exp_avg_sq")
            }
    losses = train(model, optimizer, range(SAVED[-1], SAVED[-1] + MORE))
    assert losses == pytest.approx(found["losses"], rel=1e-6)
    assert losses != pytest.approx(found["straight"], rel=1e-2)  # the average is somewhere else than the run was
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), found["after"][name], rtol=1e-4, atol=1e-6)
