"""The callback in the real Trainer of Lightning: what is evaluated, what is saved, what goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file

from belay_cli.errors import UsageError
from belay_cli.training.lightning import BelayCallback
from tests.conftest import Ran
from tests.training.examples import example

PAGE, HEADING = "docs/training.md", "Lightning"

STEPS = 8  # in two epochs
OPTIONS: dict[str, Any] = {"half_life": 3, "stiffness": 5.0, "inertia": 0.5}

Weights = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


class Network(LightningModule):  # type: ignore[misc]
    """A regression; what it finds in evaluations is in `found`, and `before` runs before each of their steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
        self.layers = torch.nn.Sequential(*layers)
        self.found: list[float] = []
        self.before: Callable[[], object] = lambda: None

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layers(batch).squeeze(1) - batch.prod(1)).square().mean()
        return loss

    def predict_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.before()
        loss = self.training_step(batch, index)
        self.found.append(float(loss))
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("loss", self.predict_step(batch, index))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def batches(count: int, seed: int) -> Any:
    rows = torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


TRAINING, HELD_OUT = batches(4, seed=1), batches(1, seed=2)


def trainer_of(*callbacks: Any, directory: str = "run", **options: Any) -> Any:
    """Two epochs of four steps, each with a validation and a checkpoint after that."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saves = ModelCheckpoint(directory, filename="{step}", save_top_k=-1)
    return Trainer(callbacks=[saves, *callbacks], **{"max_steps": STEPS, **quiet, **options})


def trained(resume: str | None = None, **options: Any) -> tuple[Any, Network, BelayCallback]:
    callback, model = BelayCallback(**OPTIONS), Network()
    trainer = trainer_of(callback, **options)
    trainer.fit(model, TRAINING, HELD_OUT, ckpt_path=resume)
    return trainer, model, callback


def weights(model: Any) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def evaluated(state: Weights) -> float:
    """The loss on the held-out batch, by torch alone."""
    model = Network()
    model.load_state_dict(state)
    with torch.no_grad():
        return float(model.eval().training_step(next(iter(HELD_OUT)), 0))


def test_the_average_is_evaluated_and_the_weights_are_saved() -> None:
    trainer, model, callback = trained()
    assert callback.belay.steps == trainer.global_step == STEPS
    average = callback.belay.averaged_state_dict()
    assert not same(average, weights(model))
    assert model.found[-1] == float(trainer.callback_metrics["loss"]) == evaluated(average) != evaluated(weights(model))
    saved = torch.load("run/step=8.ckpt", weights_only=True)
    assert same(saved["state_dict"], weights(model))
    assert same(
        saved["callbacks"]["BelayCallback"]["average"],
        {n: p for n, p in average.items() if n in dict(model.named_parameters())},
    )
    earlier = torch.load("run/step=4.ckpt", weights_only=True)
    assert model.found[-2] == evaluated({**earlier["state_dict"], **earlier["callbacks"]["BelayCallback"]["average"]})


def test_the_check_before_training_is_of_the_weights() -> None:
    model = Network()
    before = evaluated(weights(model))
    trainer_of(BelayCallback(**OPTIONS)).fit(model, TRAINING, HELD_OUT)
    assert len(model.found) == 3
    assert model.found[0] == before


def test_evaluations_leave_the_training_as_it_is() -> None:
    _, model, callback = trained()
    other, plain = BelayCallback(**OPTIONS, evaluate_average=False), Network()
    trainer_of(other, directory="plain").fit(plain, TRAINING, HELD_OUT)
    assert same(weights(model), weights(plain))
    assert same(callback.belay.averaged_state_dict(), other.belay.averaged_state_dict())
    assert plain.found[-1] == evaluated(weights(plain)) != model.found[-1]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_training_goes_on_bit_for_bit(accumulated: int) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": accumulated, "max_epochs": 2, "max_steps": -1}
    trainer, straight, callback = trained(**options)
    assert callback.belay.steps == trainer.global_step == STEPS // accumulated
    _, resumed, again = trained(f"run/step={STEPS // accumulated // 2}.ckpt", directory="other", **options)
    assert same(weights(straight), weights(resumed))
    assert same(callback.belay.averaged_state_dict(), again.belay.averaged_state_dict())
    one, other = callback.state_dict(), again.state_dict()
    assert one["steps"] == other["steps"]
    assert same(one["velocity"], other["velocity"])


def test_a_checkpoint_without_the_state_is_warned_of() -> None:
    trainer_of().fit(Network(), TRAINING, HELD_OUT)
    with pytest.warns(UserWarning, match="^run/step=4.ckpt: no state of Belay .* the average begins anew"):
        _, model, callback = trained("run/step=4.ckpt", directory="other")
    assert callback.belay.steps == 4
    last = weights(model)
    trainer = trainer_of(callback)
    with pytest.warns(UserWarning, match="^run/step=8.ckpt: no state of Belay .* its weights are evaluated"):
        trainer.test(model, HELD_OUT, ckpt_path="run/step=8.ckpt", verbose=False)
    assert model.found[-1] == evaluated(weights(model)) != evaluated(last)


def test_what_is_evaluated_after_the_training_is_the_average_too() -> None:
    trainer, model, callback = trained()
    before, expected = weights(model), evaluated(callback.belay.averaged_state_dict())
    trainer.test(model, HELD_OUT, verbose=False)
    trainer.validate(model, HELD_OUT, verbose=False)
    trainer.predict(model, HELD_OUT)
    assert model.found[-3:] == [expected] * 3
    assert same(weights(model), before)
    other = Network()
    trainer.test(other, HELD_OUT, verbose=False)  # of which there is no average
    assert other.found == [evaluated(weights(other))]


def test_with_a_checkpoint_its_own_average_is_evaluated() -> None:
    trainer, model, callback = trained()
    expected = model.found[-2]  # after four steps
    trainer.test(model, HELD_OUT, ckpt_path="run/step=4.ckpt", verbose=False)
    assert model.found[-1] == expected
    assert callback.belay.steps == 4
    elsewhere, fresh = BelayCallback(**OPTIONS), Network()
    trainer_of(elsewhere).test(fresh, HELD_OUT, ckpt_path="run/step=4.ckpt", verbose=False)
    assert fresh.found == [expected]
    saved = torch.load("run/step=4.ckpt", weights_only=True)["state_dict"]
    assert same(weights(fresh), saved)
    with elsewhere.belay.averaged():  # what was made in Lightning's inference mode can be changed after it
        assert evaluated(elsewhere.belay.averaged_state_dict()) == expected
    assert same(weights(fresh), saved)


def test_another_training_begins_anew() -> None:
    _, model, callback = trained()
    first, x = callback.belay, weights(model)
    trainer_of(callback, directory="other", num_sanity_val_steps=1).fit(model, TRAINING, HELD_OUT)
    assert callback.belay is not first
    assert first.steps == callback.belay.steps == STEPS
    assert model.found[3] == evaluated(x)  # the check before training


def test_the_weights_are_back_after_a_broken_evaluation() -> None:
    class Saves(Callback):  # type: ignore[misc]
        def on_exception(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint("broken.ckpt")

    callback, model = BelayCallback(**OPTIONS), Network()
    x: list[Weights] = []

    def fail() -> None:
        if callback._belay is not None and callback.belay.steps == 4:
            x.append({name: p.detach().clone() for name, p in model.named_parameters()})
            raise ZeroDivisionError

    model.before = fail
    with pytest.raises(ZeroDivisionError):
        trainer_of(callback, Saves()).fit(model, TRAINING, HELD_OUT)
    saved = torch.load("broken.ckpt", weights_only=True)
    (average,) = x
    assert same(saved["callbacks"]["BelayCallback"]["average"], average)
    assert same(saved["state_dict"], weights(model))
    assert not same(average, {name: saved["state_dict"][name] for name in average})


def test_saving_while_the_average_is_in_place_is_an_error() -> None:
    callback, model = BelayCallback(**OPTIONS), Network()
    trainer = trainer_of(callback, num_sanity_val_steps=0)
    model.before = lambda: trainer.save_checkpoint("wrong.ckpt")
    with pytest.raises(UsageError, match="while the average is in"):
        trainer.fit(model, TRAINING, HELD_OUT)
    assert not Path("wrong.ckpt").exists()


def test_the_checkpoints_can_be_averaged(belay: Callable[..., Ran]) -> None:
    trained()
    ran = belay("average", "run", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert [entry["step"] for entry in ran.json["checkpoints"]] == [4, 8]


def test_wrong_options_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="halflife"):
        BelayCallback(halflife=5)
    with pytest.raises(UsageError, match="half_life and decay"):
        BelayCallback(half_life=5, decay=0.9)
    with pytest.raises(UsageError, match="before training begins"):
        _ = BelayCallback().belay


def test_an_explicit_spring_is_refused_because_of_the_closure() -> None:
    callback = BelayCallback(half_life=3, stiffness=1.0, implicit=False)
    with pytest.raises(UsageError, match="a closure would take the gradient after that"):
        trainer_of(callback).fit(Network(), TRAINING, HELD_OUT)


def test_several_optimizers_are_refused() -> None:
    class Two(Network):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layers[0], self.layers[-1])]

    with pytest.raises(UsageError, match="a model with 2 optimizers"):
        trainer_of(BelayCallback()).fit(Two(), TRAINING, HELD_OUT)


def test_a_strategy_that_shards_is_refused() -> None:
    class Sharding(SingleDeviceStrategy):  # type: ignore[misc]
        restore_checkpoint_after_setup = True

    with pytest.raises(UsageError, match="Sharding shards the model"):
        trainer_of(BelayCallback(), strategy=Sharding("cpu")).fit(Network(), TRAINING, HELD_OUT)


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:.*`tensorboardX` has been removed")
def test_the_example_of_the_documentation() -> None:
    names: dict[str, Any] = {}
    exec(example(PAGE, HEADING), names)
    trainer, belay = names["trainer"], names["callback"].belay
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert belay.steps == best["global_step"]
    assert float(trainer.callback_metrics["loss"]) == float(trainer.checkpoint_callback.best_model_score)
    assert same(load_file("average.safetensors"), belay.averaged_state_dict())


@pytest.fixture
def _nothing_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "belay_cli.training.lightning")
    yield


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, _nothing_imported: None) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install lightning"):
        __import__("belay_cli.training.lightning")


def test_the_library_by_its_other_name(monkeypatch: pytest.MonkeyPatch, _nothing_imported: None) -> None:
    import lightning.pytorch

    monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning.pytorch)
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    __import__("belay_cli.training.lightning")
    assert issubclass(sys.modules["belay_cli.training.lightning"].BelayCallback, Callback)
