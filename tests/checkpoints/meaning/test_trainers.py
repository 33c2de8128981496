"""The weights in the checkpoints of Lightning, DeepSpeed and Megatron."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formats.torch.files import assert_same, load, read, refused, saved, sd, torch_bytes


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the real Trainer at step 2: plain, and with the EMA callback."""
    directory = tmp_path_factory.mktemp("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import EMAWeightAveraging

        class Model(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self, width: int = 4) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.net = torch.nn.Linear(width, 2)

            def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
                return self.net(batch[0]).square().sum()

            def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
                optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
                return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]

        class Save(lightning.Callback):  # type: ignore[misc]
            def __init__(self, name: str) -> None:
                self.name = name

            def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
                if trainer.global_step == 2:
                    trainer.save_checkpoint(directory / self.name)

        data = torch.utils.data.TensorDataset(torch.randn(4, 4))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        for name, callbacks in (("plain.ckpt", []), ("averaged.ckpt", [EMAWeightAveraging(decay=0.5)])):
            trainer = lightning.Trainer(
                max_steps=2, accelerator="cpu", enable_checkpointing=False, callbacks=[*callbacks, Save(name)], **quiet
            )
            trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=2))
    return directory


def test_a_checkpoint_of_lightning(lightning_run: Path) -> None:
    path = lightning_run / "plain.ckpt"
    found = read(path)
    assert found.step == 2
    assert found.notes == ()
    assert_same(found, load(path)["state_dict"])
    refused(path, "holds no EMA", source="ema")


def test_lightning_with_an_average(lightning_run: Path) -> None:
    path = lightning_run / "averaged.ckpt"
    error = refused(path, "holds raw weights (current_model_state) and their EMA (state_dict)")
    assert error.hint.startswith("say which: --source raw or --source ema; averaging an EMA again")
    content = load(path)
    assert torch_bytes(content["state_dict"]["net.weight"]) != torch_bytes(content["current_model_state"]["net.weight"])
    raw, ema = read(path, source="raw"), read(path, source="ema")
    assert_same(raw, content["current_model_state"])
    assert raw.notes == ("takes the raw weights (current_model_state), not state_dict",)
    assert_same(ema, content["state_dict"])
    assert raw.step == ema.step == 2
    refused(path, "holds only an average of weights (state_dict)", state_key="state_dict")
    assert_same(read(path, state_key="state_dict", source="ema"), content["state_dict"])
    assert_same(read(path, state_key="current_model_state"), content["current_model_state"])


@pytest.mark.parametrize("step", [-1, 10**18, True, 1.0, None, "5"])
def test_a_step_that_is_none(tmp_path: Path, step: Any) -> None:
    content = {"pytorch-lightning_version": "2", "global_step": step, "state_dict": sd()}
    assert read(saved(tmp_path / "a.ckpt", content)).step is None


def test_deepspeed(tmp_path: Path) -> None:
    content = {"module": sd(), "ds_version": "0.15", "global_steps": 40, "mp_world_size": 1, "optimizer": None}
    found = read(saved(tmp_path / "mp_rank_00_model_states.pt", content))
    assert found.step == 40
    assert_same(found, sd())
    path = saved(tmp_path / "a.pt", {**content, "mp_world_size": 2})
    refused(path, "is the part of one of 2 model-parallel ranks")
    path = saved(tmp_path / "b.pt", {**content, "module": {"w": torch.zeros(0)}})
    assert "zero_to_fp32.py" in refused(path, "holds no weights but placeholders ('w')").hint
    path = saved(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt", content)
    assert "zero_to_fp32.py" in refused(path, "is one of the shards of DeepSpeed ZeRO").hint
    path = saved(tmp_path / "x_optim_states.pt", {"optimizer_state_dict": {"fp32": [torch.zeros(3)]}})
    assert "zero_to_fp32.py" in refused(path, "looks like shards of DeepSpeed ZeRO: it holds no state dict").hint


@pytest.mark.parametrize("kind", ["tensor", "pipeline", "expert"])
def test_megatron(tmp_path: Path, kind: str) -> None:
    import argparse

    name = f"{kind}_model_parallel_size"

    path = saved(tmp_path / "model_optim_rng.pt", {"args": argparse.Namespace(a=1)})
    error = refused(
        path, "looks like ranks of Megatron-LM: it needs more than weights to be read: it would import argp"
    )
    assert "convert" in error.hint
    args = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    path = saved(tmp_path / "one.pt", {"model": sd(), "args": argparse.Namespace(**args)})
    assert_same(read(path), sd())
    path = saved(tmp_path / "two.pt", {"model": sd(), "args": argparse.Namespace(**args | {name: 2})})
    assert "ranks together" in refused(path, "is the part of one of 2 model-parallel ranks").hint
