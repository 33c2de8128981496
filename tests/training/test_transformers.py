"""The callback in the real Trainer: what is evaluated, what is saved, what goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from belay_cli.errors import UsageError
from belay_cli.training.transformers import AVERAGE, SHARDED_STATE, STATE, BelayCallback
from tests.conftest import Ran
from tests.training.examples import example

PAGE, HEADING = "docs/training.md", "The Trainer of Hugging Face"

STEPS = 8
OPTIONS: dict[str, Any] = {"half_life": 4, "stiffness": 20.0, "inertia": 0.5}

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small wait for other threads most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = torch.randint(0, 32, (rows, 8), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> Any:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def network(seed: int = 0) -> Any:
    """Two layers, a head tied to the embedding, and dropout, which draws from the generators that a resume restores."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


def trainer_of(*callbacks: Any, optimizer: Any = None, model: Any = None, **arguments: Any) -> Any:
    """8 steps, evaluated every 2 and saved every 4 into `run`, unless told otherwise."""
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    rhythm: dict[str, Any] = {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}
    usual = {"output_dir": "run", "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    return Trainer(
        model=network() if model is None else model,
        args=TrainingArguments(**{**quiet, **rhythm, **usual, **arguments}),
        train_dataset=Numbers(48, seed=0),
        eval_dataset=Numbers(8, seed=1),
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )


