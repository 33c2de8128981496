"""Outputs as tests look at them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import everything_in


def contents(directory: str) -> dict[str, bytes]:
    return {name: Path(directory, name).read_bytes() for name in everything_in(Path(directory)) if name != ".belay"}


def loads(directory: str) -> bool:
    """Whether a loader would find weights there: a single file, or an index with all its shards."""
    index = Path(directory, "model.safetensors.index.json")
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return all(Path(directory, name).exists() for name in names)
