"""How much memory a replay takes on the CPU, decided before it starts. Sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from belay_cli.errors import UsageError
from belay_cli.storage.files import available_cores

DEFAULT_MAX_MEMORY = "300MB"

_SMALLEST = 4 << 10  # elements
_LARGEST = 512 << 10  # for many threads and outputs each write has to be large: the interpreter makes one at a time


class Shape(NamedTuple):
    """How a thread reads: `rows` checkpoints at a time, and of each as many elements as fill `cache` bytes.

    At least `good` elements, and at most `largest`. Sums are touched once for so many checkpoints.
    """

    cache: int
    good: int
    largest: int
    rows: int


IN_CACHE = Shape(1536 << 10, 4 << 10, _LARGEST, 16)  # for the kernel, which reads and adds without the interpreter
FEW_CALLS = Shape(4 << 20, 64 << 10, 256 << 10, 1)  # else: each call costs as much as some thousand elements
FAR_AWAY = Shape(1 << 30, 1 << 20, 1 << 20, 1)  # from a server, which is asked for more at a time than a cache holds


@dataclass(frozen=True)
class Buffers:
    """How the work is cut: a thread makes `chunk` elements of every output at a time, out of blocks.

    Of a block it holds `rows` checkpoints. `nbytes` is what all threads' buffers take together, `limit` what they may.
    """

    threads: int
    chunk: int
    block: int
    rows: int
    nbytes: int
    limit: int


def bytes_of_thread(outputs: int, rows: int, source_bytes: int, output_bytes: int, *, chunk: int, block: int) -> int:
    """Rows as read, one of them and every sum in float64, every result, and one that is read back for its digest."""
    return block * (rows * source_bytes + 8 + outputs * 8) + chunk * (outputs + 1) * output_bytes


def plan_buffers(
    *,
    outputs: int,
    checkpoints: int,
    source_bytes: int,
    output_bytes: int,
    threads: int | None,
    max_memory: int,
    chunk: int | None = None,
    shape: Shape = IN_CACHE,
) -> Buffers:
    """Chunks and blocks for as many threads as fit in `max_memory` bytes (at most `threads`).

    Raises UsageError if not even one thread with the smallest chunk fits.
    """
    rows = max(1, min(shape.rows, checkpoints))

    def takes(chunk: int, block: int) -> int:
        return bytes_of_thread(outputs, rows, source_bytes, output_bytes, chunk=chunk, block=block)

    wanted = wanted_threads(threads)
    in_cache = rows * source_bytes + outputs * (8 + output_bytes)
    block = max(shape.good, min(shape.largest, shape.cache // in_cache)) // 64 * 64
    if chunk is None:
        chunk = max(block, _LARGEST)
        while chunk > _SMALLEST and wanted * takes(chunk, min(block, chunk)) > max_memory:
            chunk = max(_SMALLEST, chunk // 2 // 64 * 64)
    block = chunk if shape is FAR_AWAY else min(block, chunk)  # what is read ahead is read whole
    each = takes(chunk, block)
    fitting = min(wanted, max_memory // each)
    if fitting < 1:
        raise UsageError(
            f"--max-memory is too small: one thread takes {each / 1e6:.1f} MB for {outputs} "
            f"output{'s' if outputs > 1 else ''}",
            hint="the default is " + DEFAULT_MAX_MEMORY,
        )
    return Buffers(fitting, chunk, block, rows, fitting * each, max_memory)


def wanted_threads(given: int | None) -> int:
    """The number given, or one for each core. Raises UsageError if it is less than 1."""
    if given is not None and given < 1:
        raise UsageError(f"--threads must be 1 or more, not {given}")
    return given or available_cores()
