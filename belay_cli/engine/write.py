"""The writer: safetensors files, header first, built beside the target and put in place when they are whole.

A finished output is complete; anything else is absent. Every file is built in a directory of its own next
to the target, is synced, and only then renamed into place, the file by which loaders find the weights last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from belay_cli import words
from belay_cli.checkpoints.companions import source_card
from belay_cli.checkpoints.dtypes import DTYPES
from belay_cli.checkpoints.local import reason
from belay_cli.engine.chunks import Chunk
from belay_cli.engine.digest import TensorDigests, to_take_later
from belay_cli.errors import CheckpointError, OutputError
from belay_cli.plan import Plan, PlannedOutput
from belay_cli.plan.layout import PlannedTensor
from belay_cli.plan.plan import copies_from
from belay_cli.provenance import DOCUMENT, LOCAL, local_document

try:
    import fcntl
except ImportError:  # Windows: no locks on directories, so nothing is cleaned up after a killed run
    fcntl = None  # type: ignore[assignment]

_LARGEST_WRITE = 1 << 30


class OutputWriter:
    """One output under construction. `write` may be called from several threads."""

    def __init__(self, plan: Plan, output: PlannedOutput, fingerprints: Sequence[str]) -> None:
        self._plan = plan
        self._output = output
        self._target = output.target
        self._fingerprints = fingerprints
        self._headers = plan.headers(output, fingerprints)
        self._digests = TensorDigests(self._read_back, to_take_later(plan.tensors) if plan.options.sync else ())
        self._descriptors: list[int] = []
        self._lock = -1
        with self._errors_named():
            self._directory, self._lock = _staging_directory(self._target.path)

    def create(self) -> None:
        """Create every weight file at its full size, header first. Raises OutputError if the disk is too small."""
        with self._errors_named():
            for head, shard in zip(self._headers, self._plan.shards, strict=True):
                path = self._directory / shard.name
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
                self._descriptors.append(descriptor)
                os.ftruncate(descriptor, len(head) + shard.nbytes)
                _write_all(descriptor, memoryview(head), 0)

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Put a chunk's bytes in their place, and add them to the digest of their tensor."""
        tensor = chunk.tensor
        with self._errors_named():
            _write_all(self._descriptors[tensor.shard], data, self._place(tensor) + chunk.begins(tensor.dtype))
            self._digests.update(chunk, data)

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
            digests = self._finish_digests()
            for head in reversed(self._plan.headers(self._output, self._fingerprints, digests)):
                descriptor = self._descriptors.pop()
                _write_all(descriptor, memoryview(head), 0)  # as long as the one that held its place
                try:
                    if self._plan.options.sync:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            if not self._target.is_file:
                self._add_companions()
                self._add_file(DOCUMENT, self._plan.document(self._output, self._fingerprints, digests))
                self._add_file(LOCAL, local_document(self._plan.series, source_card(self._plan.series.last)))
                if entry := self._plan.index():
                    self._add_file(*entry)
                self._sync_path(self._directory)

    def _finish_digests(self) -> dict[str, str]:
        """Every tensor's digest. What is left to hash is hashed while the disk takes the data."""
        with ThreadPoolExecutor(self._plan.buffers.threads) as threads:
            digests = threads.map(self._digests.of, self._plan.tensors)
            if self._plan.options.sync:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
            return {tensor.name: digest for tensor, digest in zip(self._plan.tensors, digests, strict=True)}

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
            try:
                content = self._plan.edited.get(name) or source.read_bytes()
            except OSError as error:
                raise CheckpointError(f"cannot be copied: {reason(error)}", file=source) from error
            path.write_bytes(content)
            self._sync_path(path)

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
                _move_file(self._directory / self._plan.shards[0].name, target.path, replace=bool(target.replaced))
                self.discard()
            elif not target.replaced and not _has_entries(target.path):
                self._directory.rename(target.path)
                self._unlock()
            else:
                self._replace_in_directory()
                self.discard()
            self._sync_path(target.path.absolute().parent)

    def _replace_in_directory(self) -> None:
        """The old output's files step aside, an index first, and the new ones move in, the index last.

        In between no loader finds weights there. If a step fails, the old output is put back.
        """
        target, aside = self._target.path, self._directory / "replaced"
        target.mkdir(exist_ok=True)
        entry = self._plan.index()
        weights = [shard.name for shard in self._plan.shards] + ([entry[0]] if entry else [])
        stepped_aside: list[str] = []
        moved_in: list[str] = []
        try:
            for name in sorted(self._target.replaced, key=lambda name: not name.endswith(".json")):
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).rename(aside / name)
                stepped_aside.append(name)
            for name in [*self._plan.copies, DOCUMENT, LOCAL, *weights]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _move_file(self._directory / name, target / name, replace=False)
                moved_in.append(name)
        except BaseException:
            for name in moved_in:
                (target / name).unlink()
            for name in reversed(stepped_aside):
                (aside / name).rename(target / name)
            raise
        self._sync_path(target)

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
            raise OutputError(
                f"cannot be written: {reason(error)}",
                file=self._target.path,
                hint="make room, or write somewhere else: -o",
            ) from error


