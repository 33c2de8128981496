"""Pieces of torch.distributed.checkpoint in other orders and formats, and what is no piece."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.filesystem import SerializationFormat

from tests.formats.dcp.files import (
    GRID,
    blob,
    compressed,
    contents,
    moved,
    plain,
    read,
    refused,
    rewritten,
    save,
    with_piece,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 400, "that is cut short: the directory at its end is not there"),
        (b"\0" * 400, "that is not as torch.save writes it"),
        (blob(GRID)[:-30], "that is cut short: the directory at its end is not there"),
        (compressed(blob(GRID)), "that is compressed ("),
        (blob({"w": GRID}), "that is no tensor"),
        (blob([GRID]), "that is no tensor"),
        (lambda: blob(GRID.to_sparse()), "that is sparse"),
        (blob(torch.zeros(1).expand(4, 5)), "that reaches outside its bytes: it needs 80 and has 4"),
        (lambda: blob(torch.quantize_per_tensor(GRID, 1.0, 0, torch.qint8)), "that is quantized"),
        (blob(GRID.double()), "that is not 4×5 of float32, as the metadata says"),
        (blob(GRID.T), "that is not 4×5 of float32, as the metadata says"),
    ],
)
def test_pieces_that_are_something_else(small: Path, tmp_path: Path, value: Any, message: str) -> None:
    value = value() if callable(value) else value  # what warns is made inside the test
    refused(with_piece(small, tmp_path, value), f"holds a piece of 'w' {message}", file="other.distcp", tensor="w")


def test_a_piece_in_other_orders(small: Path, tmp_path: Path) -> None:
    for number, view in enumerate((GRID.T.contiguous().T, torch.stack([GRID, GRID + 1])[1], compressed)):
        (tmp_path / str(number)).mkdir()
        value = compressed(blob(GRID), zipfile.ZIP_STORED) if view is compressed else blob(view)
        expected = plain({"w": GRID if view is compressed else view})
        assert contents(read(with_piece(small, tmp_path / str(number), value)))["w"] == expected["w"]


def test_strides_that_say_nothing(tmp_path: Path) -> None:
    odd = torch.arange(20.0).as_strided((1, 4, 5), (1 << 62, 1, 4))
    directory = save(tmp_path / "x", {"w": odd.contiguous()})
    data = blob(odd)
    (directory / "__0_0.distcp").write_bytes(data)
    rewritten(directory, moved(offset=0, length=len(data)))
    assert contents(read(directory)) == plain({"w": odd})


def test_pieces_in_safetensors(tmp_path: Path) -> None:
    writer = filesystem.FileSystemWriter(tmp_path / "x", serialization_format=SerializationFormat.SAFETENSORS)
    save(tmp_path / "x", {"w": GRID}, storage_writer=writer)
    error = refused(tmp_path / "x", "that is not as torch.save writes it", file="__0_0.distcp", tensor="w")
    assert error.hint.endswith("by torch's own writer; save it so, or copy it again")
