"""`-m best`: which checkpoints, by what the run recorded, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from belay_cli import Best, UsageError, average
from tests.conftest import Ran, make_files, make_run, tensors

Command = Callable[..., Ran]
STEPS = (100, 200, 300, 400)


def weights(ran: Ran) -> list[float]:
    """The coefficients that a plan or an average with --json has."""
    assert ran.code == 0, ran.out
    return [checkpoint["coefficient"] for checkpoint in ran.json["checkpoints"]]


def refused(ran: Ran, message: str, hint: str | None = None, code: int = 2) -> None:
    assert (ran.code, ran.out) == (code, "")
    assert ran.err == f"belay: {message}\n" + (f"       {hint}\n" if hint else "")


# ---- which


@pytest.mark.parametrize(
    ("scores", "mode", "best", "expected"),
    [
        ("0.31,0.25,0.27,0.26", "min", 2, [0, 0.5, 0, 0.5]),
        ("0.31,0.25,0.27,0.26", "max", 2, [0.5, 0, 0.5, 0]),
        ("0.31,0.25,0.27,0.26", "min", 1, [0, 1, 0, 0]),
        ("0.31,0.25,0.27,0.26", "min", 4, [0.25] * 4),
        ("1,1,1,1", "min", 2, [0, 0, 0.5, 0.5]),  # of two alike, the later
        ("1,1,1,1", "max", 1, [0, 0, 0, 1]),
        ("-2,-1,-2,-3", "max", 2, [0, 0.5, 0.5, 0]),
    ],
)
def test_which_are_taken(scores: str, mode: str, best: int, expected: list[float], belay: Command) -> None:
    make_files(Path("ckpts"))
    assert weights(belay("plan", "ckpts", "--best", best, f"--scores={scores}", "--mode", mode, "--json")) == expected


def test_best_alone_is_the_method(belay: Command) -> None:
    make_files(Path("ckpts"))
    given = ("--scores", "3,1,2,4", "--mode", "min", "--json")
    assert belay("plan", "ckpts", "--best", 3, *given).json["rule"] == {
        "method": "best",
        "unit": "step",
        "best": 3,
        "metric": None,
        "scores": [3, 1, 2, 4],
        "mode": "min",
    }
    assert (
        belay("plan", "ckpts", "--best", 3, *given).out == belay("plan", "ckpts", "-m", "best", "--best", 3, *given).out
    )


def test_five_are_the_default(belay: Command) -> None:
    make_files(Path("ckpts"), range(100, 800, 100))
    given = ("--scores", "7,6,5,4,3,2,1", "--mode", "min", "--json")
    assert weights(belay("plan", "ckpts", "-m", "best", *given)) == [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_the_average_is_their_mean_and_verifies(belay: Command) -> None:
    make_files(Path("ckpts"))
    assert (
        belay("average", "ckpts", "-o", "out.safetensors", "--best", 2, "--scores", "3,1,2,1", "--mode", "min").code
        == 0
    )
    expected = (tensors(1)["embed.weight"].double() + tensors(3)["embed.weight"].double()) / 2
    assert torch.equal(load_file("out.safetensors")["embed.weight"], expected.float())
    assert belay("verify", "out.safetensors", "--checkpoints", "ckpts").code == 0


def test_what_is_said_of_it(belay: Command) -> None:
    make_files(Path("ckpts"))
    out = belay("plan", "ckpts", "--best", 2, "--scores", "3,1,2,1", "--mode", "min").out
    assert "Mean of the best, 2 of 4 checkpoints, the least: steps 200, 400\n" in out
    assert "  chosen by these scores, it does better on their data than on others; judge it elsewhere\n" in out


# ---- Hugging Face's Trainer


def trainer_run(logs: Mapping[int, list[dict[str, Any]]]) -> None:
    """A run whose trainer_state.json transformers writes; each checkpoint's has the log until then."""
    from transformers import TrainerState

    make_run(Path("run"), tuple(logs))
    log: list[dict[str, Any]] = []
    for step, entries in logs.items():
        log += entries
        state = TrainerState(global_step=step, max_steps=max(logs), log_history=list(log))
        state.save_to_json(f"run/checkpoint-{step}/trainer_state.json")


def evaluated(losses: list[float]) -> dict[int, list[dict[str, Any]]]:
    """What the Trainer logs: a training loss at every second step, and an evaluation at each."""
    found: dict[int, list[dict[str, Any]]] = {}
    for step, loss in zip(STEPS, losses, strict=True):
        training = [{"loss": 9.0 - step / 100, "learning_rate": 1e-3, "epoch": 0.5, "step": step}]
        evaluation = {"eval_loss": loss, "eval_accuracy": 1 - loss, "eval_runtime": 1.5, "epoch": 0.5, "step": step}
        found[step] = [*(training if step % 200 == 0 else []), evaluation]
    return found


