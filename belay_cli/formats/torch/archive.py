"""The zip archive of a torch file, read with distrust: where each record lies, and what the file is if it is not one.

torch.save writes `NAME/data.pkl`, the object, and `NAME/data/0`, `NAME/data/1`, …, the storages of its tensors, each
stored as it is. The archive's directory lies at the end of the file; a record's bytes begin after its own header,
whose length only that header says.

zipfile reads the directory. What it takes on trust is checked here: that records do not overlap, that all numbers at
the end agree, and that each record's own header says what the directory says.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.foreign import SNIFFED, by_first_bytes
from belay_cli.formats.text import short
from belay_cli.storage.files import ReadAt, StoredFile

COPY_AGAIN = "the file is incomplete or damaged; copy or save it again, or leave the checkpoint out"
_LARGEST_DIRECTORY = 200_000_000  # bytes; a million records take half of that

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_PART = struct.Struct("<2H")  # of an extra field: what it is, and how many bytes follow
_SATURATED = 0xFFFFFFFF  # the true number is in the extra field
_MOST = (0, 0, 0xFFFF, 0xFFFF, _SATURATED, _SATURATED)  # at the end, where the true number is in the record before it
_SIZES_FOLLOW = 0x0008  # flag: the record's own header leaves its sizes out
_UTF8 = 0x0800  # flag: of the name
_A_DIRECTORY = 0x10  # attribute
_HARMLESS_FLAGS = _SIZES_FOLLOW | _UTF8


class ZipRecord(NamedTuple):
    """One record: its whole name, where its header begins, its size, and the byte that its data must not pass.

    `flags` and `crc` are those of the directory; a CRC-32 of 0 says that the writer was told to take none.
    """

    name: bytes
    header: int
    size: int
    end: int
    flags: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """The records of a torch file by name, without the directory that they share; sizes and offsets in bytes.

    `directory`: where the list of them begins, at the end of the file.
    """

    file: StoredFile
    read_at: ReadAt
    records: dict[str, ZipRecord]
    directory: int

    def offset(self, name: str) -> int:
        """Where a record's bytes begin in the file. Raises CheckpointError if its own header contradicts."""
        record = self.records[name]
        head = self.read_at(record.header, _LOCAL.size + len(record.name))
        magic, _, flags, method, _, _, crc, packed, size, length, extra = _LOCAL.unpack_from(head)
        follow = flags & _SIZES_FOLLOW
        sizes_fit = {packed, size} <= {record.size, _SATURATED} or (follow and packed == size == 0)
        begin: int = record.header + len(head) + extra
        if (
            magic != b"PK\x03\x04"
            or method
            or flags != record.flags
            or not (crc == record.crc or (follow and crc == 0))
            or length != len(record.name)
            or head[_LOCAL.size :] != record.name
            or not sizes_fit
            or begin + record.size > record.end
        ):
            raise _lie(self.file, f"the header of {short(name)} does not agree with the directory at the end")
        if not _is_whole_extra(self.read_at(begin - extra, extra)):
            raise _lie(self.file, f"the header of {short(name)} is longer or shorter than it says")
        return begin

    def read(self, name: str, largest: int) -> bytes:
        """A record's bytes. Raises CheckpointError if there are more than `largest`."""
        if self.records[name].size > largest:
            raise _lie(self.file, f"{short(name)} has {self.records[name].size} bytes, and {largest} are the most")
        record, data = self.records[name], self.read_at(self.offset(name), self.records[name].size)
        if record.crc and zlib.crc32(data) != record.crc:
            raise _lie(self.file, f"{short(name)} is not as it was saved: the CRC-32 of its bytes is another")
        return data


def _is_whole_extra(extra: bytes) -> bool:
    """Whether an extra field is one part after the other, each as long as it says. torch pads with one."""
    at = 0
    while at + _PART.size <= len(extra):
        at += _PART.size + int(_PART.unpack_from(extra, at)[1])
    return at == len(extra)


