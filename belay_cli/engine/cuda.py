"""Replay on a GPU: threads read into pinned buffers, one stream copies them over, another does the arithmetic.

A slot is a pinned buffer and its twin on the device. While the arithmetic works on one slot, the next is being
copied, and the ones after it are being read. Everything runs on the CPU as well, where each operation is
finished when it returns; that twin is how the order of the steps is tested without a GPU.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from belay_cli.engine.checksum import crc32
from belay_cli.engine.chunks import Chunk, Progress, Sink, Source, chunks
from belay_cli.engine.finite import explain
from belay_cli.engine.reading import Ahead
from belay_cli.engine.records import Records
from belay_cli.engine.spans import Spans
from belay_cli.engine.torch_ops import TORCH_DTYPES, accumulate, begin, check_finite, finish, widen
from belay_cli.errors import DeviceError
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles, open_files

_LARGEST_CHUNK = 8 << 20  # elements
_SMALLEST_CHUNK = 4 << 10
_SHARE_OF_FREE = 0.8  # of the GPU memory that is free, what a replay takes at most
_RESULTS = 2  # results under way: one being written while the next is computed


class Mark:
    """A point on a timeline, to wait for."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self.event = event

    def wait(self) -> None:
        """Block this thread until the point is reached."""
        if self.event is not None:
            self.event.synchronize()


class Timeline:
    """A CUDA stream. On the CPU there is none, and nothing to wait for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._stream is not None:
            # The buffers come from the current stream; what ran in them there before must be over.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Operations inside go onto this timeline."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> Mark:
        """The point after everything that was asked for so far."""
        return Mark(None if self._stream is None else self._stream.record_event())

    def finish(self) -> None:
        """Block this thread until everything that was asked for is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def after(self, mark: Mark) -> None:
        """What is asked for from now on begins after the mark."""
        if self._stream is not None and mark.event is not None:
            self._stream.wait_event(mark.event)


