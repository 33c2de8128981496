"""Torch files that would cost time or memory, and those that are truly large."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formats.torch.files import (
    Claim,
    archived,
    assert_same,
    bytes_of,
    lying_tensor,
    pickled,
    read,
    refused,
    saved,
    sd,
)


def quickly(path: Path, message: str) -> None:
    begin = time.monotonic()
    refused(path, message)
    assert time.monotonic() - begin < 20


def test_nests(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    quickly(archived(tmp_path / "a.pt", deep), "holds a list")
    tuples = (
        b"\x80\x02}X\x01\x00\x00\x00a)"
        + b"\x85" * 10_000
        + b"sX\x01\x00\x00\x00w"
        + pickled(lying_tensor())[2:-1]
        + b"s."
    )
    assert [tensor.name for tensor in read(archived(tmp_path / "b.pt", tuples)).tensors] == ["w"]
    dicts = b"\x80\x02" + b"}X\x01\x00\x00\x00m" * 10_000 + b"}" + b"s" * 10_000 + b"."
    quickly(archived(tmp_path / "c.pt", dicts), "holds no state dict")


def test_cycles_and_shared_parts(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    quickly(saved(tmp_path / "a.pt", loop), "holds no state dict; its keys are: model")
    level: Any = [0]
    for _ in range(60):  # 2⁶⁰ paths, 60 objects
        level = [level, level]
    assert_same(read(saved(tmp_path / "b.pt", {**sd(), "x": level})), sd())
    level = {}
    for i in range(60):
        level = {f"a{i}": level, f"b{i}": level}
    quickly(saved(tmp_path / "c.pt", level), "holds no state dict")
    shared = {"w": torch.zeros(1), "x": [[{}] * 1000] * 1000}  # 10⁶ paths, seen from 10⁴ keys
    assert_same(read(saved(tmp_path / "e.pt", {"model": sd(), **{f"k{i}": shared for i in range(10_000)}})), sd())
    wide: dict[str, Any] = {str(i): {str(j): {} for j in range(300)} for i in range(300)}
    quickly(saved(tmp_path / "d.pt", wide), "holds no state dict")


def test_names_that_would_take_long(tmp_path: Path) -> None:
    long = {"module." * 100_000 + "w": torch.ones(2), "ema." * 100_000: torch.ones(3)}
    assert len(read(saved(tmp_path / "a.pt", long)).tensors) == 2
    many = {f"ema_{i}.{j}": torch.ones(1) for i in range(1000) for j in range(5)}
    assert len(read(saved(tmp_path / "b.pt", many)).tensors) == 5000
    key = b"X" + struct.pack("<I", 1 << 20) + b"0" * (1 << 20) + b"q\x02"
    identity = b"(X\x07\x00\x00\x00storageq\x00ctorch\nFloatStorage\nq\x01" + key + b"NK\x01tQ"
    quickly(archived(tmp_path / "c.pt", b"\x80\x02" + identity + b"."), "asks for something that is no storage")


def test_calls_that_would_copy_a_lot(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    encode = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x020]("
    quickly(archived(tmp_path / "a.pt", encode + b"h\x00h\x01h\x02\x86R" * 20_000 + b"e."), "holds a list")
    fill = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    quickly(archived(tmp_path / "b.pt", fill), "holds an object")


def test_a_pickle_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belay_cli.formats.torch.objects.LARGEST", 100)
    refused(archived(tmp_path / "a.pt", bytes(101)), "'data.pkl' has 101 bytes, and 100 are the most")


def test_a_huge_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 40)
    quickly(path, "is cut short")


def test_a_directory_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 31)
    with path.open("ab") as file:
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 1 << 31, 0, 0))
    quickly(path, "its directory has 2147483648 bytes from byte 0 on")


def test_records_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file whose first record is larger than 32 bits can say, so that the next one lies beyond them."""
    count = (1 << 32) + 8
    path = tmp_path / "a.pt"
    data = pickled(
        {
            "big": lying_tensor(Claim("0", count, torch.ByteStorage), shape=(count,)),
            "small": lying_tensor(Claim("1", 4, torch.ByteStorage)),
        }
    )
    central, at = [], 0
    with path.open("wb") as file:
        for name, content, size in (("data.pkl", data, len(data)), ("data/0", b"", count), ("data/1", b"abcd", 4)):
            text = f"x/{name}".encode()
            large = [number for number in (size, size, at) if number >= 0xFFFFFFFF]
            short = [min(number, 0xFFFFFFFF) for number in (size, size, at)]
            extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
            central.append(
                struct.pack(
                    "<4s6H3L5H2L",
                    b"PK\x01\x02",
                    45,
                    45,
                    0,
                    0,
                    0,
                    0,
                    0,
                    *short[:2],
                    len(text),
                    len(extra),
                    0,
                    0,
                    0,
                    0,
                    short[2],
                )
                + text
                + extra
            )
            file.write(
                struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, *short[:2], len(text), 0) + text + content
            )
            file.seek(size - len(content), 1)
            at = file.tell()
        directory = b"".join(central)
        file.write(directory)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(directory), at))
        file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, at + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))
    found = {tensor.name: tensor for tensor in read(path).tensors}
    assert found["big"].shape == (count,)
    assert bytes_of(found["small"]) == b"abcd"