def open_archive(file: StoredFile, read_at: ReadAt) -> Archive:
    """The records of a file of torch.save. Raises CheckpointError for any other file, with what it is."""
    if read_at(0, min(4, file.size)) != b"PK\x03\x04":
        raise _not_a_zip(file, read_at(0, min(SNIFFED, file.size)))
    entries, begin = _directory(file, read_at)
    prefix = _prefix(file, [_name(entry) for entry in entries])
    records: dict[str, ZipRecord] = {}
    for entry, end in _extents(file, entries, begin):
        _check_entry(file, entry)
        name = _name(entry)
        record = ZipRecord(name, entry.header_offset, entry.file_size, end, entry.flag_bits, entry.CRC)
        records[name[len(prefix) :].decode("utf-8", "backslashreplace")] = record
    if len(records) < len(entries):
        raise _lie(file, "two records have one name")
    _refuse_cases(file, records)
    archive = Archive(file, read_at, records, begin)
    _check_byte_order(archive)
    return archive


def _refuse_cases(file: StoredFile, records: Mapping[str, ZipRecord]) -> None:
    """torch finds records whatever the case of their names: two that differ in it alone would be one or the other."""
    lower = {name.lower() for name in records}
    if len(lower) < len(records) or any(name in lower and name not in records for name in ("data.pkl", "byteorder")):
        raise _lie(file, "names of its records differ in case alone from others, or from those of torch")


def _check_byte_order(archive: Archive) -> None:
    order = archive.read("byteorder", 16) if "byteorder" in archive.records else b"little"
    if order != b"little":
        raise CheckpointError(
            f"holds numbers in the byte order {_text(order)}, which belay does not read",
            file=archive.file.path,
            hint="write it anew on a little-endian machine: torch.save(torch.load(path, weights_only=True), path)",
        )


def _lie(file: StoredFile, what: str) -> CheckpointError:
    return CheckpointError(f"is a zip archive that cannot be right: {what}", file=file.path, hint=COPY_AGAIN)


class _Ranged:
    """A file as zipfile reads one. Its end, where most directories lie whole, is fetched once."""

    def __init__(self, file: StoredFile, read_at: ReadAt) -> None:
        self._file, self._read_at, self._at = file, read_at, 0
        self.first = max(0, file.size - _END.size - 0xFFFF)
        self.tail = read_at(self.first, file.size - self.first)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._file.size)[whence]
        if at < 0:
            raise OSError("before the first byte")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        begin, left = self._at, max(0, self._file.size - self._at)
        count = left if count < 0 else min(count, left)
        self._at += count
        if begin >= self.first:
            return self.tail[begin - self.first :][:count]
        if count > _LARGEST_DIRECTORY:
            raise _lie(self._file, f"its directory has {count} bytes from byte {begin} on")
        return self._read_at(begin, count)

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from byte `offset`, fewer at the end."""
        self.seek(offset)
        return self.read(count)


def _directory(file: StoredFile, read_at: ReadAt) -> tuple[Sequence[zipfile.ZipInfo], int]:
    """The entries of the archive's directory, at least one, and the byte where it begins."""
    ranged = _Ranged(file, read_at)
    at = ranged.tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(ranged.tail):
        raise CheckpointError("is cut short: the directory at its end is not there", file=file.path, hint=COPY_AGAIN)
    try:
        archive = zipfile.ZipFile(ranged)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise _lie(file, "its directory breaks off") from error
    entries, begin = archive.infolist(), archive.start_dir
    if not entries or not _is_whole(file, ranged, ranged.first + at, len(entries), begin):
        raise _lie(file, "its end is not that of one whole archive")
    return entries, begin


def _is_whole(file: StoredFile, ranged: _Ranged, end: int, count: int, begin: int) -> bool:
    """Whether the numbers at the end are those of what zipfile found, which it does not compare.

    Else torch could find other records. end: where the end begins; count: of the entries; begin: of the directory.
    """
    _, *said, comment = _END.unpack(ranged.at(end, _END.size))
    if end + _END.size + comment != file.size:
        return False
    large = ranged.at(max(0, end - _END64.size - _LOCATOR.size), _END64.size + _LOCATOR.size)
    if large[_END64.size :][:4] != b"PK\x06\x07":
        return said == [0, 0, count, count, end - begin, begin]
    end -= len(large)
    true = [0, 0, count, count, end - begin, begin]
    magic, length, _, _, *said64 = _END64.unpack_from(large)
    one = magic == b"PK\x06\x06" and length == _END64.size - 12 and _LOCATOR.unpack_from(large, _END64.size)[2] == end
    fits = all(number in (right, most) for number, right, most in zip(said, true, _MOST, strict=True))
    return one and said64 == true and fits


