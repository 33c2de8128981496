"""The zip archive of a torch file: what zipfile takes on trust, and how often the file is asked."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli.errors import CheckpointError
from belay_cli.formats.torch.archive import Archive, open_archive
from belay_cli.storage.files import StoredFile

NOT_WHOLE = "is a zip archive that cannot be right: its end is not that of one whole archive"
END64 = 98  # bytes before the end of the file, where torch.save's large end begins


def saved() -> bytearray:
    stream = io.BytesIO()
    torch.save({"w": torch.arange(6.0), "b": torch.ones(3)}, stream)
    return bytearray(stream.getvalue())


def zipped(comment: bytes = b"") -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.comment = comment
        for name in ("data.pkl", "data/0"):
            archive.writestr(f"x/{name}", b"12345678")
    return bytearray(stream.getvalue())


def opened(content: Any) -> tuple[Archive, list[tuple[int, int]]]:
    """The archive, and what was read of the file: offsets and counts."""
    asked = []

    def read_at(offset: int, count: int) -> bytes:
        assert offset >= 0 and offset + count <= len(content)
        asked.append((offset, count))
        return bytes(content[offset : offset + count])

    return open_archive(StoredFile(Path("a.pt"), len(content)), read_at), asked


def refused(content: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(content)
    assert caught.value.message == message
    assert caught.value.hint


def test_the_end_is_read_once() -> None:
    _, asked = opened(zipped())
    assert len(asked) == 2  # the first bytes, and the end with the directory


def test_a_long_directory_takes_one_more_read() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in ("data.pkl", *(f"data/{n}" for n in range(2000))):
            file.writestr(f"x/{name}", b"1")
    archive, asked = opened(stream.getvalue())
    assert len(archive.records) == 2001 and len(asked) == 3


def test_a_comment_at_the_end() -> None:
    archive, _ = opened(zipped(b"of somebody"))
    assert archive.read("data/0", 8) == b"12345678"


def test_a_comment_that_is_longer_than_it_says() -> None:
    refused(zipped(b"of somebody") + b"1", NOT_WHOLE)


@pytest.mark.parametrize(
    ("place", "code"),
    [(4, "<Q"), (16, "<L"), (20, "<L"), (24, "<Q"), (32, "<Q"), (56 + 8, "<Q")],
    ids=["length", "disk", "first disk", "entries here", "entries", "located"],
)
def test_a_large_end_that_lies(place: int, code: str) -> None:
    content = saved()
    at = len(content) - END64 + place
    (number,) = struct.unpack_from(code, content, at)
    struct.pack_into(code, content, at, number + 1)
    refused(content, NOT_WHOLE)


def test_an_end_that_does_not_agree_with_the_large_one() -> None:
    content = saved()
    struct.pack_into("<H", content, len(content) - 12, 3)  # the number of entries
    refused(content, NOT_WHOLE)


def test_an_archive_behind_other_bytes() -> None:
    """zipfile finds the records behind them; torch would look for them where the directory says."""
    refused(b"PK\x03\x04" + saved(), NOT_WHOLE)


def test_a_directory_elsewhere_than_the_end_says() -> None:
    content = saved()
    for at, code in ((len(content) - END64 + 48, "<Q"), (len(content) - 6, "<L")):
        (begin,) = struct.unpack_from(code, content, at)
        struct.pack_into(code, content, at, begin - 64)
    refused(content, NOT_WHOLE)


def test_no_entry_at_all() -> None:
    refused(b"PK\x03\x04" + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 4, 0), NOT_WHOLE)


def test_a_directory_that_is_longer_than_the_file() -> None:
    content = zipped()
    struct.pack_into("<L", content, len(content) - 10, 1 << 30)
    refused(content, "is a zip archive that cannot be right: its directory breaks off")


def test_names_that_are_no_ascii() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in ("data.pkl", "größe"):
            file.writestr(f"β/{name}", b"1")
    archive, _ = opened(stream.getvalue())
    assert archive.read("größe", 1) == b"1"
