"""Bytes of a torch file that are not those that were saved are refused, wherever they lie."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from belay_cli import average
from belay_cli.errors import CheckpointError
from belay_cli.rules import Ema
from tests.engine.test_replay import replay_on_twin

STEPS = (1, 2, 3)


def state(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return {"a": torch.randn(50, 30, generator=g), "b": torch.randn(7, generator=g), "seen": torch.tensor([step])}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"step-{step}.pt" for step in STEPS]
    for step, path in zip(STEPS, paths, strict=True):
        torch.save(state(step), path)
    return paths


def flip(path: Path, record: str, byte: int) -> None:
    """Turn a bit of a record's data."""
    with zipfile.ZipFile(path) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith(record))
        with archive.open(info) as opened:
            content = opened.read()
    data = bytearray(path.read_bytes())
    at = data.index(content)
    data[at + byte] ^= 1
    path.write_bytes(data)


def message(name: str) -> str:
    return f"{name!r} is not as it was saved: the CRC-32 of its bytes is another"


def test_in_the_files_of_a_last_checkpoint_it_is_named_as_elsewhere(files: list[Path]) -> None:
    flip(files[1], "data/0", 3000)
    with pytest.raises(CheckpointError) as caught:
        average(files, "out.pt")
    assert (caught.value.message, caught.value.tensor) == (message("a"), "a")
    assert os.listdir() == []


@pytest.mark.parametrize("engine", ["", "torch"])
@pytest.mark.parametrize(
    ("number", "record", "byte", "name"), [(1, "data/0", 3000, "a"), (0, "data/1", 0, "b"), (2, "data/2", 7, "seen")]
)
def test_one_bit(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, engine: str, number: int, record: str, byte: int, name: str
) -> None:
    if engine:
        monkeypatch.setenv("BELAY_ENGINE", engine)
    average(files, "whole.safetensors", chunk=64)
    flip(files[number], record, byte)
    several: tuple[dict[str, Any], ...] = ({"chunk": 64}, {"threads": 1})
    for options in several:
        with pytest.raises(CheckpointError) as caught:
            average(files, "out.safetensors", **options)
        assert (caught.value.message, caught.value.tensor) == (message(name), name)
        assert caught.value.file == str(files[number])
    assert os.listdir(".") == ["whole.safetensors"]


def test_on_the_way_to_a_gpu(files: list[Path]) -> None:
    flip(files[1], "data/0", 3000)
    with pytest.raises(CheckpointError) as caught:
        replay_on_twin(files, [Ema()], ["out.safetensors"], chunk=64)
    assert caught.value.message == message("a")


def test_what_has_no_checksum_is_read(files: list[Path]) -> None:
    average(files, "whole.safetensors")
    set_options: Any = torch.serialization.set_crc32_options
    set_options(False)
    try:
        torch.save(state(2), files[1])
    finally:
        set_options(True)
    average(files, "out.safetensors")
    assert Path("out.safetensors").stat().st_size == Path("whole.safetensors").stat().st_size


def test_views_of_one_storage(files: list[Path]) -> None:
    for step, path in zip(STEPS, files, strict=True):
        flat = torch.randn(64 * 40, generator=torch.Generator().manual_seed(step))
        torch.save({"left": flat[: 64 * 10].view(64, 10), "right": flat[64 * 10 :].view(64, 30)}, path)
    average(files, "out.safetensors", chunk=64)
    flip(files[1], "data/0", 9000)
    with pytest.raises(CheckpointError, match="is not as it was saved"):
        average(files, "again.safetensors", chunk=64)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_piece_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    for step in STEPS:
        dcp.save({"model": state(step)}, checkpoint_id=tmp_path / f"dcp/step-{step}")
    average([tmp_path / "dcp"], "out")
    path = tmp_path / "dcp/step-2/__0_0.distcp"
    data = bytearray(path.read_bytes())
    at = data.index(state(2)["a"].numpy().tobytes())
    data[at + 3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        average([tmp_path / "dcp"], "again")
    assert caught.value.message == message("a")
