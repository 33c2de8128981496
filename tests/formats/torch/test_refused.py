"""Torch files with tensors that are no plain arrays, and files that are something else."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formats.torch.files import assert_same, read, refused, saved, sd

# ---- tensors that are no plain arrays


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(2).to_sparse(), "'w' is sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "'w' is sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'w' is quantized"),
        (lambda: torch.empty(2, device="meta"), "'w' is without data"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "'w' is a conjugate or a negative"),
        (lambda: torch.ones(2, dtype=torch.complex128), "'w' is of dtype complex128, which safetensors does not have"),
        (lambda: torch.ones(2, dtype=torch.complex32), "'w' is of dtype complex32"),
    ],
)
def test_tensors_that_are_no_plain_arrays(tmp_path: Path, make: Callable[..., Any], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = make()
        path = saved(tmp_path / "a.pt", {"ok": torch.ones(1), "w": value})
        other = saved(tmp_path / "b.pt", {"model": sd(), "history": value})
    error = refused(path, message)
    assert error.tensor == "w"
    assert_same(read(other), sd())


# ---- other files


@pytest.mark.parametrize(
    ("content", "message", "mend"),
    [
        (b"", "is empty", "copy"),
        (b"\0" * 5000, "holds nothing but zeros", "copy"),
        (b"PK\x03\x04", "is cut short", "copy"),
        (b"loss: 0.3\n" * 100, "is text, not a torch file", "download"),
        (b"<!DOCTYPE html><html>" * 50, "is a web page, not a torch file", "download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "is a pointer of Git LFS",
            "git lfs pull",
        ),
        (pickle.dumps({"a": 1}), "is a plain pickle", "torch.save"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is HDF5, as Keras writes it", "safetensors"),
        (b"GGUF\3\0\0\0" + b"\0" * 100, "is GGUF", "average"),
        (struct.pack("<Q", 20) + b'{"a": {"dtype": "F32"', "is a safetensors file under another name", "rename"),
        (b"\x1f\x8b\x08\0" + b"\1" * 100, "is compressed by gzip", "unpack"),
        (bytes(range(256)) * 4, "is not a torch file", "torch.save"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str, mend: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert mend in refused(tmp_path / "a.pt", message).hint


def test_the_formats_of_old_torch(tmp_path: Path) -> None:
    torch.save(sd(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    error = refused(tmp_path / "a.pt", "is in torch's format from before version 1.6")
    assert error.hint.endswith("torch.save(torch.load(path, weights_only=True), path)")
    import tarfile

    for name, message in (("sys_info", "is in torch's tar format"), ("model.ckpt", "is a tar archive")):
        with tarfile.open(tmp_path / "b.pth.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        refused(tmp_path / "b.pth.tar", message)


def test_programs(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))  # type: ignore[no-untyped-call]
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "b.pt")
    assert "torch.jit.load(path).state_dict()" in refused(tmp_path / "a.pt", "is a program of TorchScript").hint
    refused(tmp_path / "b.pt", "is a program of torch.export")


@pytest.mark.parametrize(
    ("names", "mend"),
    [(["a.npy", "b.npy"], "numpy"), (["config.json", "model.weights.h5"], "Keras"), (["x/y/data.pkl"], "unpack")],
)
def test_other_zip_archives(tmp_path: Path, names: list[str], mend: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    assert mend in refused(tmp_path / "a.pt", "is a zip archive that torch.save did not write").hint