def _name(entry: zipfile.ZipInfo) -> bytes:
    """As it is written in the directory."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")


def _extents(file: StoredFile, entries: Sequence[zipfile.ZipInfo], directory: int) -> list[tuple[zipfile.ZipInfo, int]]:
    """Each entry with the byte that its data must not pass: the next one's beginning. None overlap."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [*(after.header_offset for _, after in pairwise(ordered)), directory]
    for entry, end in zip(ordered, ends, strict=True):
        if entry.header_offset + _LOCAL.size + len(_name(entry)) + entry.compress_size > end:
            raise _lie(file, f"{_text(_name(entry))} reaches into what comes after it")
    return list(zip(ordered, ends, strict=True))


def _prefix(file: StoredFile, names: list[bytes]) -> bytes:
    """The directory inside the archive that holds data.pkl, with its slash. Refuses what torch.save does not write."""
    holders = [name[: -len(b"data.pkl")] for name in names if name.count(b"/") == 1 and name.endswith(b"/data.pkl")]
    inner = {name.partition(b"/")[2] for name in names}
    if b"constants.pkl" in inner or any(name.startswith(b"code/") for name in inner):
        raise CheckpointError(
            "is a program of TorchScript, not a state dict",
            file=file.path,
            hint="save its weights: torch.save(torch.jit.load(path).state_dict(), new_path)",
        )
    if not holders and b"archive_format" in inner:
        raise CheckpointError(
            "is a program of torch.export, not a state dict",
            file=file.path,
            hint="save its weights: torch.save(torch.export.load(path).state_dict, new_path)",
        )
    if not holders:
        raise CheckpointError(
            f"is a zip archive that torch.save did not write: it holds {_text(names[0])} and no data.pkl",
            file=file.path,
            hint=_zip_mend(names),
        )
    if len(holders) > 1 or not all(name.startswith(holders[0]) for name in names):
        raise _lie(file, "its records do not lie in one directory")
    return holders[0]


def _zip_mend(names: list[bytes]) -> str:
    if all(name.endswith(b".npy") for name in names):
        return "these are arrays of numpy; write them as safetensors: safetensors.numpy.save_file"
    if b"model.weights.h5" in names:
        return "this is a model of Keras; export its weights: safetensors.tensorflow.save_file"
    return "if it is an archive of checkpoints, unpack it and give what is inside"


def _check_entry(file: StoredFile, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise CheckpointError("is encrypted", file=file.path, hint="unpack it with its password, and save it again")
    if entry.compress_type or entry.compress_size != entry.file_size:
        raise CheckpointError(
            f"is compressed ({_text(_name(entry))}), which torch.save never does",
            file=file.path,
            hint="save it with torch.save, or unpack it and pack it again with zip -0",
        )
    # For torch a directory is empty, whatever its size: it would leave the memory of a tensor as it found it.
    hollow = entry.external_attr & _A_DIRECTORY and entry.file_size
    if entry.flag_bits & ~_HARMLESS_FLAGS or hollow or entry.volume:
        raise _lie(file, f"{_text(_name(entry))} is stored in a way that torch does not use")


def _text(name: bytes) -> str:
    return short(name[:200].decode("utf-8", "backslashreplace"))


_SAVE_WEIGHTS = "load it where you trust it, and save its weights: torch.save(model.state_dict(), path)"


def _not_a_zip(file: StoredFile, head: bytes) -> CheckpointError:
    what, mend = _recognised(head)
    return CheckpointError(what, file=file.path, hint=mend)


def _recognised(head: bytes) -> tuple[str, str]:
    if not head.strip(b"\0"):
        return ("holds nothing but zeros" if head else "is empty"), COPY_AGAIN
    if beginning := by_first_bytes(head):
        return beginning
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "is a plain pickle, which torch.save does not write", _SAVE_WEIGHTS
    if not set(head) & {*range(9), *range(14, 32)}:  # no control characters
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        return (
            "is a web page, not a torch file" if page else "is text, not a torch file"
        ), "download it again; where there should be weights, something else was saved"
    return "is not a torch file", "belay reads what torch.save writes, and safetensors"
