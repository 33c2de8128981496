"""The zip archive of a torch file, read with distrust: where each record lies, and what the file is if it is not one.

torch.save writes `NAME/data.pkl`, the object, and `NAME/data/0`, `NAME/data/1`, …, the storages of its tensors, each
stored as it is. The archive's directory lies at the end of the file; a record's bytes begin after its own header,
whose length only that header says.
"""

from __future__ import annotations

import struct
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
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_SATURATED = 0xFFFFFFFF  # the true number is in the extra field
_SIZES_FOLLOW = 0x0008  # flag: the record's own header leaves its sizes out
_A_DIRECTORY = 0x10  # attribute
_HARMLESS_FLAGS = _SIZES_FOLLOW | 0x0800  # the other one: the name is UTF-8


class Record(NamedTuple):
    """One record: its whole name, where its header begins, its size, and the byte that its data must not pass."""

    name: bytes
    header: int
    size: int
    end: int


@dataclass(frozen=True)
class Archive:
    """The records of a torch file by name, without the directory that they share; sizes and offsets in bytes."""

    file: StoredFile
    read_at: ReadAt
    records: dict[str, Record]

    def offset(self, name: str) -> int:
        """Where a record's bytes begin in the file. Raises CheckpointError if its own header contradicts."""
        record = self.records[name]
        head = self.read_at(record.header, _LOCAL.size + len(record.name))
        magic, _, flags, method, _, _, _, packed, size, length, extra = _LOCAL.unpack_from(head)
        sizes_fit = {packed, size} <= {record.size, _SATURATED} or (flags & _SIZES_FOLLOW and packed == size == 0)
        begin: int = record.header + len(head) + extra
        if (
            magic != b"PK\x03\x04"
            or method
            or flags & ~_HARMLESS_FLAGS
            or length != len(record.name)
            or head[_LOCAL.size :] != record.name
            or not sizes_fit
            or begin + record.size > record.end
        ):
            raise _lie(self.file, f"the header of {short(name)} does not agree with the directory at the end")
        return begin

    def read(self, name: str, largest: int) -> bytes:
        """A record's bytes. Raises CheckpointError if there are more than `largest`."""
        if self.records[name].size > largest:
            raise _lie(self.file, f"{short(name)} has {self.records[name].size} bytes, and {largest} are the most")
        return self.read_at(self.offset(name), self.records[name].size)


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    packed: int
    size: int
    header: int
    attributes: int


def open_archive(file: StoredFile, read_at: ReadAt) -> Archive:
    """The records of a file of torch.save. Raises CheckpointError for any other file, with what it is."""
    if read_at(0, min(4, file.size)) != b"PK\x03\x04":
        raise _not_a_zip(file, read_at(0, min(SNIFFED, file.size)))
    begin, size, count = _directory(file, read_at)
    entries = _entries(file, read_at(begin, size), count)
    prefix = _prefix(file, [entry.name for entry in entries])
    records: dict[str, Record] = {}
    for entry, end in _extents(file, entries, begin):
        _check_entry(file, entry, prefix)
        records[entry.name[len(prefix) :].decode("utf-8", "backslashreplace")] = Record(
            entry.name, entry.header, entry.size, end
        )
    if len(records) < count:
        raise _lie(file, "two records have one name")
    archive = Archive(file, read_at, records)
    _check_byte_order(archive)
    return archive


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


def _directory(file: StoredFile, read_at: ReadAt) -> tuple[int, int, int]:
    """The archive's directory: where it begins, its length in bytes, its number of entries."""
    first = max(0, file.size - _END.size - 0xFFFF)
    tail = read_at(first, file.size - first)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise CheckpointError("is cut short: the directory at its end is not there", file=file.path, hint=COPY_AGAIN)
    _, disk, start_disk, here, count, size, begin, comment = _END.unpack_from(tail, at)
    end = first + at
    if disk or start_disk or here != count or end + _END.size + comment != file.size:
        raise _lie(file, "its end is not that of one whole archive")
    if end >= _LOCATOR.size + _END64.size:
        locator = _LOCATOR.unpack(read_at(end - _LOCATOR.size, _LOCATOR.size))
        if locator[0] == b"PK\x06\x07":
            end -= _LOCATOR.size + _END64.size
            begin, size, count = _directory64(file, read_at(end, _END64.size), locator[2] == end, (begin, size, count))
    if begin + size != end or size > _LARGEST_DIRECTORY:
        raise _lie(file, f"its directory has {size} bytes from byte {begin} on, and should end at byte {end}")
    return begin, size, count


