"""Small series of checkpoints that are several models: as sentence-transformers saves them, and as diffusers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STEPS = (100, 200, 300)
Model = dict[str, torch.Tensor]

ST = "sentence_transformers.models"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{ST}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{ST}.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{ST}.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": f"{ST}.Normalize"},
]
INDEX = {
    "_class_name": "TinyPipeline",
    "_diffusers_version": "0.1",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def model(seed: int, width: int = 5) -> Model:
    """Floats of two dtypes and a counter."""
    g = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(6, width, generator=g),
        "conv.bias": torch.randn(6, generator=g).bfloat16(),
        "seen": torch.tensor(seed),
    }


def write(directory: Path, files: Mapping[str, Any]) -> None:
    """Texts, JSON values, and state dicts as safetensors or torch files, by their suffix."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(content, path, metadata={"format": "pt"})
        elif path.suffix == ".bin":
            torch.save(content, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_sentence_transformers(run: Path, steps: Sequence[int] = STEPS) -> Path:
    """The first module at the top, a dense layer in a folder; as git has it, without the folder that is empty."""
    for seed, step in enumerate(steps):
        directory = run / f"checkpoint-{step}"
        write(
            directory,
            {
                "modules.json": MODULES,
                "config.json": {"architectures": ["BertModel"]},
                "config_sentence_transformers.json": {"step": step},
                "model.safetensors": model(seed),
                "1_Pooling/config.json": {"pooling": step},
                "2_Dense/config.json": {"dense": step},
                "2_Dense/model.safetensors": model(10 + seed, 3),
                "trainer_state.json": {"global_step": step},
            },
        )
        torch.save({}, directory / "optimizer.pt")
    return run


def make_pipelines(run: Path, steps: Sequence[int] = STEPS, suffix: str = ".safetensors") -> Path:
    """Three models, a scheduler, a tokenizer and an EMA of the first."""
    for seed, step in enumerate(steps):
        stems = STEMS | ({"text_encoder": "pytorch_model"} if suffix == ".bin" else {})
        models = {f"{n}/{stem}{suffix}": model(10 * k + seed, 3 + k) for k, (n, stem) in enumerate(stems.items())}
        write(
            run / f"checkpoint-{step}",
            {
                **models,
                f"unet_ema/diffusion_pytorch_model{suffix}": model(90 + seed),
                "model_index.json": INDEX,
                "scheduler/scheduler_config.json": {"step": step},
                "tokenizer/vocab.json": {"step": step},
                "text_encoder/config.json": {"dtype": "float32", "step": step},
                "unet/config.json": {"step": step},
                "vae/config.json": {"step": step},
            },
        )
    return run


def averaged(run: Path, name: str, coefficients: Sequence[float]) -> Model:
    """What the average of one file of every checkpoint has to be: floats by float64, the rest from the last."""
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    read = load_file if name.endswith(".safetensors") else torch.load
    models = [read(path / name) for path in checkpoints]
    found = {}
    for key, last in models[-1].items():
        exact: Any = sum(c * state[key].double() for c, state in zip(coefficients, models, strict=True))
        found[key] = exact.to(last.dtype) if last.is_floating_point() else last
    return found


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Assert that two state dicts are equal, bit by bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name