@contextlib.contextmanager
def staged_outputs(plan: Plan, fingerprints: Sequence[str]) -> Iterator[list[OutputWriter]]:
    """A writer for each output of the plan. On leaving: all in place, or, after any exception, none left behind."""
    _check_space(plan)
    writers: list[OutputWriter] = []
    try:
        for output in plan.outputs:
            with _signals_held():  # from here on there is something to remove
                writers.append(OutputWriter(plan, output, fingerprints))
            writers[-1].create()
        yield writers
        for writer in writers:
            writer.sync()
        with _signals_held():
            for writer in writers:
                writer.put_in_place()
    except BaseException:
        with _signals_held():  # whoever presses Ctrl-C twice wants it to end, not to leave half an output
            for writer in writers:
                writer.discard()
        raise


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the block, so that nothing is left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: held.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        for number in held:
            signal.raise_signal(number)


def _check_space(plan: Plan) -> None:
    """Raise OutputError if the disk lacks the room, before anything is read. Outputs on one disk add up."""
    needed: dict[int, int] = {}
    for output in plan.outputs:
        parent = output.target.path.absolute().parent
        device = parent.stat().st_dev
        needed[device] = needed.get(device, 0) + sum(plan.files(output).values())
        free = shutil.disk_usage(parent).free
        if needed[device] > free:
            raise OutputError(
                f"cannot be written: it takes {words.size(needed[device])}, and {words.size(free)} are free",
                file=output.target.path,
                hint="make room, or write somewhere else: -o",
            )


def _staging_directory(target: Path) -> tuple[Path, int]:
    """A new directory beside the target, with a lock that says a living process owns it; -1 where there are none."""
    # A lock may be known to one machine only, so the machine is in the name and cleans up after itself alone.
    parent, prefix = target.absolute().parent, f".{target.name}.belay-{socket.gethostname()}-"
    _remove_abandoned(parent, prefix)
    while True:
        directory = parent / f"{prefix}{secrets.token_hex(4)}"
        directory.mkdir()
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another run took it for abandoned
            lock = _lock(directory)
            if directory.exists():
                return directory, lock


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what runs that were killed left behind for the same target: nobody holds its lock."""
    for directory in [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]:
        with contextlib.suppress(OSError):
            lock = _lock(directory)
            if lock >= 0:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)


def _lock(directory: Path) -> int:
    """A descriptor that holds the lock, or -1 where there are no locks. Raises BlockingIOError if another holds it."""
    if fcntl is None:
        return -1
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _LARGEST_WRITE], offset + done)


def _move_file(source: Path, target: Path, *, replace: bool) -> None:
    """Rename; without `replace`, never over a file that appeared meanwhile."""
    if not replace:
        try:
            os.link(source, target)
            source.unlink()
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if target.exists():
                raise FileExistsError(17, "file exists") from None
    source.replace(target)


def _has_entries(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