def trained(*, resume: Any = None, **arguments: Any) -> tuple[Any, BelayCallback]:
    callback = BelayCallback(**OPTIONS)
    trainer = trainer_of(callback, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def weights(model: Any) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def evaluated(state: Weights) -> float:
    """The loss that a Trainer without the callback finds for these weights."""
    model = network()
    model.load_state_dict(state)
    loss: float = trainer_of(model=model, output_dir="elsewhere").evaluate()["eval_loss"]
    return loss


def losses(trainer: Any) -> dict[int, float]:
    """The losses of the evaluations, by step."""
    return {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}


def loaded(path: str, model: Any = None) -> Weights:
    """The weights in a file for such a model, the tied ones too."""
    model = network(seed=9) if model is None else model
    load_model(model, path)
    return weights(model)


def test_the_average_is_evaluated_and_the_weights_are_saved() -> None:
    trainer, callback = trained()
    average = callback.belay.averaged_state_dict()
    assert callback.belay.steps == trainer.state.global_step == STEPS
    assert not same(average, weights(trainer.model))
    assert losses(trainer)[STEPS] == evaluated(average) != evaluated(weights(trainer.model))
    assert same(loaded("run/checkpoint-8/model.safetensors"), weights(trainer.model))

    state = torch.load(f"run/checkpoint-4/{STATE}", weights_only=True)
    assert state["steps"] == 4
    assert losses(trainer)[4] == evaluated(
        {**state["average"], "lm_head.weight": state["average"]["transformer.wte.weight"]}
    )


def test_evaluations_leave_the_training_as_it_is() -> None:
    trainer, callback = trained()
    other = BelayCallback(**OPTIONS, evaluate_average=False)
    plain = trainer_of(other, output_dir="other")
    plain.train()
    assert same(weights(trainer.model), weights(plain.model))
    assert same(callback.belay.averaged_state_dict(), other.belay.averaged_state_dict())
    assert losses(plain)[STEPS] == evaluated(weights(plain.model)) != losses(trainer)[STEPS]


def test_what_is_evaluated_after_the_training_is_the_average_too() -> None:
    trainer, callback = trained(save_strategy="no")
    before = weights(trainer.model)
    expected = evaluated(callback.belay.averaged_state_dict())
    assert trainer.evaluate()["eval_loss"] == expected
    assert trainer.predict(Numbers(8, seed=1)).metrics["test_loss"] == expected
    assert same(weights(trainer.model), before)


@pytest.mark.parametrize("resume", ["run/checkpoint-4", True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_training_goes_on_bit_for_bit(resume: str | bool, accumulated: int) -> None:
    straight, callback = trained(output_dir="straight", gradient_accumulation_steps=accumulated)
    assert callback.belay.steps == STEPS
    shutil.copytree("straight/checkpoint-4", "run/checkpoint-4")
    resumed, again = trained(resume=resume, gradient_accumulation_steps=accumulated)
    assert again.belay.steps == STEPS
    assert same(weights(straight.model), weights(resumed.model))
    assert same(callback.belay.averaged_state_dict(), again.belay.averaged_state_dict())
    one, other = (torch.load(f"{run}/checkpoint-8/{STATE}", weights_only=True) for run in ("straight", "run"))
    assert same(one.pop("velocity"), other.pop("velocity"))


def test_a_resume_from_elsewhere_says_where_or_warns() -> None:
    _, callback = trained(output_dir="straight")
    with pytest.warns(UserWarning, match="^run/checkpoint-4: no state of Belay .* begins anew at step 4"):
        _, anew = trained(resume="straight/checkpoint-4")
    assert anew.belay.steps == 4
    _, again = trained(resume="straight/checkpoint-4", resume_from_checkpoint="straight/checkpoint-4")
    assert same(callback.belay.averaged_state_dict(), again.belay.averaged_state_dict())
    assert again.belay.steps == STEPS


def test_the_state_of_another_run_is_not_taken() -> None:
    trained(output_dir="straight")
    trained(learning_rate=2e-2)
    with pytest.warns(UserWarning, match="no state of Belay that belongs to these weights"):
        _, anew = trained(resume="straight/checkpoint-4")
    assert anew.belay.steps == 4


def test_a_checkpoint_without_the_state_is_warned_of() -> None:
    trainer_of().train()
    with pytest.warns(UserWarning, match="begins anew at step 4"):
        _, callback = trained(resume="run/checkpoint-4")
    assert callback.belay.steps == 4


def test_the_best_model_has_its_own_average() -> None:
    """The first evaluation is the best: nothing that is learned from random tokens is true of others."""
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "save_steps": 2,
    }
    trainer, callback = trained(**best)
    assert trainer.state.best_global_step == 2
    assert same(loaded("run/checkpoint-2/model.safetensors"), weights(trainer.model))
    assert callback.belay.steps == 2
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric == losses(trainer)[2]
    assert same(loaded(f"run/{AVERAGE}"), callback.belay.averaged_state_dict())
    with safe_open(f"run/{AVERAGE}", "pt") as file:
        assert file.metadata()["step"] == "2"


def test_a_best_model_without_the_state_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BelayCallback, "on_save", lambda *args, **kwargs: None)
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "save_steps": 2,
    }
    with pytest.warns(UserWarning, match="^run/checkpoint-2: no state of Belay .* stays the last one"):
        trained(**best)
    with safe_open(f"run/{AVERAGE}", "pt") as file:
        assert file.metadata()["step"] == "8"


def test_the_run_can_be_averaged_and_inspected(belay: Callable[..., Ran]) -> None:
    _, callback = trained()
    average = callback.belay.averaged_state_dict()
    assert same(loaded(f"run/{AVERAGE}"), average)
    ran = belay("average", "run", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert [entry["step"] for entry in ran.json["checkpoints"]] == [4, 8]
    assert belay("verify", "out", "--checkpoints", "run").code == 0
    assert not list(Path("out").glob("*.pt"))
    assert belay("inspect", f"run/{AVERAGE}").code == 0
    with safe_open(f"run/{AVERAGE}", "pt") as file:
        assert json.loads(file.metadata()["belay.training"])["half_life"] == 4


def test_an_average_is_written_where_there_is_one_and_nobody_declined() -> None:
    trained(save_strategy="no", eval_strategy="no", output_dir="some/where")
    assert [path.name for path in Path("some/where").iterdir()] == [AVERAGE]
    for options in ({"save_average": False}, {"start_step": STEPS}):
        trainer_of(BelayCallback(**options), save_strategy="no", output_dir="none").train()
        assert not list(Path("none").iterdir())


def test_another_training_with_the_same_trainer_begins_anew() -> None:
    callback = BelayCallback(**OPTIONS)
    trainer = trainer_of(callback, save_strategy="no")
    trainer.train()
    first = callback.belay
    trainer.train()
    assert callback.belay is not first
    assert first.steps == callback.belay.steps == STEPS
    assert trainer.evaluate()["eval_loss"] == evaluated(callback.belay.averaged_state_dict())


def test_training_goes_on_after_a_broken_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    straight, _ = trained(output_dir="straight")
    callback = BelayCallback(**OPTIONS)
    trainer = trainer_of(callback)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "prediction_step", interrupt_after(trainer.prediction_step, 2))
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(UsageError, match="while the average is in"):
        trainer.save_model("broken")
    with pytest.raises(UsageError, match="while the average is in"):
        trainer.train(resume_from_checkpoint=True)
    callback.belay.train()
    trainer.train(resume_from_checkpoint=True)
    assert same(weights(straight.model), weights(trainer.model))


