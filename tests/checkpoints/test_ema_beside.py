"""An EMA in a file or a folder beside the raw weights: never taken without a word, and taken when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Ran


def const(value: int) -> dict[str, torch.Tensor]:
    return {"l.weight": torch.full((4, 3), float(value)), "l.bias": torch.full((4,), float(value))}


def saved(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(const(value), path)


def run_with(raw: str, ema: str) -> None:
    for step in (100, 200):
        saved(Path(f"run/checkpoint-{step}", raw), step)
        saved(Path(f"run/checkpoint-{step}", ema), 10 * step)


def outcome(belay: Callable[..., Any], *options: str) -> Any:
    ran = belay("average", "run", "--unit", "checkpoint", "-o", "out", *options)
    if ran.code:
        return " ".join(ran.err.split())
    (file,) = Path("out").glob("*.safetensors")
    assert belay("verify", "out").code == 0
    return float(load_file(file)["l.bias"][0]), ran.err


PAIRS = [
    ("model.safetensors", "model_ema.safetensors"),
    ("model.safetensors", "model.ema.safetensors"),
    ("model.safetensors", "ema.pt"),
    ("net.pt", "net_ema.pt"),
    ("unet/diffusion_pytorch_model.safetensors", "unet_ema/diffusion_pytorch_model.safetensors"),
    ("transformer/model.safetensors", "transformer_ema/model.safetensors"),
]


@pytest.mark.parametrize(("raw", "ema"), PAIRS)
@pytest.mark.parametrize("source", [None, "raw", "ema"])
def test_the_raw_weights_are_taken_with_a_note_or_the_ema_if_asked(
    belay: Callable[..., Ran], raw: str, ema: str, source: str | None
) -> None:
    run_with(raw, ema)
    value, said = outcome(belay, *(["--source", source] if source else []))
    assert value == (1500 if source == "ema" else 150)
    if source is None and not ema.endswith("ema.pt"):
        assert f"not {Path(ema).parts[0]}" in " ".join(said.split())


@pytest.mark.parametrize("source", [None, "raw", "ema"])
def test_the_plain_name_is_that_of_the_ema_beside_one_that_says_non_ema(
    belay: Callable[..., Ran], source: str | None
) -> None:
    run_with("unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.safetensors")
    found = outcome(belay, *(["--source", source] if source else []))
    if source is None:
        what = "holds raw weights (diffusion_pytorch_model.non_ema.safetensors) and their EMA"
        assert what in found
    else:
        assert found[0] == (1500 if source == "ema" else 150)


def test_a_folder_of_several_that_is_asked_for_says_what_it_leaves(belay: Callable[..., Ran]) -> None:
    for name in ("unet", "vae", "text_encoder", "unet_ema"):
        for step in (100, 200):
            saved(Path(f"run/checkpoint-{step}/{name}/model.safetensors"), step)
    for command in ("plan", "inspect", "average"):
        ran = belay(command, "run", "--subfolder", "unet")
        assert ran.code == 0
        said = " ".join(ran.err.split())
        assert "has other weights, which are in no average: text_encoder/, vae/" in said


def test_a_folder_is_asked_for_of_directories_only(belay: Callable[..., Ran]) -> None:
    saved(Path("step_1.pt"), 1)
    ran = belay("plan", "step_1.pt", "--subfolder", "model")
    assert (ran.code, ran.err) == (
        2,
        "belay: --subfolder model is for directories, and step_1.pt is a file\n       leave it out\n",
    )


def test_an_output_is_not_named_as_a_shard(belay: Callable[..., Ran]) -> None:
    saved(Path("step_1.pt"), 1)
    ran = belay("average", "step_1.pt", "-o", "model-00001-of-00002.safetensors")
    assert ran.code == 1
    assert "is the name of one shard of several" in ran.err
