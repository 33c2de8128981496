"""Digests of files by their blocks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from belay_cli.errors import CheckpointError
from belay_cli.storage import blocks
from belay_cli.storage.blocks import block_digest, blocks_of, file_digests, of_blocks


def test_the_blocks_of_a_file() -> None:
    mib = 1 << 20
    assert list(blocks_of(0)) == []
    assert list(blocks_of(1)) == [(0, 1)]
    assert list(blocks_of(64 * mib)) == [(0, 64 * mib)]
    assert list(blocks_of(129 * mib)) == [(0, 64 * mib), (64 * mib, 128 * mib), (128 * mib, 129 * mib)]


def test_it_is_the_digest_of_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    for name, data in {"empty": b"", "short": b"abc", "long": bytes(range(25))}.items():
        (tmp_path / name).write_bytes(data)
    heard: list[int] = []
    found = file_digests({name: tmp_path / name for name in ("empty", "short", "long")}, 3, heard.append)

    def expected(*parts: bytes) -> str:
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    data = bytes(range(25))
    assert found == {
        "empty": expected(),
        "short": expected(b"abc"),
        "long": expected(data[:10], data[10:20], data[20:]),
    }
    assert sorted(heard) == [3, 5, 10, 10]
    assert of_blocks([block_digest([b"a", b"bc"])]) == expected(b"abc")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: no such file or directory"):
        file_digests({"x": tmp_path / "x"}, 1)