class Slot:
    """A pinned buffer and its twin on the device, and when each may be used again."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.device = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.copied = Mark(None)  # the pinned buffer is free again
        self.used = Mark(None)  # the one on the device is


class Part(NamedTuple):
    """One checkpoint's share of a chunk, its place among the chunk's sources; `first` and `last` of them."""

    chunk: Chunk
    source: Source
    place: int

    @property
    def first(self) -> bool:
        """Whether the chunk begins with it."""
        return self.place == 0

    @property
    def last(self) -> bool:
        """Whether the chunk ends with it."""
        return self.place == len(self.chunk.run.sources) - 1


class Pipeline:
    """The buffers of a replay in chunks of n elements, and the steps on them."""

    def __init__(
        self,
        plan: Plan,
        writers: Sequence[Sink],
        device: torch.device,
        n: int,
        threads: ThreadPoolExecutor,
        todo: Spans | None = None,
    ) -> None:
        self._plan, self._writers, self._threads = plan, writers, threads
        source_bytes, output_bytes = plan.itemsizes
        self.slots = [Slot(n * source_bytes, device) for _ in range(_slots(plan))]
        self._files = {slot: OpenFiles(open_files(_slots(plan))) for slot in self.slots}
        self._results = [[Slot(n * output_bytes, device) for _ in writers] for _ in range(_RESULTS)]
        self._wide = torch.empty(n, dtype=torch.float64, device=device)
        self._acc = torch.empty(len(writers), n, dtype=torch.float64, device=device)
        self._copying, self._computing = Timeline(device), Timeline(device)
        self._written: deque[list[Future[None]]] = deque()
        self._finished = 0
        self._records = Records(plan)
        self._ahead = Ahead(plan, n, todo)  # last: if memory for the rest is missing, nothing is being read

    def read(self, slot: Slot, part: Part) -> int:
        """Fill a slot's pinned buffer, in a reader's thread. Returns the bytes read."""
        nbytes = part.chunk.nbytes(part.chunk.source_dtype)
        slot.copied.wait()
        data = slot.host.numpy().data[:nbytes]
        self._ahead.read_into(part.chunk, part.place, self._files[slot], data)
        if self._records.concern(part.chunk):
            self._records.note(part.chunk, part.place, crc32(data))
        return nbytes

    def add(self, slot: Slot, part: Part) -> None:
        """Copy a filled slot to the device and add it to every output; after the last part, send the results off."""
        chunk = part.chunk
        if chunk.copied:
            data = slot.host.numpy().data[: chunk.nbytes(chunk.dtype)]
            for writer in self._writers:
                writer.write(chunk, data)
            return
        nbytes = chunk.nbytes(chunk.source_dtype)
        self._copying.after(slot.used)
        with self._copying.running():
            slot.device[:nbytes].copy_(slot.host[:nbytes], non_blocking=True)
        slot.copied = self._copying.mark()
        self._computing.after(slot.copied)
        with self._computing.running():
            self._accumulate(slot.device[:nbytes].view(TORCH_DTYPES[chunk.source_dtype]), part)
        slot.used = self._computing.mark()
        if part.last:
            self._send_results(chunk)

    def _accumulate(self, x: torch.Tensor, part: Part) -> None:
        n = part.chunk.elements
        if part.first:
            begin(self._acc[:, :n])
        wide = widen(x, self._wide[:n])
        for k, coefficient in enumerate(part.chunk.run.coefficients[part.place].tolist()):
            if coefficient:
                accumulate(self._acc[k, :n], wide, coefficient)

    def _send_results(self, chunk: Chunk) -> None:
        if len(self._written) == _RESULTS:
            self._wait_for_oldest()
        results = self._results[self._finished % _RESULTS]
        self._finished += 1
        nbytes = chunk.nbytes(chunk.dtype)
        with self._computing.running():
            for k, slot in enumerate(results):
                finish(self._acc[k, : chunk.elements], slot.device[:nbytes].view(TORCH_DTYPES[chunk.dtype]))
                slot.host[:nbytes].copy_(slot.device[:nbytes], non_blocking=True)
        done = self._computing.mark()
        self._written.append(
            [self._threads.submit(self._write_result, k, s, chunk, done) for k, s in enumerate(results)]
        )

    def _write_result(self, k: int, slot: Slot, chunk: Chunk, done: Mark) -> None:
        done.wait()
        host = slot.host[: chunk.nbytes(chunk.dtype)]
        if not check_finite(host.view(TORCH_DTYPES[chunk.dtype])):
            error = explain(self._plan, chunk, k, host.numpy())
            if error is not None:
                raise error
        self._writers[k].write(chunk, host.numpy().data)

    def _wait_for_oldest(self) -> None:
        for future in self._written.popleft():
            future.result()

    def close(self) -> None:
        """Close the files that were read, when nothing runs in the buffers any more."""
        self._copying.finish()
        self._computing.finish()
        self._ahead.close()
        for files in self._files.values():
            files.close()

    def drain(self) -> None:
        """Wait until every result is written."""
        while self._written:
            self._wait_for_oldest()


def replay_on_device(
    plan: Plan, writers: Sequence[Sink], progress: Progress, device: torch.device, todo: Spans | None = None
) -> None:
    """Run the plan on a GPU (or, for its twin, on the CPU). Raises DeviceError if not even small chunks fit."""
    n = chunk_elements(plan, device)
    with contextlib.ExitStack() as at_the_end:
        threads = ThreadPoolExecutor(plan.buffers.threads + 1)
        pipeline, n = _allocate(plan, writers, device, n, threads, todo)
        at_the_end.callback(pipeline.close)
        at_the_end.callback(threads.shutdown, wait=True, cancel_futures=True)  # before its files are closed
        _run(pipeline, _parts(plan, n, todo), threads, progress)


def _run(pipeline: Pipeline, parts: Iterator[Part], threads: ThreadPoolExecutor, progress: Progress) -> None:
    ahead: deque[tuple[Slot, Part, Future[int]]] = deque()
    free = deque(pipeline.slots)
    done = 0
    while True:
        while free and (part := next(parts, None)):
            slot = free.popleft()
            ahead.append((slot, part, threads.submit(pipeline.read, slot, part)))
        if not ahead:
            break
        slot, part, reading = ahead.popleft()
        done += reading.result()
        pipeline.add(slot, part)
        free.append(slot)
        progress(done)
    pipeline.drain()


def _parts(plan: Plan, n: int, todo: Spans | None) -> Iterator[Part]:
    for chunk in chunks(plan, n, todo):
        for place, source in enumerate(chunk.run.sources):
            yield Part(chunk, source, place)


def chunk_elements(plan: Plan, device: torch.device) -> int:
    """As many elements as fit in `--max-memory` on the host and in the GPU memory that is free."""
    if plan.options.chunk is not None:
        return plan.options.chunk
    source_bytes, output_bytes = plan.itemsizes
    outputs = len(plan.outputs)
    on_host = _slots(plan) * source_bytes + _RESULTS * outputs * output_bytes
    n = min(_LARGEST_CHUNK, plan.buffers.limit // on_host)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        n = min(n, int(free * _SHARE_OF_FREE) // (on_host + 8 + 8 * outputs))
    return max(_SMALLEST_CHUNK, n // 64 * 64)


def _allocate(
    plan: Plan,
    writers: Sequence[Sink],
    device: torch.device,
    n: int,
    threads: ThreadPoolExecutor,
    todo: Spans | None,
) -> tuple[Pipeline, int]:
    """A pipeline of chunks of n elements, or of fewer if somebody took the memory meanwhile."""
    while True:
        try:
            return Pipeline(plan, writers, device, n, threads, todo), n
        except torch.OutOfMemoryError as error:
            if n <= _SMALLEST_CHUNK:
                raise DeviceError(f"{device} has too little free memory", hint="--device cpu") from error
            n = max(_SMALLEST_CHUNK, n // 2 // 64 * 64)


def _slots(plan: Plan) -> int:
    """One being computed, one being copied, and one for each reading thread."""
    return 2 + plan.buffers.threads
