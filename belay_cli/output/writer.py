"""The writer: weight files, header first, built beside the target and put in place when they are whole.

A finished output is complete; anything else is absent. Every file is built in a hidden directory on the target's
disk, is synced, and only then put in its place. What of it is finished is noted meanwhile, so that a run that was
killed is not lost.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from belay_cli.checkpoints.companions import source_card
from belay_cli.engine.checksum import crc32
from belay_cli.engine.chunks import Chunk, by_tensor
from belay_cli.engine.spans import Line, Spans
from belay_cli.errors import OutputError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.output.blocks import BlockDigests, block_digests, file_digests
from belay_cli.output.checksums import renew
from belay_cli.output.digests import TensorDigests, to_take_later
from belay_cli.output.journal import Found, Journal, Range, anything_in_journals, forget_journals, read_journals
from belay_cli.output.placement import place_directory, place_file, place_files_beside
from belay_cli.output.workplace import Workplace, sync
from belay_cli.planning import Plan, PlannedOutput
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.plan import copies_from
from belay_cli.planning.target import Target, workplace_name
from belay_cli.record import DOCUMENT, LOCAL, Record, document_beside, local_document
from belay_cli.storage.files import AnyPath, open_file
from belay_cli.storage.local import reason

_LARGEST_WRITE = 1 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPIED = 4 << 20  # bytes at a time


class OutputWriter:
    """One output under construction. `write` may be called from several threads.

    One process begins it; others may join, and write parts of the same files. `done` are the ranges that an earlier
    run has finished.
    """

    def __init__(self, plan: Plan, output: PlannedOutput, record: Record) -> None:
        self._plan, self.record = plan, record
        self.target = target_of(output)
        self._headers = plan.headers(record)
        self._line = Line(plan)
        self._digests = TensorDigests(self._read_back)
        self._descriptors: list[int] = []
        self._workplace: Workplace | None = None
        self._journal: Journal | None = None
        self.done = Spans()

    @property
    def _directory(self) -> Path:
        return self.target.place / workplace_name(self.target.path) / "new"

    @property
    def unwritten(self) -> int:
        """Bytes of its weight files that have no place on the disk yet."""
        total = sum(len(head) + shard.nbytes for head, shard in zip(self._headers, self._plan.shards, strict=True))
        there = 0
        for shard in self._plan.shards:
            with contextlib.suppress(OSError):
                there += getattr((self._directory / shard.name).stat(), "st_blocks", 0) * 512
        return max(0, total - there)

    def lock(self) -> None:
        """Be the one process that makes this output. Raises OutputError if another does, or nothing can be there."""
        with self._errors_named():
            self._workplace = Workplace(self.target.place, self.target.path)

    def begin(self, identity: str | None) -> bool:
        """Create every weight file at its full size, header first, or go on with those of an earlier run.

        identity: what the output is a function of; without it nothing is gone on with, and nothing is noted. Returns
        whether what is there is of another plan, and starts over. Raises OutputError if there cannot be such files.
        """
        assert self._workplace is not None  # noqa: S101
        with self._errors_named():
            end = self._line.nbytes
            found = read_journals(self._workplace.path, identity, end) if identity else Found([], of_another=False)
            left = self._directory.exists()
            if not found.ranges:
                self._workplace.empty()
            for folder in ["", *self._plan.folders]:
                (self._directory / folder).mkdir(parents=True, exist_ok=True)
            self._name_again()
            self._open(os.O_CREAT)
            for descriptor, head, shard in zip(self._descriptors, self._headers, self._plan.shards, strict=True):
                os.ftruncate(descriptor, len(head) + shard.nbytes)
                write_all(descriptor, memoryview(head), 0)
            known = self._good(found.ranges)
            self.done = Spans.of((one.begin, one.end) for one in known)
            self._begin_digests()
            if identity:
                self._journal = Journal(self._workplace.path, identity, 0, known)
                forget_journals(self._workplace.path, but=0)
        return left and not known and found.of_another

    def _name_again(self) -> None:
        """Give a file that an earlier run has made whole, but not put in its place, the name that it is built under."""
        if self.target.is_file and self._plan.is_same:
            whole, built = (self._directory / name for name in (self.target.path.name, self._plan.shards[0].name))
            if whole.exists() and not built.exists():
                whole.rename(built)

    def join(self, number: int, identity: str | None, done: Spans) -> None:
        """Write parts of what another process has begun, as the process of this number. Raises OutputError."""
        with self._errors_named():
            self.done = done
            self._open(0)
            self._begin_digests()
            if identity:
                self._journal = Journal(self._directory.parent, identity, number)

    def _open(self, flags: int) -> None:
        for shard in self._plan.shards:
            path = self._directory / shard.name
            self._descriptors.append(os.open(path, os.O_RDWR | flags | getattr(os, "O_CLOEXEC", 0), 0o666))

    def _good(self, ranges: Sequence[Range]) -> list[Range]:
        """Those of the ranges of an earlier run that hold what was written."""
        with ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            return [one for one, crc in zip(ranges, threads.map(self._crc, ranges), strict=True) if one.crc == crc]

    def _crc(self, one: Range) -> int:
        crc = 0
        for shard, begin, end in self._line.split(one.begin, one.end):
            for data in self._read(shard, begin, end):
                crc = crc32(data, crc)
        return crc

    def _begin_digests(self) -> None:
        """Digests are taken along the way, but for tensors that are written in part, and the last ones.

        Of an output in the files of its last checkpoint none are: what counts there are the files, when they are whole.
        """
        if self._plan.is_same:
            return
        begun = {name for name, begin, end in self._line.of_tensors() if any(self.done.within(begin, end))}
        last = to_take_later(self._plan.tensors) if self._plan.options.sync else frozenset()
        self._digests = TensorDigests(self._read_back, begun | last)

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Put a chunk's bytes in their place, note that, and add them to the digests of their tensors."""
        shard = chunk.run.tensors[0].shard
        with self._errors_named():
            write_all(self._descriptors[shard], data, len(self._headers[shard]) + chunk.place)
            if self._journal:
                begin = self._line.begins[shard] + chunk.place
                self._journal.add(Range(begin, begin + len(data), crc32(data)))
            if not self._plan.is_same:
                for part, own in by_tensor(chunk, data):
                    self._digests.update(part, own)

    def _read_back(self, tensor: PlannedTensor, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a tensor in its file, from one element to another, a chunk's worth at a time."""
        bits = DTYPES[tensor.dtype].bits
        return self._read(tensor.shard, *(tensor.offset + element * bits // 8 for element in (start, end)))

    def _read(self, shard: int, begin: int, end: int) -> Iterator[bytes]:
        """A range of the data of a file, a chunk's worth at a time."""
        at, stop = (len(self._headers[shard]) + byte for byte in (begin, end))
        most = self._plan.buffers.chunk * self._plan.itemsizes[1]
        while at < stop:
            data = os.pread(self._descriptors[shard], min(most, stop - at), at)
            if not data:
                raise OSError(errno.EIO, "the file is shorter than what was written")
            yield data
            at += len(data)

    def sync_weights(self, own: Collection[str]) -> dict[str, str]:
        """Wait until the disk has what was written. Returns the digests of these tensors, taken meanwhile."""
        with self._errors_named(), ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            digests = self._take_digests(threads, own)
            if self._plan.options.sync:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
            return dict(digests)

    def digests(self, names: Collection[str]) -> dict[str, str]:
        """The digests of tensors that other processes have written in part."""
        with self._errors_named(), ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            self._reopen()
            return dict(self._take_digests(threads, names))

    def _reopen(self) -> None:
        """Open the files anew, for on NFS that is when a machine sees what others wrote."""
        self._close()
        self._open(0)

    def _take_digests(self, threads: ThreadPoolExecutor, names: Collection[str]) -> Iterator[tuple[str, str]]:
        """Name and digest of each. Begins at once."""
        wanted = [tensor for tensor in self._plan.tensors if tensor.name in names]
        known = {tensor.name: digest for tensor in wanted if (digest := self._digests.known(tensor))}
        left = [tensor for tensor in wanted if tensor.name not in known]
        taken = threads.map(self._digests.of, left)
        return ((name, digest) for name, digest in (*known.items(), *zip((t.name for t in left), taken, strict=True)))

    def renew_checksums(self, turn: int, of: int) -> None:
        """Write the checksums that the files of a last checkpoint have of what is averaged: every so manieth of them.

        All bytes that they are of are written by then, whoever wrote them. Raises CheckpointError if what was copied
        is not what was saved.
        """
        with self._errors_named(), ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            self._reopen()
            renew(self._plan.summed[turn::of], self._descriptors, self._read, threads)

    def block_digests(self, turn: int, of: int) -> BlockDigests:
        """The digests of every so manieth block of the files, taken while the disk is waited for."""
        with self._errors_named(), ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            self._reopen()
            digests = block_digests(self._plan.shards, self._read, threads, turn, of)
            if self._plan.options.sync:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
            return dict(digests)

    def finish_files(self, digests: BlockDigests) -> None:
        """Make an output in the files of its last checkpoint whole, with the digests of all their blocks."""
        by_name = file_digests(self._plan.shards, digests)
        if self.target.is_file:
            self.record = self.record.with_files({self.target.path.name: by_name[self._plan.shards[0].name]})
        else:
            self.record = self.record.with_files(by_name)
        self.finish({})

    def finish(self, digests: Mapping[str, str]) -> None:
        """Put the digests into the headers, add the files beside the weights, wait until everything is on the disk."""
        with self._errors_named():
            copies = {} if self.target.is_file else self._add_companions()
            record = self.record if self._plan.is_same else self.record.with_copies(copies).with_digests(digests)
            for descriptor, head in zip(self._descriptors, self._plan.headers(record), strict=True):
                write_all(descriptor, memoryview(head), 0)  # as long as the one that held its place
                if self._plan.options.sync:
                    os.fsync(descriptor)
                if self._plan.options.drop_cache:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._close()
            if self.target.is_file and self._plan.is_same:
                (self._directory / self._plan.shards[0].name).rename(self._directory / self.target.path.name)
                self._add_file(document_beside(self.target.path).name, record.document())
                self._sync_path(self._directory)
            elif not self.target.is_file:
                self._add_file(DOCUMENT, record.document())
                self._add_file(LOCAL, local_document(self._plan.series, source_card(self._plan.series.last)))
                for name, content in self._plan.indices().items():
                    self._add_file(name, content)
                for folder in sorted(filter(None, self._plan.folders), reverse=True):  # one in another before that one
                    self._sync_path(self._directory / folder)
                self._sync_path(self._directory)

    def _add_file(self, name: str, content: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        self._sync_path(path)

    def _add_companions(self) -> dict[str, str]:
        """Copy the files beside the weights; returns the digest of each."""
        digests = {}
        for name in self._plan.copies:
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = copies_from(self._plan.series) / name
            edited = self._plan.edited.get(name)
            if edited is not None:
                path.write_bytes(edited)
                digests[name] = hashlib.sha256(edited).hexdigest()
            else:
                digests[name] = self._copy(source, path)
            self._sync_path(path)
        return digests

    def _copy(self, source: AnyPath, path: Path) -> str:
        digest = hashlib.sha256()
        with open_file(source) as file, path.open("wb") as copy:
            for offset in range(0, file.size, _COPIED):
                content = file.read_at(offset, min(_COPIED, file.size - offset))
                copy.write(content)
                digest.update(content)
        return digest.hexdigest()

    def _sync_path(self, path: Path) -> None:
        if self._plan.options.sync:
            sync(path)

    def put_in_place(self) -> None:
        """Put it where it is to be: at every moment the old output is there, the new one, or none."""
        target, workplace = self.target, self._workplace
        assert workplace is not None  # noqa: S101
        with self._errors_named():
            if target.is_file and self._plan.is_same:
                place_files_beside(workplace, [target.path.name, document_beside(target.path).name], target)
            elif target.is_file:
                place_file(workplace, self._plan.shards[0].name, target)
            else:
                weights = [shard.name for shard in self._plan.shards] + list(self._plan.indices())
                place_directory(workplace, [DOCUMENT, LOCAL, *self._plan.copies, *weights], target)
        self._end_journal()
        try:
            for folder in () if target.is_file else ["", *self._plan.folders]:
                self._sync_path(target.path / folder)
            self._sync_path(target.path.absolute().parent)
        except OSError as error:
            raise OutputError(
                f"is in place and whole, but the disk has not confirmed it: {reason(error)}",
                file=target.path,
                hint=f"belay verify {shlex.quote(str(target.path))}",
            ) from error
        finally:
            workplace.remove()

    def keep(self) -> bool:
        """Leave what is finished to the next run. Returns whether anything is."""
        if self._journal is None:
            return False
        with contextlib.suppress(OSError):
            if not anything_in_journals(self._directory.parent):
                return False
            self._journal.sync()
        self._end_journal()
        if self._workplace:
            self._workplace.release()
        return self._directory.exists()

    def discard(self) -> None:
        """Remove whatever was built and is not in place; who joined, leaves that to the one who began."""
        self._close()
        self._end_journal()
        if self._workplace and self._workplace.moves.exists():  # it holds files of an older output
            self._workplace.release()
        elif self._workplace:
            self._workplace.remove()

    def _end_journal(self) -> None:
        if self._journal:
            self._journal.close()
            self._journal = None

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._workplace and not self._workplace.path.exists():
                raise OutputError(
                    "cannot be written: the directory that it was built in has vanished",
                    file=self.target.path,
                    hint=f"see what removes {self._workplace.path}, and start again",
                ) from error
            room = "make room, or " if error.errno in _FULL else ""
            raise OutputError(
                f"cannot be written: {reason(error)}",
                file=self.target.path,
                hint=f"{room}write somewhere else: -o",
            ) from error


def target_of(output: PlannedOutput) -> Target:
    """Where an output goes, which one that stays in memory does not."""
    if output.target is None:
        raise ValueError("this output stays in memory: there is nothing to write it to")
    return output.target


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write bytes at a place in a file, in as many calls as it takes. Raises OSError."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _LARGEST_WRITE], offset + done)
