"""A file is what its first bytes say, whatever it is called."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from belay_cli.checkpoints import open_checkpoint
from belay_cli.errors import CheckpointError
from belay_cli.formats.foreign import SNIFFED, by_first_bytes
from belay_cli.formats.safetensors import read_header
from tests.conftest import raw_safetensors

STATE = {"w": torch.ones(4)}


def torch_file(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, **options)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "text")
    return buffer.getvalue()


TORCH = ("is a torch file under another name", "rename it to end in .pt")
SAFETENSORS = ("is a safetensors file under another name", "rename it to end in .safetensors")
ZIP = ("is a zip archive", "unpack it; what is inside is read")
NAMES = {
    "checkpoint_1000": (torch_file(), TORCH),
    "model.step_1000": (torch_file(), TORCH),
    "model.ckpt.50": (torch_file(), TORCH),
    "wrong.safetensors": (torch_file(), TORCH),
    "weights": (save(STATE), SAFETENSORS),
    "weights.dat": (save(STATE), SAFETENSORS),
    "weights.pt": (save(STATE), SAFETENSORS),
    "archive.safetensors": (archive(), ZIP),
    "archive.dat": (archive(), ZIP),
    "old.safetensors": (
        torch_file(_use_new_zipfile_serialization=False),
        (
            "is in torch's format from before version 1.6",
            "write it anew with a current torch: torch.save(torch.load(path, weights_only=True), path)",
        ),
    ),
    "pointer.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        ("is a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_under_another_name(tmp_path: Path, name: str) -> None:
    content, (what, mend) = NAMES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path / name)
    assert (error.value.message, error.value.hint) == (what, mend)


def test_a_directory_of_files_without_a_suffix(tmp_path: Path) -> None:
    for step in (1000, 2000):
        (tmp_path / f"checkpoint_{step}").write_bytes(torch_file())
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert error.value.message == "holds checkpoint_1000, which is a torch file under another name"
    assert error.value.hint == "rename it to end in .pt"


@pytest.mark.parametrize("version", [torch_file(), torch_file(_use_new_zipfile_serialization=True)])
def test_what_torch_saves_is_known_by_its_first_bytes(version: bytes) -> None:
    found = by_first_bytes(version[:SNIFFED])
    assert found is not None
    assert found.what.startswith("is a torch file")


@pytest.mark.parametrize("head", [b"", b"\0" * SNIFFED, b"text", b"\xff" * SNIFFED, b"PK", b"{}"])
def test_nothing_is_guessed(head: bytes) -> None:
    assert by_first_bytes(head) is None


def test_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from belay_cli.storage.local import LocalFile

    (tmp_path / "big").write_bytes(torch_file() + b"\0" * 1_000_000)
    reads, before = [], LocalFile.read_at

    def read_at(file: LocalFile, offset: int, count: int) -> bytes:
        reads.append((offset, count))
        return before(file, offset, count)

    monkeypatch.setattr(LocalFile, "read_at", read_at)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "big")
    assert reads == [(0, SNIFFED)]


PARTS = {
    "__0_0.distcp": "a part of a torch.distributed.checkpoint",
    "mp_rank_00_model_states.optim.npz": "ranks of Megatron-LM",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_as_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"is {PARTS[name]}, which belay does not read"):
        open_checkpoint(tmp_path / name)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def test_metadata_of_null_is_none(tmp_path: Path) -> None:
    path = raw_safetensors(tmp_path / "a.safetensors", {"__metadata__": None, "w": ONE}, b"\0" * 4)
    assert read_header(path).metadata == {}
    with safe_open(path, "pt") as file:
        assert file.metadata() is None
        assert list(file.keys()) == ["w"]


@pytest.mark.parametrize("metadata", [[], "", 0, False, {"a": None}, {"a": 1}])
def test_other_metadata_that_is_no_text_is_refused(tmp_path: Path, metadata: Any) -> None:
    path = raw_safetensors(tmp_path / "a.safetensors", {"__metadata__": metadata, "w": ONE}, b"\0" * 4)
    with pytest.raises(CheckpointError, match="whose __metadata__ is not text by text"):
        read_header(path)


def test_a_whole_file_is_read_as_before(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert read_header(tmp_path / "a.safetensors").metadata == {"format": "pt"}
