"""Where a torch file says what the CRC-32 of its records is: beside each, and in the directory at its end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.text import short
from belay_cli.formats.torch.archive import COPY_AGAIN, Archive, open_archive
from belay_cli.storage.files import ReadAt, StoredFile

# Signature, versions, flags, method, time and date; CRC-32, sizes; lengths of name, extra field and comment; the rest.
_ENTRY = struct.Struct("<4s2H2H2HL2L3H2HLL")
_CRC_IN_ENTRY, _CRC_IN_HEADER, _FLAGS_IN_HEADER = 16, 14, 6
_CRC_FOLLOWS = 0x0008  # flag: the CRC-32 stands behind the data
_BEHIND = b"PK\x07\x08"  # what stands before it there, if the writer puts it


class Checksum(NamedTuple):
    """A record's bytes in a file, from one up to another; where their CRC-32 is written, in four bytes each; and it.

    It is 0 where the writer was told to take none.
    """

    name: str
    begin: int
    end: int
    places: tuple[int, ...]
    crc: int


def checksums(file: StoredFile, read_at: ReadAt) -> Iterator[Checksum]:
    """The records of a torch file that hold anything, in order. Raises CheckpointError."""
    archive = open_archive(file, read_at)
    entries = dict(_entries(archive))
    for name, record in sorted(archive.records.items(), key=lambda item: item[1].header):
        if record.size:
            place, crc = entries[record.name]
            begin = archive.offset(name)
            places = (place, *_in_header(archive, name), *_behind(archive, name, begin + record.size, crc))
            yield Checksum(name, begin, begin + record.size, places, record.crc)


def _entries(archive: Archive) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    """By the name of each record, where its CRC-32 stands in the directory, and the CRC-32 itself."""
    at = archive.directory
    data = archive.read_at(at, archive.file.size - at)
    place = 0
    for _ in archive.records:
        magic, *_, length, extra, comment, _, _, _, _ = _ENTRY.unpack_from(data, place)
        if magic != b"PK\x01\x02":
            raise _lie(archive, "its directory is not one entry after the other")
        begin, crc = place + _ENTRY.size, place + _CRC_IN_ENTRY
        yield data[begin : begin + length], (at + crc, data[crc : crc + 4])
        place = begin + length + extra + comment


def _in_header(archive: Archive, name: str) -> Iterator[int]:
    """The place in a record's own header, unless that leaves it out."""
    header = archive.records[name].header
    head = archive.read_at(header, _CRC_IN_HEADER + 4)
    follows = head[_FLAGS_IN_HEADER] & _CRC_FOLLOWS
    if not follows or any(head[_CRC_IN_HEADER:]):
        yield header + _CRC_IN_HEADER


def _behind(archive: Archive, name: str, end: int, crc: bytes) -> Iterator[int]:
    """The place behind a record's data, if its header says that it stands there."""
    record = archive.records[name]
    if not archive.read_at(record.header + _FLAGS_IN_HEADER, 1)[0] & _CRC_FOLLOWS:
        return
    found = archive.read_at(end, min(8, record.end - end))
    if found == _BEHIND + crc:
        yield end + 4
    elif found[:4] == crc:
        yield end
    else:
        raise _lie(archive, f"the checksum behind {short(name)} does not agree with the directory at the end")


def _lie(archive: Archive, what: str) -> CheckpointError:
    return CheckpointError(f"is a zip archive that cannot be right: {what}", file=archive.file.path, hint=COPY_AGAIN)
