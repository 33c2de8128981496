"""Files of weights that are damaged, each in its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.conftest import raw_safetensors, tensors


def lie(path: Path, **changes: Any) -> Path:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return raw_safetensors(path, {"w": entry}, b"12345678")


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-5])
    return path


def with_tensor(path: Path, **changes: Any) -> Path:
    save_file(tensors(1) | changes, path)
    return path
