"""Replay on the CPU: each thread takes a chunk through every checkpoint in buffers that stay in its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import torch

from belay_cli.engine.chunks import Chunk, Progress, Queue, Sink, chunks
from belay_cli.engine.contract import TORCH_DTYPES, accumulate, all_finite, finish, widen
from belay_cli.engine.finite import explain
from belay_cli.engine.reading import Ahead
from belay_cli.errors import BelayError
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles, open_files

_POLL_SECONDS = 0.1


class Lane:
    """One thread's buffers and its share of the work."""

    def __init__(self, plan: Plan, writers: Sequence[Sink], ahead: Ahead) -> None:
        self._plan = plan
        self._ahead = ahead
        self._writers = writers
        n = plan.buffers.chunk
        source_bytes, output_bytes = plan.itemsizes
        self._read = np.empty(n * source_bytes, np.uint8)
        self._written = np.empty(n * output_bytes, np.uint8)
        self._wide = torch.empty(n, dtype=torch.float64)
        self._acc = torch.empty(len(writers), n, dtype=torch.float64)
        self.bytes_read = 0
        self.failure: tuple[int, BelayError] | None = None

    def work(self, queue: Queue) -> None:
        """Take chunks until there are none. An error stops the queue, and is kept with its chunk's number."""
        torch.set_num_threads(1)  # the chunks are the parallelism
        with OpenFiles(open_files(self._plan.buffers.threads)) as files:
            for chunk in queue:
                try:
                    self._copy(chunk, files) if chunk.tensor.copied else self._average(chunk, files)
                except BelayError as error:
                    self.failure = (chunk.number, error)
                    queue.stop()
                except BaseException:
                    queue.stop()
                    raise

    def _copy(self, chunk: Chunk, files: OpenFiles) -> None:
        data = self._read.data[: chunk.nbytes(chunk.tensor.dtype)]
        self._ahead.read_into(chunk, 0, files, data)
        self.bytes_read += len(data)
        for writer in self._writers:
            writer.write(chunk, data)

    def _average(self, chunk: Chunk, files: OpenFiles) -> None:
        # Every view is made once a chunk: the loop below is where the time goes, and threads share the interpreter.
        tensor, n = chunk.tensor, chunk.elements
        read = self._read[: chunk.nbytes(tensor.source_dtype)]
        x, wide = torch.from_numpy(read).view(TORCH_DTYPES[tensor.source_dtype]), self._wide[:n]
        into, accs = read.data, [acc[:n] for acc in self._acc]
        started = [False] * len(accs)
        for place, source in enumerate(chunk.sources):
            self._ahead.read_into(chunk, place, files, into)
            widened = widen(x, wide)
            for k, coefficient in enumerate(source.coefficients):
                if coefficient:
                    accumulate(accs[k], widened, coefficient, first=not started[k])
                    started[k] = True
            self.bytes_read += len(read)
        written = self._written[: chunk.nbytes(tensor.dtype)]
        out = torch.from_numpy(written).view(TORCH_DTYPES[tensor.dtype])
        for k, writer in enumerate(self._writers):
            finish(accs[k], out)
            if not all_finite(out) and (error := explain(self._plan, chunk, k)):
                raise error
            writer.write(chunk, written.data)


def replay_on_cpu(plan: Plan, writers: Sequence[Sink], progress: Progress) -> None:
    """Run the plan. Raises the error of the earliest chunk that has one, whichever thread met one first."""
    queue = Queue(chunks(plan, plan.buffers.chunk))
    with (
        _torch_threads_kept(),
        Ahead(plan, plan.buffers.chunk) as ahead,
        ThreadPoolExecutor(plan.buffers.threads) as threads,
    ):
        lanes = [Lane(plan, writers, ahead) for _ in range(plan.buffers.threads)]
        try:
            running = [threads.submit(lane.work, queue) for lane in lanes]
            _watch(running, lanes, progress)
        finally:
            queue.stop()  # an interrupt: the threads finish their chunk and no other
    failures = [lane.failure for lane in lanes if lane.failure]
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def _watch(running: list[Future[None]], lanes: list[Lane], progress: Progress) -> None:
    pending = set(running)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS)
        progress(sum(lane.bytes_read for lane in lanes))
        for future in done:
            future.result()


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Workers run torch with one thread each; a program that calls belay gets its own number back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
