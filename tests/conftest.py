"""What the tests share: small series on disk, and the command line in this process and in its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from belay_cli import cli

# Shared machines are noisy: no test fails for being slow.
settings.register_profile("belay", deadline=None)
settings.load_profile("belay")

# CUDA tests are not collected without CUDA, so that a skip always means that something is missing.
collect_ignore = [] if torch.cuda.is_available() else ["engine/test_cuda.py", "training/test_cuda.py"]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "80")


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def belay(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


def belay_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would: a process of its own."""
    command = [sys.executable, "-m", "belay_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A small model: two layers, an integer buffer, a scalar, an empty tensor."""
    g = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(37, 11, generator=g).to(dtype),
        "layer.weight": torch.randn(8, 5, generator=g).to(dtype),
        "layer.bias": torch.randn(8, generator=g).to(dtype),
        "scale": torch.randn((), generator=g).to(dtype),
        "nothing": torch.zeros(0, 3, dtype=dtype),
        "seen": torch.tensor(seed, dtype=torch.int64),
    }


def make_files(
    directory: Path,
    steps: Sequence[int | str] = (100, 200, 300, 400),
    dtype: torch.dtype = torch.float32,
    name: str = "step-{}.safetensors",
) -> list[Path]:
    """A series of files; the seed of each checkpoint is its place."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, step in enumerate(steps):
        paths.append(directory / name.format(step))
        save_file(tensors(seed, dtype), paths[-1], metadata={"format": "pt"})
    return paths


def make_run(directory: Path, steps: Sequence[int] = (100, 200, 300, 400), dtype: torch.dtype = torch.float32) -> Path:
    """A run directory as the HF Trainer leaves it, optimizer and all."""
    for seed, step in enumerate(steps):
        checkpoint = directory / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        save_file(tensors(seed, dtype), checkpoint / "model.safetensors", metadata={"format": "pt"})
        (checkpoint / "config.json").write_text(json.dumps({"architectures": ["Tiny"], "step": step}))
        (checkpoint / "tokenizer.json").write_text("{}")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
        (checkpoint / "optimizer.pt").write_bytes(b"\x80\x04not to be opened")
        (checkpoint / "training_args.bin").write_bytes(b"\x80\x04not to be opened")
    return directory


def shard(directory: Path, parts: Sequence[dict[str, torch.Tensor]], stem: str = "model") -> None:
    """A sharded checkpoint with its index."""
    directory.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def raw_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """A file with this header (text, bytes or an object), whatever it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def everything_in(directory: Path) -> list[str]:
    """Every path below a directory, hidden ones too."""
    return sorted(os.path.relpath(Path(root) / n, directory) for root, d, f in os.walk(directory) for n in d + f)


def make_adapter(directory: Path, seed: int) -> None:
    directory.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    prefix = "base_model.model.layer.q_proj"
    factors = {"lora_A": torch.randn(2, 6, generator=g), "lora_B": torch.randn(5, 2, generator=g)}
    save_file({f"{prefix}.{name}.weight": x for name, x in factors.items()}, directory / "adapter_model.safetensors")
    config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}'
    (directory / "adapter_config.json").write_text(config)