LOSSES = [0.31, 0.25, 0.27, 0.26]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--metric", "eval_loss"], [0, 0.5, 0, 0.5]),  # for a loss the good end is known
        (["--metric", "loss"], [0, 0.5, 0, 0.5]),  # and not the training loss, which only some have
        (["--metric", "eval_accuracy", "--mode", "max"], [0, 0.5, 0, 0.5]),
        (["--metric", "accuracy", "--mode", "max"], [0, 0.5, 0, 0.5]),
        (["--metric", "accuracy", "--mode", "min"], [0.5, 0, 0.5, 0]),
        (["--metric", "eval_loss", "--mode", "max"], [0.5, 0, 0.5, 0]),
    ],
)
def test_a_metric_of_the_trainer(words: list[str], expected: list[float], belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    assert weights(belay("plan", "run", "--best", 2, *words, "--json")) == expected


def test_the_title_has_the_metric(belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    out = belay("plan", "run", "--best", 2, "--metric", "eval_loss").out
    assert "Mean of the best, 2 of 4 checkpoints by eval_loss, the least: steps 200, 400\n" in out


def test_an_output_keeps_the_scores(belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    report = average("run", "out", method=Best(2, "eval_loss"))
    assert report.to_json()["rule"]["scores"] == LOSSES
    record = json.loads(Path("out/belay.json").read_text())
    assert record["rule"]["metric"] == "eval_loss"
    assert belay("verify", "out").code == 0


def test_a_metric_that_was_not_recorded(belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    hint = "--scores FILE, with a number for each checkpoint, or leave those out"
    ran = belay("plan", "run", "--best", 2, "--metric", "eval_bleu", "--mode", "max")
    refused(ran, "checkpoint-100 and 3 more record no eval_bleu", hint)
    trainer_run_without_the_first_evaluation()
    refused(belay("plan", "run", "--best", 2, "--metric", "eval_loss"), "checkpoint-100 records no eval_loss", hint)
    assert weights(belay("plan", "run", "--best", 1, "--metric", "loss", "--from-step", 200, "--json")) == [1, 0, 0]


def trainer_run_without_the_first_evaluation() -> None:
    logs = evaluated(LOSSES)
    logs[100] = []
    for step in STEPS:
        state = {"global_step": step, "log_history": [entry for s in STEPS if s <= step for entry in logs[s]]}
        Path(f"run/checkpoint-{step}/trainer_state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (10**400, "inf")])
def test_a_recorded_score_that_is_no_number(value: float, shown: str, belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    state = json.loads(Path("run/checkpoint-200/trainer_state.json").read_text())
    state["log_history"][-1]["eval_loss"] = value
    Path("run/checkpoint-200/trainer_state.json").write_text(json.dumps(state))
    refused(belay("plan", "run", "--best", 2, "--metric", "eval_loss"), f"a score cannot be {shown}")


@pytest.mark.parametrize("log", [None, 3, "text", [3, None, {}], [{"step": 200, "eval_loss": "0.2"}]])
def test_a_log_that_is_none(log: Any, belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    state = {"global_step": 200, "log_history": log}
    Path("run/checkpoint-200/trainer_state.json").write_text(json.dumps(state))
    ran = belay("plan", "run", "--best", 2, "--metric", "eval_loss")
    assert ran.err.startswith("belay: checkpoint-200 records no eval_loss\n")
    assert ran.code == 2


# ---- Lightning


@pytest.fixture
def lightning_run() -> None:
    """Five epochs, and two callbacks that save at each: by accuracy in `by-accuracy`, by loss in `by-loss`."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.layer(batch).square().mean()  # type: ignore[no-any-return]

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("accuracy", float(self.global_step % 3))  # 1, 2, 0, 1, 2 at steps 4, 8, 12, 16, 20
            self.log("val_loss", 100.0 + abs(self.global_step - 12))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[var-annotated, arg-type]
    saved = {"filename": "{step}", "save_top_k": -1}
    callbacks = [
        ModelCheckpoint("by-accuracy", monitor="accuracy", mode="max", **saved),
        ModelCheckpoint("by-loss", monitor="val_loss", **saved),
    ]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=5, accelerator="cpu", callbacks=callbacks, **quiet).fit(Model(), loader, loader)


@pytest.mark.filterwarnings("ignore")  # Lightning's
@pytest.mark.usefixtures("lightning_run")
def test_a_run_of_lightning(belay: Command) -> None:
    # The record says which end is good.
    assert weights(belay("plan", "by-accuracy", "--best", 2, "--metric", "accuracy", "--json")) == [0, 0.5, 0, 0, 0.5]
    assert weights(belay("plan", "by-loss", "--best", 3, "--metric", "val_loss", "--json")) == pytest.approx(
        [0, 1 / 3, 1 / 3, 1 / 3, 0]
    )
    ran = belay("plan", "by-accuracy", "--best", 2, "--metric", "accuracy", "--mode", "min")
    refused(ran, "--mode min, but the run says that of accuracy the max is good")
    # What the other callback has for the file is the score of an epoch before.
    ran = belay("plan", "by-accuracy", "--best", 2, "--metric", "val_loss", "--from-step", 8)
    refused(
        ran,
        "step=8.ckpt and 3 more record no val_loss",
        "--scores FILE, with a number for each checkpoint, or leave those out",
    )
    ran = belay("plan", "by-loss", "--best", 2, "--metric", "loss")
    assert ran.err.startswith("belay: step=4.ckpt and 4 more record no loss\n")


# ---- refused


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["-m", "best"],
            "--method best takes the scores of the checkpoints",
            "--metric eval_loss, as the run recorded it, or --scores FILE",
        ),
        (["--best", "0", "--scores", "1,2,3,4"], "--best must be 1 or more, not 0", None),
        (
            ["--best", "5", "--scores", "1,2,3,4", "--mode", "min"],
            "--best 5 is more than the 4 checkpoints of the series",
            None,
        ),
        (
            ["-m", "best", "--scores", "1,2,3,4", "--mode", "min"],
            "--best 5 is more than the 4 checkpoints of the series",
            None,
        ),
        (
            ["--best", "2", "--scores", "1,2,3,4"],
            "which end of the scores is good is not known",
            "--mode min or --mode max",
        ),
        (
            ["--best", "2", "--scores", "1,2,3,4", "--metric", "eval_loss"],
            "--metric and --scores say the same thing twice",
            "give one of them",
        ),
        (["--scores", "1,2,3,4"], "--method ema takes no --scores", "--scores belongs to --method best"),
        (
            ["--best", "2", "--scores", "1,2,3,4", "--mode", "least"],
            "--mode least is unknown",
            "one of: min, max",
        ),
    ],
)
def test_what_is_refused(words: list[str], message: str, hint: str | None, belay: Command) -> None:
    make_files(Path("ckpts"))
    refused(belay("plan", "ckpts", *words), message, hint)


def test_which_end_of_a_metric_is_not_known(belay: Command) -> None:
    trainer_run(evaluated(LOSSES))
    ran = belay("plan", "run", "--best", 2, "--metric", "eval_accuracy")
    refused(ran, "which end of eval_accuracy is good is not known", "--mode min or --mode max")


def test_scores_of_python() -> None:
    make_files(Path("ckpts"))
    by_name = {f"step-{step}.safetensors": score for step, score in zip(STEPS, LOSSES, strict=True)}
    for scores in (tuple(LOSSES), by_name):
        report = average("ckpts", "out.safetensors", method=Best(2, None, scores, "min"), overwrite=True)
        assert [one.coefficient for one in report.checkpoints] == [0, 0.5, 0, 0.5]
    with pytest.raises(UsageError, match="--best must be 1 or more, not -1"):
        Best(-1)


@pytest.mark.parametrize(
    "told",
    [
        {"best": 3, "metric": None, "scores": [1.0, 2.0], "mode": "min"},
        {"best": None, "metric": None, "scores": [1.0, 2.0], "mode": "min"},
        {"best": 1, "metric": None, "scores": [1.0, 2.0], "mode": None},
        {"best": 1, "metric": None, "scores": [1.0, np.nan], "mode": "min"},
        {"best": 1, "metric": None, "scores": [1.0, True], "mode": "min"},
        {"best": 1, "metric": None, "scores": "1,2", "mode": "min"},
        {"best": 0, "metric": None, "scores": [1.0, 2.0], "mode": "min"},
        {"best": 1, "metric": None, "scores": [1.0, 2.0], "mode": "least"},
        {"best": 1, "metric": None},
    ],
)
def test_a_record_that_cannot_be(told: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, UsageError)):
        Best.from_parameters(told)
