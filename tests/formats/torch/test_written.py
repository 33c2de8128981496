"""Torch files: the weights as torch.load finds them, byte for byte, without torch."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._weights_only_unpickler import _get_allowed_globals
from transformers import GPT2Config, GPT2LMHeadModel

from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.torch.objects import ALLOWED
from belay_cli.storage.files import OpenFiles, Stored
from belay_cli.storage.local import LocalFile
from belay_cli.storage.pieces import StoredPieces
from tests.formats.torch.files import assert_same, bytes_of, load, read, saved, tensor_bytes


@pytest.mark.parametrize(
    "name",
    [
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16"),
        *("uint8", "bool", "complex64", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"),
        "float8_e8m0fnu",
    ],
)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    raw = torch.arange(4 * dtype.itemsize, dtype=torch.uint8) % (2 if name == "bool" else 255)
    path = saved(tmp_path / "a.pt", {"w": raw.view(dtype), "e": torch.empty(0, 3, dtype=dtype)})
    assert_same(read(path), load(path))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_parameters_buffers_scalars_and_views(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    values = {
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "frozen": torch.nn.Parameter(torch.randn(3, 2), requires_grad=False),
        "scalar": torch.tensor(1.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0),
        "offset": base[1:],
        "row": base[1, 2],
        "transposed": base.permute(2, 0, 1),
        "column": base[:, :, 1],
        "every other": base[::2, 1:3, ::3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one of each": torch.randn(1, 4, 1).transpose(0, 2),
    }
    path = tmp_path / "a.pt"
    torch.save(values, path, pickle_protocol=protocol)
    found = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(found, torch.load(path, weights_only=protocol == 2))  # it reads no other protocol
    by_name = {tensor.name: tensor.stored for tensor in found.tensors}
    assert all(isinstance(by_name[name], Stored) for name in ("parameter", "offset", "row", "empty", "one of each"))
    assert all(isinstance(by_name[name], StoredPieces) for name in ("transposed", "column", "expanded"))


def test_parameters_with_attributes(tmp_path: Path) -> None:
    plain: Any = torch.randn(2)
    parameter: Any = torch.nn.Parameter(torch.randn(3))
    plain.note, parameter.note = "a", {"b": 1}
    path = saved(tmp_path / "a.pt", {"plain": plain, "parameter": parameter})
    assert_same(read(path), load(path))


@given(data=st.data())
def test_any_view_of_a_storage(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 5))
    storage = torch.arange(200).to(data.draw(st.sampled_from([torch.int16, torch.float32, torch.bool])))
    path = saved(
        tmp_path_factory.mktemp("view") / "a.pt", {"w": storage.as_strided(shape, strides, offset), "z": storage[3:9]}
    )
    found = read(path)
    assert {**found.aliases, **{t.name: t.name for t in found.tensors}}.keys() == {"w", "z"}
    expected = load(path)
    assert_same(found, {tensor.name: expected[tensor.name] for tensor in found.tensors})
    for tensor in found.tensors:  # parts of it too
        itemsize = DTYPES[tensor.dtype].bits // 8
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, tensor_bytes(tensor) // itemsize)] * 2)))
        part = bytearray((end - begin) * itemsize)
        with OpenFiles(1) as files:
            tensor.stored.read_into(files, memoryview(part), begin * itemsize)
        assert part == bytes_of(tensor)[begin * itemsize : end * itemsize]


def test_shared_storage_is_kept_once_and_the_other_names_are_aliases(tmp_path: Path) -> None:
    base = torch.randn(4, 3)
    values = {"embed": base, "head": base, "part": base[1:], "turned": base.t(), "again": base.t(), "same": base + 0}
    found = read(saved(tmp_path / "a.pt", values))
    assert found.aliases == {"head": "embed", "again": "turned"}
    assert_same(found, {name: values[name] for name in ("embed", "part", "turned", "same")})


def test_a_tied_language_model(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=4))
    path = saved(tmp_path / "pytorch_model.bin", model.state_dict())
    found = read(path)
    assert found.aliases == {"lm_head.weight": "transformer.wte.weight"}
    expected = load(path)
    del expected["lm_head.weight"]
    assert_same(found, expected)


def test_an_object_that_is_zipped_again_by_python(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.randn(5)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(f"other/{name.partition('/')[2]}", old.read(name))
    assert_same(read(tmp_path / "b.pt"), load(path))


def test_without_checksums_and_with_other_alignment(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt", {"w": torch.randn(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read(path), load(path))


def test_nothing_but_headers_is_read_and_torch_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"w{i}": torch.zeros(100_000) for i in range(5)}
    path = saved(tmp_path / "a.pt", values)
    reads = []
    read_into = LocalFile.read_into

    def counted(self: LocalFile, buffer: memoryview, offset: int) -> None:
        reads.append(buffer.nbytes)
        read_into(self, buffer, offset)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    assert len(read(path).tensors) == 5
    assert sum(reads) < 80_000
    assert len(reads) < 15
    program = (
        "import sys; from pathlib import Path; from belay_cli.checkpoints import open_checkpoint;"
        "assert len(open_checkpoint(Path(sys.argv[1])).tensors) == 5; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 0


def test_fifty_thousand_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {f"layers.{i}.weight": torch.zeros(1) for i in range(50_000)})
    begin = time.monotonic()
    assert len(read(path).tensors) == 50_000
    assert time.monotonic() - begin < 60


def test_what_is_allowed_is_what_torch_allows_by_default() -> None:
    allowed = {name for name in ALLOWED if not name.startswith("__builtin__.")}
    assert allowed <= set(_get_allowed_globals())
    # The rest describes nothing that torch.save writes for tensors that we read.
    rest = set(_get_allowed_globals()) - allowed
    assert all(name.endswith("Tensor") or name.startswith("torch.cuda.") for name in rest), rest
