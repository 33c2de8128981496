"""The zip archive of a torch file: records and numbers in it that lie, and ends that are cut."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from belay_cli.errors import CheckpointError
from tests.formats.torch.files import archived, lying_tensor, pickled, read, refused, saved, sd


def test_records_of_big_endian_machines(tmp_path: Path) -> None:
    records = [("data/0", bytes(16)), ("byteorder", b"big")]
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), records)
    refused(path, "holds numbers in the byte order 'big'")
    refused(archived(tmp_path / "b.pt", pickled({}), [("byteorder", b"x" * 100)]), "'byteorder' has 100 bytes")


def test_compressed_and_encrypted_records(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), compression=method)
        refused(path, "is compressed ('x/data.pkl'), which torch.save never does")
    bomb = archived(tmp_path / "b.pt", bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    refused(bomb, "is compressed")
    path = archived(tmp_path / "c.pt", pickled({"w": lying_tensor()}))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "is encrypted")


def test_a_record_that_says_it_is_a_directory(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 38] |= 0x10
    path.write_bytes(content)
    refused(path, "'x/data/0' is stored in a way that torch does not use")


def test_records_twice_or_elsewhere(tmp_path: Path) -> None:
    data = pickled({"w": lying_tensor()})
    refused(archived(tmp_path / "a.pt", data, [("data/0", bytes(16)), ("data/0", bytes(16))]), "have one name")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        for name in ("x/data.pkl", "y/data.pkl"):
            archive.writestr(name, data)
    refused(tmp_path / "c.pt", "do not lie in one directory")


CENTRAL = {
    "packed": (20, "<I"),
    "size": (24, "<I"),
    "name length": (28, "<H"),
    "header": (42, "<I"),
    "disk": (34, "<H"),
}
LOCAL = {"magic": (0, "<I"), "flags": (6, "<H"), "method": (8, "<H"), "packed": (18, "<I"), "size": (22, "<I")}
LOCAL |= {"name length": (26, "<H"), "extra length": (28, "<H"), "name": (31, "<H")}
END = {
    "disk": (4, "<H"),
    "here": (8, "<H"),
    "count": (10, "<H"),
    "size": (12, "<I"),
    "begin": (16, "<I"),
    "end": (20, "<H"),
}


@pytest.mark.parametrize("by", [1, 5, 200, 60_000])
@pytest.mark.parametrize(
    ("magic", "name"),
    [*((b"PK\x01\x02", n) for n in CENTRAL), *((b"PK\x03\x04", n) for n in LOCAL), *((b"PK\x05\x06", n) for n in END)],
)
def test_numbers_of_the_archive_that_lie(tmp_path: Path, magic: bytes, name: str, by: int) -> None:
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), [("data/0", bytes(16)), ("version", b"3")])
    content = bytearray(path.read_bytes())
    place, code = {b"PK\x01\x02": CENTRAL, b"PK\x03\x04": LOCAL, b"PK\x05\x06": END}[magic][name]
    first = content.index(magic)
    at = (first if magic == b"PK\x05\x06" else content.index(magic, first + 1)) + place  # that of data/0
    (number,) = struct.unpack_from(code, content, at)
    struct.pack_into(code, content, at, (number + by) % (1 << 8 * struct.calcsize(code)))
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read(path)


def test_more_or_less_at_the_end(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", sd())
    content = path.read_bytes()
    (tmp_path / "b.pt").write_bytes(content + b"1")
    refused(tmp_path / "b.pt", "its end is not that of one whole archive")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04" + content)
    refused(tmp_path / "c.pt", "is a zip archive that cannot be right")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"state_dict": sd(), "x": list(range(1000))})
    content = path.read_bytes()
    for cut in range(0, len(content), len(content) // 60):
        (tmp_path / "b.pt").write_bytes(content[:cut])
        refused(tmp_path / "b.pt", "is ")
