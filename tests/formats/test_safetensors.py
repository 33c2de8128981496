"""Headers of safetensors files: the true ones as the library reads them, the false ones refused in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from belay_cli.errors import CheckpointError
from belay_cli.formats.safetensors import parse_header, read_header
from tests.conftest import raw_safetensors, tensors

F32_2 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_a_true_file_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors(3, torch.bfloat16), path, metadata={"format": "pt", "step": "7"})
    file = read_header(path)
    assert file.metadata == {"format": "pt", "step": "7"}
    assert file.size == path.stat().st_size
    with safetensors.safe_open(path, framework="pt") as library:
        assert {tensor.name for tensor in file.tensors} == set(library.keys())
        for tensor in file.tensors:
            theirs = library.get_tensor(tensor.name)
            assert tensor.shape == tuple(theirs.shape)
            begin = file.data_start + tensor.begin
            ours = path.read_bytes()[begin : begin + tensor.nbytes]
            assert ours == theirs.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_of_one_layout_share_it(tmp_path: Path) -> None:
    for step in ("1", "2"):
        save_file(tensors(int(step)), tmp_path / step, metadata={"step": step})
    assert read_header(tmp_path / "1").tensors is read_header(tmp_path / "2").tensors


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": F32_2}, b"1234567", "is cut short: its tensors take 8 bytes, and 7 are there"),
        ({"w": F32_2}, b"123456789", "has 1 bytes after its last tensor"),
        ({"w": {**F32_2, "dtype": "F33"}}, b"12345678", "'w' has the unknown dtype 'F33'"),
        ({"w": {**F32_2, "dtype": ["F32"]}}, b"12345678", "'w' has the unknown dtype ['F32']"),
        ({"w": {**F32_2, "shape": [3]}}, b"12345678", "'w' is 3 of float32, 12 bytes, but has 8"),
        ({"w": {**F32_2, "shape": [-2]}}, b"12345678", "'w' has the shape [-2]"),
        ({"w": {**F32_2, "shape": [True, 2]}}, b"12345678", "'w' has the shape [True, 2]"),
        ({"w": {**F32_2, "shape": [1 << 62] * 64}}, b"12345678", "'w' is 4611686018427387904×"),
        ({"w": {**F32_2, "data_offsets": [8, 0]}}, b"12345678", "'w' has the data_offsets [8, 0]"),
        ({"w": {**F32_2, "data_offsets": [0]}}, b"12345678", "'w' has the data_offsets [0]"),
        ({"w": {**F32_2, "data_offsets": [4, 12]}}, b"123456789012", "'w' leaves a hole before it"),
        ({"v": F32_2, "w": {**F32_2, "data_offsets": [4, 12]}}, b"123456789012", "'w' overlaps the tensor before it"),
        ({"w": 5}, b"", "'w' is not described by an object"),
        ({"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"1", "'w' is 3 of float4, 2 bytes, but has 1"),
        ({"__metadata__": {"step": 5}}, b"", "has a header whose __metadata__ is not text by text"),
        (b"[]", b"", "has a header that is not valid JSON: it does not start with {"),
        (b"{", b"", "has a header that is not valid JSON: Expecting property name"),
        (b'{"a": 1, "a": 2}', b"", "has a header that is not valid JSON: 'a' appears twice"),
        (b'{"a":' + b"[" * 100_000, b"", "has a header that is not valid JSON: it is nested too deeply"),
        (b'{"\xff": 1}', b"", "has a header that is not valid JSON: 'utf-8' codec"),
    ],
)
def test_false_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = raw_safetensors(tmp_path / "false.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in caught.value.message
    assert caught.value.file == str(path)
    if header is not None and isinstance(header, dict) and "w" in header:
        assert caught.value.tensor in ("w", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is 0 bytes, too short for a safetensors file"),
        (b"1234567", "is 7 bytes, too short for a safetensors file"),
        ((100_000_001).to_bytes(8, "little"), "claims a header of 100000001 bytes; safetensors allows 100000000"),
        (b"\xff" * 16, "claims a header of 18446744073709551615 bytes"),
        ((9).to_bytes(8, "little") + b"{}", "is cut short: its header of 9 bytes does not fit in 10 bytes"),
    ],
)
def test_files_that_are_too_short(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in caught.value.message


def test_a_huge_sparse_file_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes((99_999_999).to_bytes(8, "little"))
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match="does not start with {"):
        read_header(path)


@given(st.binary(max_size=300))
def test_noise_is_refused_or_true(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    _same_verdict_as_the_library(tmp_path_factory.mktemp("noise") / "x", noise)


@given(st.data())
def test_a_header_with_one_change_is_refused_or_true(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    directory = tmp_path_factory.mktemp("changed")
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.int64)}, directory / "true")
    content = bytearray((directory / "true").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    _same_verdict_as_the_library(directory / "x", bytes(content[:cut]))


def _same_verdict_as_the_library(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        ours = read_header(path)
    except CheckpointError:
        return
    with safetensors.safe_open(path, framework="np") as library:  # raises if it disagrees
        assert set(library.keys()) == {tensor.name for tensor in ours.tensors}


def test_what_the_library_writes_is_accepted_for_every_dtype(tmp_path: Path) -> None:
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    names += ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex64"]
    save_file({name: torch.zeros(4, dtype=getattr(torch, name)) for name in names}, tmp_path / "x")
    assert len(read_header(tmp_path / "x").tensors) == len(names)


def test_header_text_is_parsed_without_the_file(tmp_path: Path) -> None:
    text = json.dumps({"w": F32_2}).encode()
    file = parse_header(tmp_path / "nowhere", 8 + len(text) + 8, text)
    assert file.tensors[0].elements == 2


def test_a_header_full_of_names_is_refused_quickly_and_briefly(tmp_path: Path) -> None:
    entries = [f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000)]
    header = "{" + ",".join([*entries, entries[0]]) + "}"
    with pytest.raises(CheckpointError, match="'0' appears twice"):
        read_header(raw_safetensors(tmp_path / "x", header.encode()))
    with pytest.raises(CheckpointError) as caught:
        read_header(raw_safetensors(tmp_path / "y", {"n" * 100_000: 5}))
    assert len(caught.value.message) < 200


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a name in Unicode"):
        read_header(raw_safetensors(tmp_path / "x", b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'))


def test_a_header_of_very_many_lists(tmp_path: Path) -> None:
    text = b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"
    with pytest.raises(CheckpointError, match="it has more brackets than any model has tensors"):
        read_header(raw_safetensors(tmp_path / "x", text))
