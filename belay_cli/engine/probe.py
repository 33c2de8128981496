"""What this machine does in a second, found in a few hundredths of one: what an estimate is made of.

A run is imitated on a sample: the same kernel reads, with as many threads, blocks of as many bytes from the same
files, at places chosen by chance. So what lies in the page cache counts as much as it does in the run.
"""

from __future__ import annotations

import hashlib
import random
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from belay_cli.engine.contract import Coefficients
from belay_cli.engine.kernel import Kernel
from belay_cli.errors import BelayError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan
from belay_cli.planning.estimate import Rates
from belay_cli.planning.gpu import gpu_pays
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.plan import TORCH
from belay_cli.planning.policies import AVERAGE
from belay_cli.storage.files import OpenFiles, Stored, is_remote

# What a disk takes cannot be told without writing: these are assumed, of a local NVMe, and of memory.
STORE = 2e9
WRITE = 4e9

# Of fewer bytes each figure is small, whatever the rates: these are assumed, and no file is touched.
_LEAST = 16 << 20
_ASSUMED = Rates(read=4e9, arithmetic=8e9, write=WRITE, sha256=1e9, store=STORE)

_SAMPLE = 64 << 20  # bytes at the most, and this part of what a run reads
_PART = 1 / 32
_SECONDS = 0.08  # after which no more of the sample is read
_LONG = 5.0  # seconds of a run for which a second sample is read,
_MORE = 4  # so many times as large: a disk takes a while to be as fast as it is in the middle of a run
_IN_MEMORY = 0.003  # seconds for each of the rates that take no file
_FILES = 32  # checkpoints of a series that a sample takes
_BLOCKS = 4  # in one call
_CALLS = 5  # side by side: the first is not counted, since it has a disk find the place
_HASHED = 256 << 10


class _Sample(NamedTuple):
    """Tensors to take places from, and of which checkpoints."""

    plan: Plan
    tensors: list[PlannedTensor]
    ends: list[int]  # elements up to the end of each
    checkpoints: list[int]
    coefficients: Coefficients

    def place(self) -> tuple[PlannedTensor, list[tuple[int, int]]]:
        """A tensor, and pieces of it side by side, (first element, elements); any place is as likely."""
        at = random.randrange(self.ends[-1])  # noqa: S311 - no secret
        tensor = self.tensors[i := bisect_right(self.ends, at)]
        piece = self.plan.buffers.block * _BLOCKS
        start = min(at - (self.ends[i] - tensor.elements), max(0, tensor.elements - piece * _CALLS)) // 64 * 64
        starts = range(start, min(start + piece * _CALLS, tensor.elements), piece)
        return tensor, [(first, min(piece, tensor.elements - first)) for first in starts]


def probe(plan: Plan, nbytes: float | None = None, seconds: float = _SECONDS) -> Rates | None:
    """The rates for a plan on this machine, from a sample of at most so many bytes, read within so many seconds.

    None where a sample cannot tell: without the kernel or on a GPU, of files far away, of tensors that lie in pieces,
    of adapters that are multiplied.
    """
    sample = _sample(plan)
    if sample is None:
        return None
    if plan.data_read < _LEAST:
        return _ASSUMED
    threads = plan.buffers.threads
    enough = nbytes or min(_SAMPLE, plan.data_read * _PART)
    try:
        with ThreadPoolExecutor(threads) as pool:
            lanes = [_Lane(sample) for _ in range(threads)]

            def together(work: Callable[[_Lane], float]) -> float:
                return sum(pool.map(work, lanes))

            arithmetic, sha256 = together(_Lane.adds), together(_Lane.hashes)
            both = together(lambda lane: lane.replays(enough / threads, seconds))
            if plan.data_read / both > _LONG:
                both = together(lambda lane: lane.replays(_MORE * enough / threads, _MORE * seconds))
    except (OSError, BelayError):
        return None  # a run will say of what file
    read = 1 / max(1 / both - 1 / arithmetic, 1e-12)
    return Rates(read, arithmetic, WRITE, sha256, STORE, threads=threads)


