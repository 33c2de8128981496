"""Tensors that are kept, compared at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli.checkpoints import Checkpoint
from belay_cli.checkpoints import differing as module
from belay_cli.checkpoints.checkpoint import open_checkpoint
from belay_cli.checkpoints.differing import differing
from belay_cli.errors import SeriesError
from belay_cli.storage.files import OpenFiles, Stored
from tests.conftest import Ran


def series(directory: Path, *tables: torch.Tensor) -> list[Checkpoint]:
    paths = [directory / f"step_{step}.safetensors" for step in range(1, len(tables) + 1)]
    for path, table in zip(paths, tables, strict=True):
        save_file({"table": table, "w": torch.ones(2)}, path)
    return [open_checkpoint(path) for path in paths]


def changed(table: torch.Tensor, place: int) -> torch.Tensor:
    other = table.clone()
    other.view(-1)[place] += 1
    return other


@pytest.mark.parametrize("place", [0, 524_287, 524_288, 599_999])
def test_large_tables_are_compared_to_the_end(tmp_path: Path, place: int) -> None:
    table = torch.arange(600_000)
    assert module._CHUNK == 524_288 * 8
    assert differing(series(tmp_path, table, changed(table, place), table), ["table"]) == ["table"]
    assert differing(series(tmp_path, table, table, table), ["table"]) == []


def test_it_ends_at_the_first_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.arange(2_000_000)
    checkpoints = series(tmp_path, changed(table, 3), table, table)
    read, before = [], Stored.read_into

    def read_into(stored: Stored, files: OpenFiles, buffer: memoryview, begin: int) -> None:
        read.append(buffer.nbytes)
        before(stored, files, buffer, begin)

    monkeypatch.setattr(Stored, "read_into", read_into)
    assert differing(checkpoints, ["table"]) == ["table"]
    assert read == [module._CHUNK] * 2
    read.clear()
    assert differing(checkpoints[1:], ["table"]) == []
    assert sum(read) == 2 * table.nbytes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_integers_that_change_like_weights_are_asked_about(tmp_path: Path, dtype: torch.dtype) -> None:
    table = torch.zeros(64, 65, dtype=dtype)
    with pytest.raises(SeriesError) as error:
        differing(series(tmp_path, table, changed(table, 7)), ["table"])
    assert error.value.message.startswith(
        f"'table' holds 4160 numbers of {str(dtype)[6:]} that differ between checkpoints"
    )
    assert (error.value.hint or "").startswith("if they are no weights, keep the last one's: --last 'table'")
    assert differing(series(tmp_path, table, table), ["table"]) == []


@pytest.mark.parametrize("shape", [(5000,), (64, 64)])
def test_counters_and_small_masks_are_not(tmp_path: Path, shape: tuple[int, ...]) -> None:
    table = torch.zeros(shape, dtype=torch.int32)
    assert differing(series(tmp_path, table, changed(table, 7)), ["table"]) == ["table"]


def test_the_command_asks_before_it_writes(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    table = torch.zeros(128, 64, dtype=torch.int8)
    paths = [c.path for c in series(tmp_path, table, changed(table, 7))]
    ran = belay("average", *paths, "-o", "out.safetensors")
    assert ran.code == 1
    assert "'table' holds 8192 numbers of int8 that differ between checkpoints" in ran.err
    assert not (tmp_path / "work/out.safetensors").exists()
    ran = belay("average", *paths, "-o", "out.safetensors", "--last", "table")
    assert ran.code == 0, ran.err
    assert load_file("out.safetensors")["table"][0, 7] == 1
