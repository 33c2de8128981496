"""Replay on the CPU: each thread takes a chunk of several checkpoints at a time, in buffers that stay in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from belay_cli.engine.arithmetic import arithmetic
from belay_cli.engine.checksum import crc32
from belay_cli.engine.chunks import Chunk, Progress, Queue, Sink, chunks
from belay_cli.engine.contract import Arithmetic, Bytes, Checksums
from belay_cli.engine.finite import explain
from belay_cli.engine.kernel import Kernel
from belay_cli.engine.reading import Ahead, let_go, places
from belay_cli.engine.records import Records
from belay_cli.engine.spans import Spans
from belay_cli.errors import BelayError
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles, open_files

_POLL_SECONDS = 0.1


class Lane:
    """One thread's buffers and its share of the work."""

    def __init__(self, plan: Plan, writers: Sequence[Sink], ahead: Ahead, records: Records) -> None:
        self._plan, self._records = plan, records
        self._ahead = ahead
        self._writers = writers
        buffers, (source_bytes, output_bytes) = plan.buffers, plan.itemsizes
        self._rows = np.empty((buffers.rows, buffers.block * source_bytes), np.uint8)
        self._sums = np.empty((len(writers), buffers.block), np.float64)
        self._results = np.empty((len(writers), buffers.chunk * output_bytes), np.uint8)
        self.bytes_read = 0
        self.failure: tuple[int, BelayError] | None = None

    def work(self, queue: Queue) -> None:
        """Take chunks until there are none. An error stops the queue, and is kept with its chunk's number."""
        by = arithmetic(self._plan.engine)
        wanted = sum(len(self._plan.sources[t].files) for t in self._plan.read_checkpoints)
        with OpenFiles(open_files(self._plan.buffers.threads, wanted)) as files:
            for chunk in queue:
                try:
                    self._copy(chunk, files) if chunk.copied else self._average(chunk, files, by)
                except BelayError as error:
                    self.failure = (chunk.number, error)
                    queue.stop()
                except BaseException:
                    queue.stop()
                    raise

    def _copy(self, chunk: Chunk, files: OpenFiles) -> None:
        data = self._results[0].data[: chunk.nbytes(chunk.dtype)]  # which has room for all of it
        self._ahead.read_into(chunk, 0, files, data)
        self.bytes_read += len(data)
        if self._records.concern(chunk):
            self._records.note(chunk, 0, crc32(data))
        for writer in self._writers:
            writer.write(chunk, data)

    def _average(self, chunk: Chunk, files: OpenFiles, by: Arithmetic) -> None:
        results = list(self._results[:, : chunk.nbytes(chunk.dtype)])
        crcs = np.zeros(len(chunk.run.sources), np.uint32) if self._records.concern(chunk) else None
        bad = self._at_once(chunk, files, by, results, crcs)
        if bad is None:
            bad = self._row_by_row(chunk, files, by, results, crcs)
        self.bytes_read += len(chunk.run.sources) * chunk.nbytes(chunk.source_dtype)
        for place, crc in enumerate(crcs.tolist() if crcs is not None else ()):
            self._records.note(chunk, place, crc)
        for k, (writer, result) in enumerate(zip(self._writers, results, strict=True)):
            if bad[k] and (error := explain(self._plan, chunk, k, result)):
                raise error
            writer.write(chunk, result.data)

    def _at_once(
        self, chunk: Chunk, files: OpenFiles, by: Arithmetic, results: list[Bytes], crcs: Checksums | None
    ) -> bytes | None:
        """The results, read and made in one call: threads share the interpreter, so each step in it counts.

        None if the engine cannot, or files could not be read like that; whoever reads them again says why.
        """
        if not isinstance(by, Kernel) or (where := places(chunk, files)) is None:
            return None
        done = by.replay(
            where,
            chunk.run.coefficients,
            self._rows,
            self._sums,
            results,
            chunk.elements,
            dtypes=(chunk.source_dtype, chunk.dtype),
            crcs=crcs,
        )
        if self._plan.options.drop_cache:
            for place in where:
                let_go(place, chunk.nbytes(chunk.source_dtype))
        if isinstance(done, bytes):
            return done
        if crcs is not None:
            crcs[:] = 0  # of what was read before it failed
        return None

    def _row_by_row(
        self, chunk: Chunk, files: OpenFiles, by: Arithmetic, results: list[Bytes], crcs: Checksums | None
    ) -> bytes:
        """The same in steps."""
        bad = [bytes(len(results))]
        dtypes, coefficients = (chunk.source_dtype, chunk.dtype), chunk.run.coefficients
        for piece in chunk.pieces(self._plan.buffers.block):
            begin = piece.begins(piece.dtype) - chunk.begins(chunk.dtype)
            into = [result[begin : begin + piece.nbytes(piece.dtype)] for result in results]
            rows = list(self._rows[:, : piece.nbytes(piece.source_dtype)])
            sums, count = self._sums.reshape(-1)[: len(into) * piece.elements], len(chunk.run.sources)
            for first in range(0, count, len(rows)):
                taken = rows[: count - first]
                for place, row in enumerate(taken, first):
                    self._ahead.read_into(piece, place, files, row.data)
                    if crcs is not None:
                        crcs[place] = crc32(row, int(crcs[place]))
                bad.append(
                    by.average(
                        taken,
                        coefficients[first : first + len(taken)],
                        sums.reshape(len(into), piece.elements),
                        into if first + len(taken) == count else None,
                        dtypes=dtypes,
                        begins=not first,
                    )
                )
        return bytes(map(max, zip(*bad, strict=True)))


def replay_on_cpu(plan: Plan, writers: Sequence[Sink], progress: Progress, todo: Spans | None = None) -> None:
    """Run the plan. Raises the error of the earliest chunk that has one, whichever thread met one first."""
    queue = Queue(chunks(plan, plan.buffers.chunk, todo))
    with Ahead(plan, plan.buffers.chunk, todo) as ahead, ThreadPoolExecutor(plan.buffers.threads) as threads:
        records = Records(plan)
        lanes = [Lane(plan, writers, ahead, records) for _ in range(plan.buffers.threads)]
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