def interrupt_after(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls: Iterator[int] = iter(range(times))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return interrupted


def test_wrong_options_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="halflife"):
        BelayCallback(halflife=5)
    with pytest.raises(TypeError, match="model"):
        BelayCallback(model=network())
    with pytest.raises(UsageError, match="half_life and decay"):
        BelayCallback(half_life=5, decay=0.9)
    with pytest.raises(UsageError, match="before training begins"):
        _ = BelayCallback().belay


def test_an_optimizer_that_averages_by_itself_is_refused() -> None:
    class ScheduleFree(torch.optim.SGD):
        def eval(self) -> None: ...

        def train(self) -> None: ...

    model = network()
    optimizer = ScheduleFree(model.parameters())
    with pytest.raises(UsageError, match="ScheduleFree has an eval"):
        trainer_of(BelayCallback(), model=model, optimizer=optimizer).train()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A group of this process alone: the parameters of FSDP2 are of the same kind then as among many."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_sharded_model_has_its_state_in_a_distributed_checkpoint(alone: DeviceMesh) -> None:
    """The Trainer shards on GPUs only, so that its calls are made here."""
    arguments = SimpleNamespace(
        output_dir="run", should_save=True, resume_from_checkpoint=None, load_best_model_at_end=False
    )
    state = SimpleNamespace(global_step=0, best_model_checkpoint=None)

    def begun() -> tuple[Any, Any, BelayCallback]:
        model = fully_shard(network(), mesh=alone)
        optimizer, callback = torch.optim.AdamW(model.parameters(), lr=1e-2), BelayCallback(**OPTIONS)
        callback.on_train_begin(arguments, state, None, model=model, optimizer=optimizer)
        return model, optimizer, callback

    model, optimizer, callback = begun()
    tokens = Numbers(4, seed=0).rows
    for _ in range(4):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    state.global_step = 4
    callback.on_save(arguments, state, None)
    callback.on_train_end(arguments, state, None)
    assert not Path("run/checkpoint-4", STATE).exists()
    assert Path("run/checkpoint-4", SHARDED_STATE).is_dir()
    average = callback.belay.averaged_state_dict()
    assert not any(isinstance(tensor, DTensor) for tensor in average.values())
    assert same(loaded(f"run/{AVERAGE}"), average)
    _, _, resumed = begun()
    assert resumed.belay.steps == 4
    assert same(resumed.belay.averaged_state_dict(), average)
    state.global_step = 5
    with pytest.warns(UserWarning, match="begins anew at step 5"):
        begun()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(example(PAGE, HEADING), names)
    average = names["callback"].belay.averaged_state_dict()
    assert same(weights(names["averaged"]), average)
    with open("run/checkpoint-30/trainer_state.json") as file:
        logged = [entry["eval_loss"] for entry in json.load(file)["log_history"] if "eval_loss" in entry]
    assert names["trainer"].evaluate()["eval_loss"] == logged[-1]
    assert same(loaded(f"run/{AVERAGE}", names["averaged"]), average)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "belay_cli.training.transformers")
    with pytest.raises(ImportError, match="pip install transformers"):
        __import__("belay_cli.training.transformers")
