"""What is read as one: tensors that lie side by side, in the output as in every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belay_cli import Ema, average
from belay_cli.api.average import prepare
from belay_cli.api.keywords import plan_options
from belay_cli.engine.chunks import chunks, runs
from belay_cli.planning import Plan
from belay_cli.show.listener import Nobody
from tests.conftest import make_run
from tests.engine.test_replay import digest, tensor_bytes


def planned(path: Path, **options: Any) -> Plan:
    return prepare([path], [Ema()], ["out"], *plan_options(options), Nobody())


def names(plan: Plan) -> list[list[str]]:
    return [[tensor.name for tensor in run.tensors] for run in runs(plan)]


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for i in range(3):
        g = torch.Generator().manual_seed(i)
        rows = {name: torch.randn(n, generator=g) for name, n in (("a", 5), ("b", 700), ("c", 0), ("d", 3), ("e", 64))}
        save(tmp_path / f"run/step-{i}.safetensors", rows)
    return tmp_path / "run"


def test_a_series_of_one_layout_is_one_run(flat: Path) -> None:
    plan = planned(flat)
    (run,) = runs(plan)
    assert [tensor.name for tensor in run.tensors] == ["a", "b", "c", "d", "e"]
    assert (run.starts, run.elements) == ((0, 5, 705, 705, 708), 772)
    assert run.coefficients.shape == (3, 1)
    assert [source.checkpoint for source in run.sources] == [0, 1, 2]


def test_what_divides_a_run(flat: Path) -> None:
    assert names(planned(flat, last="b")) == [["a"], ["b"], ["c", "d", "e"]]
    assert names(planned(flat, drop="b")) == [["a"], ["c", "d", "e"]]
    assert names(planned(flat, max_shard_size="2kB")) == [["a"], ["b"], ["c", "d", "e"]]
    assert names(planned(flat, drop="c")) == [["a", "b", "d", "e"]]  # of no bytes, so it leaves no hole


def test_one_checkpoint_of_another_layout_divides_it_too(flat: Path) -> None:
    rows = {name: torch.zeros(n) for name, n in (("a", 5), ("b", 700), ("c", 0), ("d", 3), ("e", 64))}
    save(flat / "step-3.safetensors", rows)
    assert names(planned(flat)) == [["a", "b", "c", "d", "e"]]
    save(flat / "step-3.safetensors", rows | {"bb": torch.zeros(2)})
    divided = names(planned(flat, drop="bb"))
    assert [name for group in divided for name in group] == ["a", "b", "c", "d", "e"]
    assert ["a", "b"] in divided


def test_chunks_are_divided_by_tensor(flat: Path) -> None:
    pieces = [[tuple(piece.part)[1:] for piece in chunk.by_tensor()] for chunk in chunks(planned(flat), 704)]
    assert pieces == [[(0, 5), (0, 699)], [(699, 1), (0, 3), (0, 64)]]
    (first, second) = chunks(planned(flat), 704)
    assert [piece.part.tensor.name for piece in second.by_tensor()] == ["b", "d", "e"]
    assert (first.place, second.place, second.nbytes("F32")) == (0, 704 * 4, 68 * 4)


def test_bytes_do_not_depend_on_what_was_read_as_one(flat: Path) -> None:
    average([flat], "whole")
    average([flat], "divided", max_shard_size="300B", chunk=64)
    assert tensor_bytes("whole") == tensor_bytes("divided")


def test_many_checkpoints_go_through_sums(tmp_path: Path) -> None:
    """More than are held at a time, so that sums are kept between them; every engine, chunk and number of threads."""
    run = make_run(tmp_path / "run", steps=range(100, 5100, 100), dtype=torch.bfloat16)
    average([run], "whole")
    average([run], "parts", chunk=64, threads=3)
    assert digest("whole") == digest("parts")