def _directory64(file: StoredFile, record: bytes, located: bool, short: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same from the record of large archives, which must agree with the short one where that holds a number."""
    magic, length, _, _, disk, start_disk, here, count, size, begin = _END64.unpack(record)
    agree = all(
        small in (large, most)
        for small, large, most in zip(short, (begin, size, count), (_SATURATED, _SATURATED, 0xFFFF), strict=True)
    )
    whole = magic == b"PK\x06\x06" and length == _END64.size - 12 and not disk and not start_disk and here == count
    if not (located and whole and agree):
        raise _lie(file, "its end is not that of one whole archive")
    return begin, size, count


def _entries(file: StoredFile, directory: bytes, count: int) -> list[_Entry]:
    entries: list[_Entry] = []
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise _lie(file, "its directory breaks off")
        magic, _, _, flags, method, _, _, _, packed, size, name, extra, comment, disk, _, attributes, header = (
            _ENTRY.unpack_from(directory, at)
        )
        begin = at + _ENTRY.size
        at = begin + name + extra + comment
        if magic != b"PK\x01\x02" or at > len(directory) or disk:
            raise _lie(file, "its directory breaks off")
        fields = directory[begin + name : begin + name + extra]
        size, packed, header = _large_numbers(file, fields, (size, packed, header))
        entries.append(_Entry(directory[begin : begin + name], flags, method, packed, size, header, attributes))
    if not entries or len(entries) != count:
        raise _lie(file, f"its directory has {len(entries)} entries and claims {count}")
    return entries


def _large_numbers(file: StoredFile, extra: bytes, numbers: tuple[int, int, int]) -> list[int]:
    """Sizes and offset of an entry, those that do not fit in 32 bits from its extra field."""
    missing = [n for n, number in enumerate(numbers) if number == _SATURATED]
    found = list(numbers)
    while missing and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            if len(field) < 8 * len(missing):
                break
            for place, n in enumerate(missing):
                (found[n],) = struct.unpack_from("<Q", field, 8 * place)
            return found
    if missing:
        raise _lie(file, "a large record does not say its size")
    return found


def _extents(file: StoredFile, entries: list[_Entry], directory: int) -> list[tuple[_Entry, int]]:
    """Each entry with the byte that its data must not pass: the next one's beginning. None overlap."""
    ordered = sorted(entries, key=lambda entry: entry.header)
    ends = [*(after.header for _, after in pairwise(ordered)), directory]
    for entry, end in zip(ordered, ends, strict=True):
        if entry.header + _LOCAL.size + len(entry.name) + entry.packed > end:
            raise _lie(file, f"{_text(entry.name)} reaches into what comes after it")
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


def _check_entry(file: StoredFile, entry: _Entry, prefix: bytes) -> None:
    if entry.flags & 1:
        raise CheckpointError("is encrypted", file=file.path, hint="unpack it with its password, and save it again")
    if entry.method or entry.packed != entry.size:
        raise CheckpointError(
            f"is compressed ({_text(entry.name)}), which torch.save never does",
            file=file.path,
            hint="save it with torch.save, or unpack it and pack it again with zip -0",
        )
    # For torch a directory is empty, whatever its size: it would leave the memory of a tensor as it found it.
    if entry.flags & ~_HARMLESS_FLAGS or (entry.attributes & _A_DIRECTORY and entry.size):
        raise _lie(file, f"{_text(entry.name)} is stored in a way that torch does not use")


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
