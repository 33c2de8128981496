"""Records whose names differ in case alone: torch takes one of them for the other."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from belay_cli.checkpoints import open_checkpoint
from belay_cli.errors import CheckpointError


@pytest.mark.parametrize("name", ["step-1/DATA/0", "step-1/DATA.PKL", "step-1/BYTEORDER"])
def test_two_cases_of_a_name_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    assert open_checkpoint(path).tensors["w"].elements == 4
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, b"\0" * 16)
    with pytest.raises(CheckpointError, match="names of its records differ in case alone"):
        open_checkpoint(path)
