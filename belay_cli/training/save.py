"""The average as a safetensors file, whole or not there, with what made it inside.

The metadata is `format`, `step`, and under `belay.training` a JSON object: the version, every option, and how many
steps and updates the average has seen.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from belay_cli.errors import OutputError, UsageError
from belay_cli.training.parameters import is_distributed

RECORD = "belay.training"  # the key of the metadata that says that a file holds an average made in training


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all processes; each of them has to ask for it."""
    tensor = tensor.detach()
    full: torch.Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return full


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any], step: int
) -> None:
    """Write the file beside its place, then move it there. Tensors that share memory are written once.

    Raises UsageError for another suffix than .safetensors, OutputError if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path} does not end in .safetensors", hint=f"{path.with_suffix('.safetensors')}")
    plain: dict[str, torch.Tensor] = {}
    first: dict[tuple[int, torch.dtype, torch.Size], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        kept = first.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape), name) if tensor.numel() else name
        if kept != name:
            aliases[name] = kept
        else:
            plain[name] = tensor.to("cpu").contiguous()
    # As safetensors.torch.save_model records names that share bytes: its load_model gives them back.
    metadata = {"format": "pt", "step": str(step), RECORD: json.dumps(record), **aliases}
    try:
        with tempfile.TemporaryDirectory(prefix=".belay-", dir=path.parent) as directory:
            made = Path(directory) / path.name
            save_file(plain, made, metadata)
            with made.open("r+b") as file:
                _sort_metadata(file)
                os.fsync(file.fileno())
            made.replace(path)
    except (OSError, SafetensorError) as error:  # of a full disk safetensors says the latter
        raise OutputError(f"cannot be written ({getattr(error, 'strerror', None) or error})", file=path) from error


def _sort_metadata(file: BinaryIO) -> None:
    """safetensors writes the metadata in any order; in this one the same average has the same bytes every time."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) <= size:  # else it was escaped in another way, and stays as it is
        file.seek(8)
        file.write(text.ljust(size))
