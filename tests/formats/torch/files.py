"""Torch files as tests make and read them: honest ones, and ones that lie."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli.checkpoints.read import read_file
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.storage.files import OpenFiles
from tests.reading import Found, FoundTensor, plainly


def read(path: Path, **options: Any) -> Found:
    """The weights of a file, as a plan takes them; each tensor with where it lies."""
    return plainly(read_file(path, Opening(**options)), path)


def refused(path: Path, message: str, **options: Any) -> Any:
    """The error of a file, whose one line holds the message."""
    with pytest.raises(CheckpointError) as caught:
        read(path, **options)
    error = caught.value
    assert message in error.message
    assert error.file == str(path)
    assert error.hint
    assert "\n" not in error.message
    assert len(error.message) < 800
    return error


def bytes_of(tensor: FoundTensor) -> bytes:
    whole = bytearray(tensor_bytes(tensor))
    with OpenFiles(2) as files:
        tensor.stored.read_into(files, memoryview(whole), 0)
    return bytes(whole)


def tensor_bytes(tensor: FoundTensor) -> int:
    count = 1
    for n in tensor.shape:
        count *= n
    return count * DTYPES[tensor.dtype].bits // 8


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Found, expected: Any) -> None:
    """What was found holds the tensors of `expected`, name -> tensor, in that order."""
    assert [tensor.name for tensor in found.tensors] == list(expected)
    for tensor in found.tensors:
        true = expected[tensor.name]
        name = DTYPES[tensor.dtype].name
        assert str(true.dtype) in (f"torch.{name}", f"torch.{name}fn", f"torch.{name}fnu")
        assert tensor.shape == tuple(true.shape)
        assert bytes_of(tensor) == torch_bytes(true)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def sd(seed: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {f"{prefix}{name}": torch.randn(2, 3, generator=g) for name in ("a.weight", "a.bias", "b.weight")}


# ---- what lies


class Claim:
    """A storage that is not there, as a pickle tells of it."""

    def __init__(
        self, key: str | int = "0", numel: int = 4, kind: Any = torch.FloatStorage, what: str = "storage"
    ) -> None:
        self.identity = (what, kind, key, "cpu", numel)


class Lie:
    """Something that unpickles by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.what


def lying_tensor(claim: Any = None, offset: str | int = 0, shape: Any = (4,), strides: tuple[int, ...] = (1,)) -> Lie:
    return Lie(torch._utils._rebuild_tensor_v2, claim or Claim(), offset, shape, strides, False, OrderedDict())


def pickled(value: Any, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return item.identity if isinstance(item, Claim) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def archived(
    path: Path, data: bytes, records: Any = (("data/0", bytes(16)),), compression: int = zipfile.ZIP_STORED
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in (("data.pkl", data), *records):
                archive.writestr(f"x/{name}", content)
    return path
