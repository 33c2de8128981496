"""A small directory, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.formats.dcp.files import save


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("small") / "x", {"w": torch.arange(20.0).reshape(4, 5), "b": torch.ones(3)})
