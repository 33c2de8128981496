"""How much memory a replay takes on the CPU, decided before it starts. Sizes in bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from belay_cli.errors import UsageError

DEFAULT_MAX_MEMORY = "300MB"

# The accumulators of one thread stay in its cache; fewer elements cost calls, more cost cache misses.
_CACHE_BYTES = 4 << 20
_LARGEST_CHUNK = 256 << 10  # elements
_SMALLEST_CHUNK = 4 << 10
_GOOD_CHUNK = 16 << 10


@dataclass(frozen=True)
class Buffers:
    """Threads, elements of a chunk, the bytes that all threads' buffers take together, and the bytes they may."""

    threads: int
    chunk: int
    nbytes: int
    limit: int


def bytes_per_element(outputs: int, source_bytes: int, output_bytes: int) -> int:
    """Of one thread's chunk: as read, in float64, as written, as read back for its digest, and a float64 an output."""
    return source_bytes + 8 + 2 * output_bytes + outputs * 8


def plan_buffers(
    *,
    outputs: int,
    source_bytes: int,
    output_bytes: int,
    threads: int | None,
    max_memory: int,
    chunk: int | None = None,
) -> Buffers:
    """Chunks that stay in cache, for as many threads as fit in `max_memory` bytes (at most `threads`).

    Raises UsageError if not even one thread with the smallest chunk fits.
    """
    each = bytes_per_element(outputs, source_bytes, output_bytes)
    wanted = wanted_threads(threads)
    if chunk is None:
        chunk = max(_GOOD_CHUNK, min(_LARGEST_CHUNK, _CACHE_BYTES // (8 * (outputs + 1))))
        chunk = max(_SMALLEST_CHUNK, min(chunk, max_memory // (wanted * each))) // 64 * 64
    fitting = min(wanted, max_memory // (chunk * each))
    if fitting < 1:
        raise UsageError(
            f"--max-memory is too small: one thread takes {chunk * each / 1e6:.1f} MB for {outputs} "
            f"output{'s' if outputs > 1 else ''}",
            hint="the default is " + DEFAULT_MAX_MEMORY,
        )
    return Buffers(fitting, chunk, fitting * chunk * each, max_memory)


def wanted_threads(given: int | None) -> int:
    """The number given, or one for each core. Raises UsageError if it is less than 1."""
    if given is not None and given < 1:
        raise UsageError(f"--threads must be 1 or more, not {given}")
    return given or available_cores()


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
