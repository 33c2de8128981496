"""A few mutations of each reader's file; `make fuzz` tries a hundred thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.readers import READERS


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", READERS)
def test_mutations(tmp_path: Path, name: str) -> None:
    (tmp_path / "place").mkdir()
    found = fuzz(READERS[name](tmp_path / "place"), 40, seed=1)
    assert found.faults == []
    assert found.refused + found.read == 40
