"""A learning rate that has fallen near zero is read where libraries record it, and said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerState

from belay_cli.checkpoints import find_series
from belay_cli.checkpoints.learning_rate import LearningRate, in_root, in_trainer_state, of_series
from tests.conftest import Ran, make_run, tensors

FALLEN = (
    "averaging will hardly help: the learning rate has fallen to {} from {} ({}), so the last checkpoints are nearly "
    "one; average those of a higher rate: --to-step"
)


def linear(step: int, steps: int = 400) -> float:
    return 3e-4 * (1 - step / steps)


def log(run: Path, steps: range = range(10, 401, 10)) -> None:
    """What the Trainer of transformers writes of a linear decay, by its own class."""
    for checkpoint in sorted(run.iterdir()):
        step = int(checkpoint.name.rpartition("-")[2])
        history = [{"loss": 1.0, "learning_rate": linear(s), "step": s} for s in steps if s <= step]
        history.append({"train_runtime": 1.0, "step": step})
        TrainerState(global_step=step, log_history=history).save_to_json(str(checkpoint / "trainer_state.json"))


def test_the_log_of_a_trainer(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_run(tmp_path / "run")
    log(run)
    said = FALLEN.format("0", "0.000292", "recorded in trainer_state.json")
    assert f"warning: {said}" in belay("plan", run).err.splitlines()
    assert said in belay("plan", run, "--json").json["warnings"]
    assert "learning rate" not in belay("plan", run, "--to-step", 300).err
    assert find_series([run]).last.learning_rate == LearningRate(0.0, linear(10), "recorded in trainer_state.json")


def save(path: Path, step: int, **more: object) -> None:
    torch.save({"state_dict": tensors(step), "global_step": step, **more}, path)


def trained(steps: int, of: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, of)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize(
    ("key", "states"),
    [
        ("lr_schedulers", lambda optimizer, scheduler: [scheduler.state_dict()]),
        ("scheduler", lambda optimizer, scheduler: scheduler.state_dict()),
        ("optimizer_states", lambda optimizer, scheduler: [optimizer.state_dict()]),
        ("optimizer", lambda optimizer, scheduler: optimizer.state_dict()),
    ],
)
def test_schedulers_and_optimizers_of_torch(
    tmp_path: Path, belay: Callable[..., Ran], key: str, states: Callable[..., Any]
) -> None:
    for step in (25, 50, 97):
        save(tmp_path / f"step_{step}.ckpt", step, **{key: states(*trained(step, 100))})
    last = 1e-3 * (1 + math.cos(math.pi * 97 / 100)) / 2
    said = FALLEN.format(f"{last:.3g}", "0.001", f"recorded under {key}")
    assert f"warning: {said}" in belay("plan", tmp_path).err.splitlines()
    assert "learning rate" not in belay("plan", tmp_path, "--to-step", 50).err


def test_a_rate_that_stays_high_is_not_mentioned(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (25, 50, 90):
        save(tmp_path / f"step_{step}.ckpt", step, lr_schedulers=[trained(step, 100)[1].state_dict()])
    assert "learning rate" not in belay("plan", tmp_path).err


@pytest.mark.parametrize(
    "root",
    [
        None,
        [],
        {"lr_schedulers": None},
        {"lr_schedulers": [[], 5, {"_last_lr": None}]},
        {"lr_schedulers": [{"_last_lr": ["x", True, math.nan, math.inf, -1.0, 10**400]}]},
        {"optimizer": {"param_groups": 5}},
        {"optimizer": tensors()["embed.weight"]},
    ],
)
def test_what_is_no_rate_is_none(root: Any) -> None:
    assert in_root(root) is None


@pytest.mark.parametrize(
    "state", [None, [], {}, {"log_history": 5}, {"log_history": [5, {}, {"learning_rate": "1e-3"}]}]
)
def test_what_is_no_log_is_none(state: Any) -> None:
    assert in_trainer_state(state) is None


def test_the_largest_is_that_of_any_checkpoint_and_the_last_that_of_the_last() -> None:
    rates = [LearningRate(0.1, 0.2, "a"), None, LearningRate(0.3, 0.3, "b"), LearningRate(1e-4, 1e-4, "c")]
    assert of_series(rates) == LearningRate(1e-4, 0.3, "c")
    assert of_series([*rates, None]) is None
    assert of_series([]) is None


def test_a_rate_of_many_digits_is_no_failure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    state = run / "checkpoint-400/trainer_state.json"
    state.write_text(json.dumps({"global_step": 400, "log_history": [{"learning_rate": 10**400}]}))
    assert find_series([run]).last.learning_rate is None
