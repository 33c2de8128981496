"""Two real processes, replicated and sharded, agree with one process on the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file

from belay_cli.training import Belay
from tests.training.models import distance, network, same
from tests.training.ranks import KINDS, RANKS, STEPS, Uneven, begin, dtype_of, evaluated, seen, train

ROOT = Path(__file__).parents[2]
# bfloat16 rounds the sum of two halves of a batch otherwise than the whole one.
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 0.05}

Result = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks have been."""
    directory = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.training.ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(directory)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)
    return directory


@pytest.fixture(scope="module")
def results(directory: Path) -> Result:
    """What each rank saw of a scenario."""
    ranks = [torch.load(directory / f"rank-{rank}.pt", weights_only=False) for rank in range(RANKS)]
    return lambda scenario: [rank[scenario] for rank in ranks]


def alone(kind: str, model: torch.nn.Module, steps: int = STEPS) -> tuple[torch.nn.Module, Belay]:
    """One process on all rows."""
    model, optimizer, belay = begin(kind, model)
    train(model, optimizer, range(steps))
    return model, belay


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference in anything that a training leaves; the counters have to be the same."""
    for part in ("steps", "updates", "released", "since"):
        assert ours[part] == theirs[part]
    worst = 0.0
    for part in ("x", "average", "velocity"):
        assert list(ours[part]) == list(theirs[part])
        if ours[part]:
            worst = max(worst, distance(ours[part].values(), theirs[part].values()))
    return worst


def equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether all of it is, bit for bit."""
    return apart(ours, theirs) == 0 and all(
        same(ours[part].values(), theirs[part].values()) for part in ("x", "average", "velocity", "carry")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_are_one_model_and_agree_with_one_process(kind: str, results: Result) -> None:
    first, second = results(f"parallel {kind}")
    assert equal(first, second)
    model, belay = alone(kind, network(dtype_of(kind)))
    assert apart(first, seen(model, belay)) < CLOSE[dtype_of(kind)]
    assert list(first["average"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_are_evaluated_at_the_average_and_saved_once(kind: str, results: Result, directory: Path) -> None:
    first, second = results(f"parallel {kind}")
    dtype = dtype_of(kind)
    model = network(dtype)
    model.load_state_dict(first["average"])
    for rank in (first, second):
        assert rank["unchanged"]
        assert torch.equal(rank["inside"], evaluated(model))
    stored = load_file(directory / f"parallel-{kind}.safetensors")
    assert same([stored[name] for name in first["average"]], [e.to(dtype) for e in first["average"].values()])


@pytest.mark.parametrize("kind", KINDS)
def test_shards_agree_with_one_process(kind: str, results: Result) -> None:
    first, second = results(f"fsdp {kind}")
    assert equal(first, second)
    model, belay = alone(kind, Uneven(dtype_of(kind)))
    assert apart(first, seen(model, belay)) < CLOSE[dtype_of(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_cut_as_the_parameters_are_with_the_same_keys_on_each_rank(kind: str, results: Result) -> None:
    first, second = results(f"fsdp {kind}")
    names = [name for name, _ in Uneven().named_parameters()]
    _, _, options = KINDS[kind]
    velocity, carry = names if "inertia" in options else [], names if kind == "narrow" else []
    for rank in (first, second):
        assert rank["keys"] == [names, velocity, carry]
        assert [list(rank[part]) for part in ("average", "velocity", "carry")] == rank["keys"]
        assert rank["placed"]
    # Five rows are three and two; of one row the second rank has nothing.
    assert first["rows"] == {"inner.weight": 3, "inner.bias": 3, "outer.weight": 1, "outer.bias": 1}
    assert second["rows"] == {"inner.weight": 2, "inner.bias": 2, "outer.weight": 0, "outer.bias": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_evaluated_at_the_average_and_at_the_weights_again(kind: str, results: Result) -> None:
    """Though FSDP2 keeps what it has gathered of the root's parameters from one evaluation to the next."""
    dtype = dtype_of(kind)
    average, weights = Uneven(dtype), Uneven(dtype)
    for rank in results(f"fsdp {kind}"):
        average.load_state_dict(rank["average"])
        weights.load_state_dict(rank["x"])
        assert torch.equal(rank["before"], evaluated(weights))
        assert torch.equal(rank["inside"], evaluated(average))
        assert torch.equal(rank["inside again"], evaluated(average))
        assert torch.equal(rank["after"], rank["before"])
        assert not torch.equal(rank["inside"], rank["before"])
        assert same(rank["inside state"].values(), rank["average"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_saved_whole_and_once(kind: str, results: Result, directory: Path) -> None:
    path = directory / f"fsdp-{kind}.safetensors"
    stored = load_file(path)
    for rank in results(f"fsdp {kind}"):
        expected = [e.to(dtype_of(kind)) for e in rank["average"].values()]
        assert same([stored[name] for name in rank["average"]], expected)
        for result in (rank["result"], rank["stored inside"]):
            assert list(result) == list(Uneven().state_dict())
            assert same([result[name] for name in rank["average"]], expected)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "17"
    assert json.loads(metadata["belay.training"])["steps"] == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_shards_go_on_from_a_distributed_checkpoint_bit_for_bit(kind: str, results: Result) -> None:
    for rank in results(f"fsdp {kind}"):
        assert rank["counted by reading"] == 0
        assert rank["counted by loading"] == STEPS
        assert rank["straight"]["steps"] == 2 * STEPS
        assert equal(rank["resumed"], rank["straight"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_with_what_two_have_stored(kind: str, results: Result, directory: Path) -> None:
    first, _ = results(f"fsdp {kind}")
    model, optimizer, belay = begin(kind, Uneven(dtype_of(kind)))
    whole = {"model": model.state_dict(), "belay": belay}
    dcp.load(whole, checkpoint_id=directory / f"dcp-{kind}")
    now = seen(model, belay)
    assert equal(now, first)
    if not optimizer.param_groups[0].get("momentum") and kind != "metric":  # their state is not loaded here
        train(model, optimizer, range(STEPS, 2 * STEPS))
        assert apart(first["straight"], seen(model, belay)) < CLOSE[dtype_of(kind)]


def test_belay_may_be_made_while_parameters_are_gathered(results: Result) -> None:
    first, second = results("while gathered")
    assert equal(first, second)
    assert equal(first, results("fsdp average")[0])


def test_parts_of_several_meshes_are_one_training(results: Result) -> None:
    first, second = results("two meshes")
    assert equal(first, second)
    model, belay = alone("average", Uneven())
    assert apart(first, seen(model, belay)) < 1e-6
    for rank in (first, second):
        assert rank["counted by reading"] == 0
        assert rank["placed"]


def test_the_first_fsdp_is_refused(results: Result) -> None:
    for rank in results("by the first FSDP"):
        assert rank == {
            "refused": "the model is sharded by the first FSDP, whose parameters are not those of its state dict",
            "hint": "take FSDP2: torch.distributed.fsdp.fully_shard, fsdp_version 2 of accelerate",
        }


def test_shards_without_a_model_are_not_swapped(results: Result) -> None:
    for rank in results("without a model"):
        assert rank == {
            "refused": "FSDP keeps what it has gathered of a model, "
            "which has to be dropped when the average takes its place",
            "hint": "give the model: Belay(optimizer, model=model, …)",
            "unchanged": True,
        }


def test_a_gradient_on_one_rank_makes_a_step_at_rate_zero_count_on_each(results: Result) -> None:
    for rank in results("rate zero"):
        assert rank["counted"] == [0, 1]
