"""The plan: layout as the Hub's, policies, sizes that come true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.api.average import prepare
from belay_cli.api.keywords import plan_options
from belay_cli.errors import UsageError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Policies
from belay_cli.planning.buffers import FAR_AWAY, plan_buffers
from belay_cli.planning.layout import PlannedTensor, header, lay_out, parse_size
from belay_cli.rules import Belay, Ema
from belay_cli.show.listener import Nobody
from tests.conftest import make_run


def planned(name: str, elements: int, dtype: str = "F32") -> PlannedTensor:
    nbytes = elements * DTYPES[dtype].bits // 8
    return PlannedTensor(name, "average", dtype, dtype, (elements,), elements, nbytes)


sizes = st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["F32", "BF16", "U8", "F64"])), min_size=1, max_size=12)


@given(sizes, st.integers(1, 3000))
def test_shards_are_those_of_the_hub(tensors: list[tuple[int, str]], largest: int) -> None:
    names = [f"t{i:02d}" for i in range(len(tensors))]
    given_tensors = [planned(name, *tensor) for name, tensor in zip(names, tensors, strict=True)]
    placed, shards = lay_out(given_tensors, "model", largest)
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8, "F64": torch.float64}
    state = {name: torch.zeros(n, dtype=dtypes[code]) for name, (n, code) in zip(names, tensors, strict=True)}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=largest)
    # An empty tensor, or one larger than a shard, may open a shard of its own; the others are the same.
    if all(0 < t.nbytes <= largest for t in given_tensors):
        ours = {tensor.name: shards[tensor.shard].name for tensor in placed}
        assert ours == theirs.tensor_to_filename
    for number, shard in enumerate(shards):
        inside = [t for t in placed if t.shard == number]
        assert sum(t.nbytes for t in inside) == shard.nbytes
        assert shard.nbytes <= largest or len([t for t in inside if t.nbytes]) == 1
        end = 0
        for tensor in inside:
            assert tensor.offset == end
            assert tensor.offset % (DTYPES[tensor.dtype].bits // 8) == 0
            end += tensor.nbytes


def test_a_header_is_padded_and_says_what_it_was_given() -> None:
    placed, _ = lay_out([planned("a", 3), planned("b", 2, "F64")], "model", None)
    text = header(placed, {"format": "pt"})
    assert len(text) % 8 == 0
    assert int.from_bytes(text[:8], "little") == len(text) - 8
    assert json.loads(text[8:])["a"] == {"dtype": "F32", "shape": [3], "data_offsets": [16, 28]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5_000_000_000), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("1.5kb", 1500), ("77", 77), ("1 TB", 10**12)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, "--x") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.2.3MB", "5 bananas"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--x .* is not a size"):
        parse_size(text, "--x")


@pytest.mark.parametrize(
    ("policies", "name", "dtype", "action"),
    [
        (Policies(), "w", "F32", "average"),
        (Policies(), "n", "I64", "last"),
        (Policies(last=("w*",)), "w1", "F32", "last"),
        (Policies(drop=("w*",), last=("w1",)), "w1", "F32", "drop"),
        (Policies(last=("w1",), average=("w*",)), "w1", "F32", "last"),
        (Policies(average=("w*",)), "w1", "F32", "average"),
        (Policies(average=("w*",)), "v", "F32", "last"),
        (Policies(average=("n*",)), "n", "I64", "last"),
        (Policies(drop=("[abc]?",)), "b1", "BF16", "drop"),
    ],
)
def test_policies(policies: Policies, name: str, dtype: str, action: str) -> None:
    assert policies.action(name, dtype) == action


@given(
    outputs=st.integers(1, 40),
    checkpoints=st.integers(0, 40),
    threads=st.integers(1, 64),
    memory=st.integers(200_000, 1 << 30),
    width=st.sampled_from([2, 4, 8]),
)
def test_buffers_stay_in_the_memory_they_may_take(
    outputs: int, checkpoints: int, threads: int, memory: int, width: int
) -> None:
    rows = min(16, max(1, checkpoints))
    try:
        buffers = plan_buffers(
            outputs=outputs,
            checkpoints=checkpoints,
            source_bytes=width,
            output_bytes=width,
            threads=threads,
            max_memory=memory,
        )
    except UsageError:
        assert memory < (4 << 10) * (rows * width + 8 + outputs * (8 + width) + width)
        return
    of_block = rows * width + 8 + outputs * 8
    each = buffers.block * of_block + buffers.chunk * (outputs + 1) * width
    assert buffers.nbytes == buffers.threads * each <= memory
    assert buffers.rows == rows
    assert buffers.block % 64 == 0 < buffers.block <= buffers.chunk
    assert 1 <= buffers.threads <= threads
    assert buffers.chunk % 64 == 0


@pytest.mark.parametrize("chunk", [None, 64, 4 << 20])
def test_what_is_read_ahead_is_read_whole(chunk: int | None) -> None:
    sizes = {"outputs": 1, "checkpoints": 3, "source_bytes": 4, "output_bytes": 4, "threads": 2}
    buffers = plan_buffers(**sizes, max_memory=1 << 30, chunk=chunk, shape=FAR_AWAY)
    assert buffers.block == buffers.chunk == (chunk or 1 << 20)


def test_a_tensor_that_is_dropped_or_kept_need_not_be_everywhere(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = make_run(tmp_path / "run")
    first = run / "checkpoint-100/model.safetensors"
    save_file({k: v for k, v in load_file(first).items() if k != "scale"}, first)
    assert prepare([run], [Ema()], [None], *plan_options({"drop": "scale"}), Nobody()).dropped == 1
    kept = prepare([run], [Ema()], [None], *plan_options({"last": ["scale"]}), Nobody())
    assert {t.name: t.action for t in kept.tensors}["scale"] == "last"


def test_sizes_of_a_plan_come_true(tmp_path: Path) -> None:
    from belay_cli.api.average import run

    plan = prepare([make_run(tmp_path / "run")], [Belay()], ["out"], *plan_options({"max_shard_size": "1kB"}), Nobody())
    planned_files = plan.files(plan.outputs[0])
    run(plan, Nobody())
    assert planned_files == {path: path.stat().st_size for path in Path("out").iterdir() if path.is_file()}
