"""An average in the files of a last checkpoint, as libraries load it and train on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from belay_cli import average, verify
from tests.conftest import Ran

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


class Network(LightningModule):  # type: ignore[misc]
    """A regression with hyper-parameters, a running mean and a scheduler."""

    def __init__(self, width: int, rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Linear(width, 1)
        )
        self.losses: list[float] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = (self.layers(batch).squeeze(1) - batch.prod(1)).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def trainer(directory: str, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saves = ModelCheckpoint(directory, filename="{step}", save_top_k=-1)
    return Trainer(callbacks=[saves], **{**quiet, **options})


def data() -> Any:
    rows = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


def test_lightning_loads_it_and_trains_on_from_it() -> None:
    trainer("run", max_epochs=3).fit(Network(width=8), data())
    assert average("run", "average.ckpt", method="uniform").format == "same"
    average("run", "plain.safetensors", method="uniform")
    expected = load_file("plain.safetensors")

    model = Network.load_from_checkpoint("average.ckpt")
    assert (model.hparams.width, model.hparams.rate) == (8, 0.05)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    last = torch.load("run/step=12.ckpt", weights_only=True)
    goes_on = trainer("on", max_epochs=4)
    goes_on.fit(model := Network(width=8), data(), ckpt_path="average.ckpt")
    assert (goes_on.global_step, len(model.losses)) == (16, 4)

    alone = Network(width=8)  # the same in a loop of one's own
    alone.load_state_dict(expected)
    (optimizer,), (scheduler,) = alone.configure_optimizers()
    optimizer.load_state_dict(last["optimizer_states"][0])
    scheduler.load_state_dict(last["lr_schedulers"][0])
    for index, batch in enumerate(data()):
        optimizer.zero_grad()
        torch.autograd.backward(alone.training_step(batch, index))
        optimizer.step()
    assert alone.losses == model.losses


def test_transformers_load_a_directory_of_torch_files_and_the_trainer_s_state_is_there(
    tmp_path: Path, belay: Callable[..., Ran]
) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=32, n_positions=16, architectures=["GPT2LMHeadModel"])
    for step in (10, 20, 30):
        torch.manual_seed(step)
        model, where = GPT2LMHeadModel(config), tmp_path / f"run/checkpoint-{step}"
        config.save_pretrained(where)
        torch.save(model.state_dict(), where / "pytorch_model.bin")  # tied, as older versions save it
        (where / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        torch.save({"step": step}, where / "optimizer.pt")
    ran = belay("average", tmp_path / "run", "--format", "same", "-o", "out")
    assert ran.code == 0
    assert 'transformers.AutoModelForCausalLM.from_pretrained("out")' in ran.err
    average(tmp_path / "run", "plain")
    found, expected = (AutoModelForCausalLM.from_pretrained(where).state_dict() for where in ("out", "plain"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()
    assert torch.load("out/optimizer.pt") == {"step": 30}
    assert json.loads(Path("out/trainer_state.json").read_text()) == {"global_step": 30}
    assert verify("out", sample="all").ok
