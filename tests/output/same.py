"""Torch files as a training leaves them, for outputs that have the files of the last one."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

STEPS = (100, 200, 300)


def weights(seed: int) -> dict[str, Tensor]:
    """Tensors as torch stores them in one way or another; integers, and nothing."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    return {
        "plain": randn(40, 33),
        "transposed": randn(5, 6).t(),
        "channels_last": randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "view with gaps": randn(10, 7)[:, :4],
        "offset": randn(9)[2:],
        "scalar": randn(),
        "bfloat16": randn(13).bfloat16(),
        "float16": randn(3, 5).half(),
        "float64": randn(4).double(),
        "seen": torch.tensor(seed),
        "nothing": torch.zeros(0, 3),
    }


def checkpoint(step: int, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """What a trainer saves."""
    return {
        "state_dict": weights(step) if state is None else state,
        "global_step": step,
        "optimizer": {"exp_avg": torch.full((50,), float(step))},
        "hyper_parameters": {"lr": 1e-3},
    }


def saved(directory: Path, steps: Iterable[int] = STEPS, **options: Any) -> list[Path]:
    paths = []
    for step in steps:
        paths.append(directory / f"step-{step}.pt")
        torch.save(checkpoint(step, **options), paths[-1])
    return paths


def loaded(path: Path | str) -> Any:
    return torch.load(path, weights_only=True)


def changed(one: bytes | bytearray, other: bytes) -> set[int]:
    """Where two files of one length differ."""
    assert len(one) == len(other)
    return {i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}


def checksum_fields(path: Path) -> set[int]:
    """Every byte that holds the CRC-32 of a record, in a file of torch.save, found by its bytes alone."""
    data = path.read_bytes()
    found: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        for entry in filter(lambda entry: entry.file_size, archive.infolist()):
            header = entry.header_offset
            length, extra = struct.unpack("<2H", data[header + 26 : header + 30])
            behind = header + 30 + length + extra + entry.file_size
            assert data[behind : behind + 4] == b"PK\x07\x08"
            found |= {*range(behind + 4, behind + 8)}
        at = archive.start_dir
        for _ in archive.infolist():
            found |= {*range(at + 16, at + 20)}
            at += 46 + sum(struct.unpack("<3H", data[at + 28 : at + 34]))
    return found


def weight_bytes(path: Path) -> set[int]:
    """Every byte of a floating point tensor of the state dict, where torch says that it lies in the file."""
    found: set[int] = set()
    with FakeTensorMode():
        state = loaded(path)["state_dict"]
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.numel():
            begin = tensor.untyped_storage()._checkpoint_offset + tensor.storage_offset() * tensor.itemsize
            index = torch.arange(tensor.untyped_storage().nbytes() // tensor.itemsize)
            own = index.as_strided(tensor.shape, tensor.stride()).reshape(-1).tolist()
            found |= {begin + i * tensor.itemsize + b for i in own for b in range(tensor.itemsize)}
    return found
