"""Directories of torch.distributed.checkpoint by other writers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata

from tests.formats.dcp.files import MODEL, contents, plain, read, rewritten, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_the_classes_of_other_writers(tmp_path: Path) -> None:
    directory = rewritten(save(tmp_path / "a", MODEL), lambda _: None, protocol=2)
    text = (directory / ".metadata").read_bytes()
    own = b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n"
    assert own in text
    other = text.replace(own, b"colmo_core.distributed.checkpoint.filesystem\n_StorageInfo\n")
    (directory / ".metadata").write_bytes(other)
    assert contents(read(directory)) == plain(MODEL)
    place, older = b"torch.distributed.checkpoint", b"torch.distributed._shard.sharded_tensor"
    other = text.replace(place + b".metadata\nTensorProperties\n", older + b".metadata\nTensorProperties\n")
    other = other.replace(place + b".metadata\n_MEM_FORMAT_ENCODING\n", older + b".metadata\nMEM_FORMAT_ENCODING\n")
    assert other.count(older) == 2
    (directory / ".metadata").write_bytes(other)
    assert contents(read(directory)) == plain(MODEL)


class ByName(pickle.Pickler):
    """Members of enumerations as Python 3.11.0 pickled them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, metadata._MEM_FORMAT_ENCODING):
            return getattr, (type(value), value.name)
        return NotImplemented


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_enumerations_of_python_3_11(tmp_path: Path, protocol: int) -> None:
    directory = save(tmp_path / "x", MODEL)
    found = pickle.loads((directory / ".metadata").read_bytes())
    with open(directory / ".metadata", "wb") as file:
        ByName(file, protocol).dump(found)
    assert contents(read(directory)) == plain(MODEL)


def test_files_with_several_writers_and_strange_names(tmp_path: Path) -> None:
    state = {
        "ü.weight": torch.ones(2),
        "a/b\\c": torch.zeros(3),
        "": torch.ones(1),
        ".": torch.ones(4),
        "x" * 5000: MODEL["conv.bias"],
    }
    writer = filesystem.FileSystemWriter(tmp_path / "x", thread_count=3, single_file_per_rank=False)
    save(tmp_path / "x", {"model": state}, storage_writer=writer)
    weights = read(tmp_path / "x")
    assert contents(weights) == plain(state)
    assert len(weights.files) == 6
