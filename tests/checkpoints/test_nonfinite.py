"""NaN and infinity are found in every dtype, counted, and in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Checkpoint, find_series
from belay_cli.checkpoints.nonfinite import NonFinite, bytes_of_values, nonfinite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


def series(tmp_path: Path, *states: dict[str, torch.Tensor]) -> tuple[Checkpoint, ...]:
    for step, state in enumerate(states, 1):
        save_file(state, tmp_path / f"step-{step}.safetensors")
    return find_series([tmp_path]).checkpoints


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_checkpoint_has_its_first_tensor_that_is_not_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    good, bad = torch.ones(7, dtype=dtype), torch.tensor([1, NAN, INF, -INF, -NAN], dtype=dtype)
    states = [{"a": good, "b": good, "c": good} | more for more in ({}, {"b": bad[:5], "c": bad}, {"c": bad[2:4]}, {})]
    states = [{name: value.clone().resize_(5) for name, value in state.items()} for state in states]
    states[2]["c"] = torch.tensor([0, INF, -INF, 0, 0], dtype=dtype)
    found = nonfinite(series(tmp_path, *states))
    assert found == [None, NonFinite("b", 2, 2, 2), NonFinite("c", 0, 2, 1), None]
    assert found[1] is not None and found[1].elements == 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_and_the_smallest_numbers_are_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    edge = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 2, -0.0, 0], dtype=dtype)
    assert nonfinite(series(tmp_path, {"w": edge})) == [None]


def test_complex_numbers_count_by_their_parts_and_other_dtypes_not_at_all(tmp_path: Path) -> None:
    state = {
        "c": torch.tensor([complex(1, NAN), complex(INF, INF)]),
        "i": torch.full((3,), -1, dtype=torch.int64),
        "f": torch.full((3,), NAN).to(torch.float8_e5m2),
    }
    checkpoints = series(tmp_path, state)
    assert nonfinite(checkpoints) == [NonFinite("c", 1, 2, 1)]
    assert bytes_of_values(checkpoints) == 16


def test_torch_files_are_read_where_their_tensors_lie(tmp_path: Path) -> None:
    whole = torch.ones(6, 4)
    whole[5, 3] = NAN
    torch.save({"top": whole[:3], "side": whole.t()[2:]}, tmp_path / "step-1.pt")
    assert nonfinite(find_series([tmp_path / "step-1.pt"]).checkpoints) == [NonFinite("side", 1, 0, 1)]


def test_memory_is_that_of_a_chunk_and_progress_is_told(tmp_path: Path) -> None:
    large = torch.ones(8 << 20, dtype=torch.bfloat16)
    large[-1] = NAN
    checkpoints = series(tmp_path, {"w": large, "z": torch.ones(3)}, {"w": large, "z": torch.ones(3)})
    told: list[int] = []
    tracemalloc.start()
    found = nonfinite(checkpoints, told.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [NonFinite("w", 1, 0, 1)] * 2
    assert peak < 16 << 20
    assert told == sorted(told)
    assert told[-1] == bytes_of_values(checkpoints) == 2 * ((16 << 20) + 12)
