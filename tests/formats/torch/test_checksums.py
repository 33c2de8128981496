"""Where a torch file has the CRC-32 of each record, whoever wrote the archive, and however."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from belay_cli.errors import CheckpointError
from belay_cli.formats.torch.checksums import Checksum, checksums
from belay_cli.storage.files import StoredFile


def of(data: bytes) -> list[Checksum]:
    return list(checksums(StoredFile(Path("x.pt"), len(data)), lambda offset, count: data[offset : offset + count]))


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(100.0), "none": torch.empty(0)}, file)
    return file.getvalue()


class Unseekable(io.BytesIO):
    """A pipe, for which zipfile puts sizes and checksums behind the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError

    def tell(self) -> int:
        raise OSError


def packed_again(*, behind: bool = False, zip64: bool = False) -> bytes:
    """The same records as zipfile writes them."""
    file = Unseekable() if behind else io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            with new.open(entry.filename, "w", force_zip64=zip64) as record:
                record.write(old.read(entry))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "places"),
    [
        (saved(), 2),  # in the directory, behind the data
        (packed_again(), 2),  # in the directory, in the record's own header
        (packed_again(behind=True), 2),
        (packed_again(zip64=True), 2),
        (packed_again(behind=True, zip64=True), 2),
    ],
    ids=["torch", "zipfile", "behind", "zip64", "behind zip64"],
)
def test_every_place_holds_the_checksum_of_its_record(data: bytes, places: int) -> None:
    found = of(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [archive.read(entry) for entry in archive.infolist() if entry.file_size]
    assert [data[one.begin : one.end] for one in found] == records
    for one in found:
        assert len(one.places) == places
        for place in one.places:
            assert data[place : place + 4] == struct.pack("<L", zlib.crc32(data[one.begin : one.end]))


@pytest.mark.parametrize("behind", [False, True])
def test_a_record_with_renewed_checksums_is_whole(behind: bool) -> None:
    data = bytearray(packed_again(behind=behind))
    one = next(one for one in of(bytes(data)) if one.end - one.begin == 400)
    data[one.begin : one.end] = bytes(400)
    for place in one.places:
        data[place : place + 4] = struct.pack("<L", zlib.crc32(bytes(400)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None


def test_a_checksum_behind_the_data_that_is_another_is_refused() -> None:
    data = bytearray(saved())
    one = of(bytes(data))[0]
    data[one.end + 5] ^= 1
    with pytest.raises(CheckpointError) as caught:
        of(bytes(data))
    assert caught.value.message == (
        "is a zip archive that cannot be right: the checksum behind 'data.pkl' does not agree with the directory "
        "at the end"
    )