def _sample(plan: Plan) -> _Sample | None:
    asked = plan.options.device
    if plan.engine == TORCH or asked.startswith("cuda") or (asked == "auto" and gpu_pays(plan)) or plan.updates:
        return None
    if any(is_remote(file.path) for checkpoint in plan.series.checkpoints for file in checkpoint.files):
        return None
    tensors = [tensor for tensor in plan.tensors if tensor.action == AVERAGE and tensor.elements]
    checkpoints = plan.read_checkpoints
    if not tensors or not all(
        isinstance(plan.series.checkpoints[t].stored(tensors[0].name), Stored) for t in checkpoints
    ):
        return None
    if len(checkpoints) > _FILES:
        checkpoints = sorted(random.sample(checkpoints, _FILES))
    coefficients = np.stack([output.coefficients[checkpoints] for output in plan.outputs], axis=1)
    ends = list(accumulate(tensor.elements for tensor in tensors))
    return _Sample(plan, tensors, ends, checkpoints, np.ascontiguousarray(coefficients))


class _Lane:
    """The buffers of one thread, as a run has them. Each of its methods is a rate, in bytes a second."""

    def __init__(self, sample: _Sample) -> None:
        plan, self._sample = sample.plan, sample
        buffers, (source_bytes, output_bytes) = plan.buffers, plan.itemsizes
        self._kernel = Kernel(plan.engine)
        self._widest = max(sample.tensors, key=lambda tensor: tensor.elements)
        self._rows = np.full((buffers.rows, buffers.block * source_bytes), 0x3C, np.uint8)  # small numbers
        self._sums = np.zeros((len(plan.outputs), buffers.block), np.float64)
        self._results = np.zeros((len(plan.outputs), buffers.block * _BLOCKS * output_bytes), np.uint8)

    def adds(self) -> float:
        """Of the arithmetic."""
        tensor, block = self._widest, self._sample.plan.buffers.block
        count = min(len(self._rows), len(self._sample.checkpoints))
        rows = [row[: block * DTYPES[tensor.source_dtype].bits // 8] for row in self._rows[:count]]
        results = [result[: block * DTYPES[tensor.dtype].bits // 8] for result in self._results]
        dtypes = tensor.source_dtype, tensor.dtype

        def add() -> int:
            self._kernel.average(
                rows, self._sample.coefficients[:count], self._sums, results, dtypes=dtypes, begins=True
            )
            return sum(len(row) for row in rows)

        add()  # which touches the buffers
        return _rate(add, _IN_MEMORY)

    def hashes(self) -> float:
        """Of SHA-256."""
        data = bytes(_HASHED)

        def digest() -> int:
            hashlib.sha256(data).digest()
            return len(data)

        return _rate(digest, _IN_MEMORY)

    def replays(self, enough: float, seconds: float) -> float:
        """Of reading and arithmetic in turn, as a run does both."""
        end = time.perf_counter() + seconds
        nbytes, taken, now = 0, 0.0, 0.0
        with OpenFiles(len(self._sample.checkpoints)) as files:
            while nbytes < enough and now < end:
                tensor, pieces = self._sample.place()
                for number, (start, elements) in enumerate(pieces):
                    began = time.perf_counter()
                    done = self._replay(tensor, start, elements, files)
                    now = time.perf_counter()
                    if number or len(pieces) == 1 or now >= end:
                        nbytes, taken = nbytes + done, taken + now - began
                    if now >= end:
                        break
        return nbytes / taken

    def _replay(self, tensor: PlannedTensor, start: int, elements: int, files: OpenFiles) -> int:
        source = DTYPES[tensor.source_dtype].bits
        stored = [self._sample.plan.series.checkpoints[t].stored(tensor.name) for t in self._sample.checkpoints]
        places = [where for where in stored if isinstance(where, Stored)]
        descriptors = files.descriptors([where.file for where in places])
        if descriptors is None or len(places) < len(stored):
            raise OSError("in pieces")
        done = self._kernel.replay(
            [(opened, where.offset + start * source // 8) for opened, where in zip(descriptors, places, strict=True)],
            self._sample.coefficients,
            self._rows,
            self._sums,
            [result[: elements * DTYPES[tensor.dtype].bits // 8] for result in self._results],
            elements,
            dtypes=(tensor.source_dtype, tensor.dtype),
        )
        if isinstance(done, int):
            raise OSError("a file is shorter than it says")
        return len(places) * elements * source // 8


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Bytes a second of what is done again and again for so long."""
    done, began = 0, time.perf_counter()
    while True:
        done += work()
        passed = time.perf_counter() - began
        if passed >= seconds:
            return done / passed
