"""The writer: safetensors files, header first, built beside the target and put in place when they are whole.

A finished output is complete; anything else is absent. Every file is built in a hidden directory on the target's
disk, is synced, and only then renamed into place, the file by which loaders find the weights last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from belay_cli import words
from belay_cli.checkpoints.companions import source_card
from belay_cli.engine.chunks import Chunk, by_tensor
from belay_cli.errors import OutputError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.output.digests import TensorDigests, to_take_later
from belay_cli.output.placement import move_file, replace_in_directory
from belay_cli.output.signals import signals_held
from belay_cli.output.staging import staging_directory
from belay_cli.planning import Plan, PlannedOutput
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.plan import copies_from
from belay_cli.planning.target import Target
from belay_cli.record import DOCUMENT, LOCAL, local_document
from belay_cli.storage.files import AnyPath, open_file
from belay_cli.storage.local import reason

_LARGEST_WRITE = 1 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OTHER_FILES = 128  # standard streams, libraries, directories
_COPIED = 4 << 20  # bytes at a time


class OutputWriter:
    """One output under construction. `write` may be called from several threads."""

    def __init__(self, plan: Plan, output: PlannedOutput, fingerprints: Sequence[str]) -> None:
        self._plan = plan
        self._target = _target_of(output)
        self._record = output.record.with_fingerprints(fingerprints)
        self._headers = plan.headers(self._record)
        self._digests = TensorDigests(self._read_back, to_take_later(plan.tensors) if plan.options.sync else ())
        self._descriptors: list[int] = []
        self._lock = -1
        with self._errors_named():
            self._directory, self._lock = staging_directory(self._target)

    def create(self) -> None:
        """Create every weight file at its full size, header first. Raises OutputError if there cannot be such files."""
        with self._errors_named():
            for folder in filter(None, self._plan.folders):
                (self._directory / folder).mkdir(parents=True, exist_ok=True)
            for head, shard in zip(self._headers, self._plan.shards, strict=True):
                path = self._directory / shard.name
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
                self._descriptors.append(descriptor)
                os.ftruncate(descriptor, len(head) + shard.nbytes)
                _write_all(descriptor, memoryview(head), 0)

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Put a chunk's bytes in their place, and add them to the digests of their tensors."""
        shard = chunk.run.tensors[0].shard
        with self._errors_named():
            _write_all(self._descriptors[shard], data, len(self._headers[shard]) + chunk.place)
            for part, own in by_tensor(chunk, data):
                self._digests.update(part, own)

    def _place(self, tensor: PlannedTensor) -> int:
        """Bytes from the start of its file to a tensor."""
        return len(self._headers[tensor.shard]) + tensor.offset

    def _read_back(self, tensor: PlannedTensor, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a tensor in its file, from one element to another, a chunk's worth at a time."""
        bits = DTYPES[tensor.dtype].bits
        at, stop = (self._place(tensor) + element * bits // 8 for element in (start, end))
        most = self._plan.buffers.chunk * self._plan.itemsizes[1]
        while at < stop:
            data = os.pread(self._descriptors[tensor.shard], min(most, stop - at), at)
            if not data:
                raise OSError(errno.EIO, "the file is shorter than what was written")
            yield data
            at += len(data)

    def sync(self) -> None:
        """Put the digests into the headers, add the files beside the weights, wait until everything is on the disk."""
        with self._errors_named():
            record = self._record.with_digests(self._finish_digests())
            for head in reversed(self._plan.headers(record)):
                descriptor = self._descriptors.pop()
                try:
                    _write_all(descriptor, memoryview(head), 0)  # as long as the one that held its place
                    if self._plan.options.sync:
                        os.fsync(descriptor)
                    if self._plan.options.drop_cache:
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
            if not self._target.is_file:
                self._add_companions()
                self._add_file(DOCUMENT, record.document())
                self._add_file(LOCAL, local_document(self._plan.series, source_card(self._plan.series.last)))
                for name, content in self._plan.indices().items():
                    self._add_file(name, content)
                for folder in sorted(filter(None, self._plan.folders), reverse=True):  # one in another before that one
                    self._sync_path(self._directory / folder)
                self._sync_path(self._directory)

    def _finish_digests(self) -> dict[str, str]:
        """Every tensor's digest. What is left to hash is hashed while the disk takes the data."""
        found = {tensor.name: self._digests.known(tensor) for tensor in self._plan.tensors}
        left = [tensor for tensor in self._plan.tensors if not found[tensor.name]]
        with ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            digests = threads.map(self._digests.of, left)
            if self._plan.options.sync:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
            return found | {tensor.name: digest for tensor, digest in zip(left, digests, strict=True)}

    def _add_file(self, name: str, content: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        self._sync_path(path)

    def _add_companions(self) -> None:
        for name in self._plan.copies:
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = copies_from(self._plan.series) / name
            edited = self._plan.edited.get(name)
            if edited is not None:
                path.write_bytes(edited)
            else:
                self._copy(source, path)
            self._sync_path(path)

    def _copy(self, source: AnyPath, path: Path) -> None:
        with open_file(source) as file, path.open("wb") as copy:
            for offset in range(0, file.size, _COPIED):
                copy.write(file.read_at(offset, min(_COPIED, file.size - offset)))

    def _sync_path(self, path: Path) -> None:
        if self._plan.options.sync and os.name == "posix":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def put_in_place(self) -> None:
        """Rename into place. A new directory appears at once; over an older output its weights vanish first."""
        target = self._target
        with self._errors_named():
            if target.is_file:
                move_file(self._directory / self._plan.shards[0].name, target.path, replace=bool(target.replaced))
                self.discard()
            elif target.is_new:
                self._directory.rename(target.path)
                self._unlock()
            else:
                weights = [shard.name for shard in self._plan.shards] + list(self._plan.indices())
                arriving = [DOCUMENT, LOCAL, *self._plan.copies, *weights]
                replace_in_directory(self._directory, target.path, arriving, target.replaced)
                for folder in self._plan.folders:
                    self._sync_path(target.path / folder)
                self._sync_path(target.path)
                self.discard()
            self._sync_path(target.place)

    def discard(self) -> None:
        """Remove whatever was built and is not in place."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        shutil.rmtree(self._directory, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            room = "make room, or " if error.errno in _FULL else ""
            raise OutputError(
                f"cannot be written: {reason(error)}",
                file=self._target.path,
                hint=f"{room}write somewhere else: -o",
            ) from error


@contextlib.contextmanager
def staged_outputs(plan: Plan, fingerprints: Sequence[str]) -> Iterator[list[OutputWriter]]:
    """A writer for each output of the plan. On leaving: all whole and in place; after any exception, nothing half done.

    If one cannot be put in place, those before it stay: each is whole by itself.
    """
    _check_space(plan)
    _allow_files(plan)
    writers: list[OutputWriter] = []
    try:
        for output in plan.outputs:
            with signals_held():  # from here on there is something to remove
                writers.append(OutputWriter(plan, output, fingerprints))
            writers[-1].create()
        yield writers
        for writer in writers:
            writer.sync()
        with signals_held():
            for writer in writers:
                writer.put_in_place()
    except BaseException:
        with signals_held():  # whoever presses Ctrl-C twice wants it to end, not to leave half an output
            for writer in writers:
                writer.discard()
        raise


def _target_of(output: PlannedOutput) -> Target:
    if output.target is None:
        raise ValueError("this output stays in memory: there is nothing to write it to")
    return output.target


def _allow_files(plan: Plan) -> None:
    """Let this process open every file of the output at once, beside its inputs. Raises OutputError if it may not."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited, written = resource.RLIM_INFINITY, len(plan.outputs) * len(plan.shards)
    if soft == unlimited or written <= soft // 4:  # inputs may take half of what is allowed
        return
    needed = 2 * written + _OTHER_FILES
    if hard != unlimited and needed > hard:
        raise OutputError(
            f"takes {needed} open files, and {hard} are allowed",
            file=_target_of(plan.outputs[0]).path,
            hint="write fewer, larger files: --max-shard-size",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def _check_space(plan: Plan) -> None:
    """Raise OutputError if the disk lacks the room, before anything is read. Outputs on one disk add up."""
    needed: dict[int, int] = {}
    for output in plan.outputs:
        target = _target_of(output)
        device = target.place.stat().st_dev
        needed[device] = needed.get(device, 0) + sum(plan.files(output).values())
        free = shutil.disk_usage(target.place).free
        if needed[device] > free:
            raise OutputError(
                f"cannot be written: it takes {words.size(needed[device])}, and {words.size(free)} are free",
                file=target.path,
                hint="make room, or write somewhere else: -o",
            )


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _LARGEST_WRITE], offset + done)
