"""The arithmetic, compiled. Where it was not built, or the processor has none of its instruction sets, there is none.

The C reads from `module.c`, which Python calls, over `loops.h`, what it hands on, to `body.h`, the loops themselves,
in terms of eight numbers; `avx512.c`, `avx2.c` (with `x86.h`) and `neon.c` say what those are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from belay_cli.engine.contract import Bytes, Bytes2D, Checksums, Coefficients, Sums

crc32: Callable[[Any, int], int]  # data, the checksum of what lies before it

try:
    from belay_cli.engine.kernel import _native
except ImportError:
    KERNELS: tuple[str, ...] = ()
    crc32 = zlib.crc32
else:
    KERNELS = _native.available()  # the best one first
    crc32 = _native.crc32


class Kernel:
    """The loops for one instruction set of KERNELS. See Arithmetic."""

    def __init__(self, name: str) -> None:
        self.name = name

    def average(
        self,
        rows: Sequence[Bytes],
        coefficients: Coefficients,
        sums: Sums,
        results: Sequence[Bytes] | None,
        *,
        dtypes: tuple[str, str],
        begins: bool,
    ) -> bytes:
        """As the contract says; sums that begin and end here are never in `sums`."""
        return _native.average(self.name, *dtypes, *sums.shape, rows, coefficients, sums, results, begins)

    def replay(
        self,
        places: Sequence[tuple[int, int]],
        coefficients: Coefficients,
        rows: Bytes2D,
        sums: Sums,
        results: Sequence[Bytes],
        elements: int,
        *,
        dtypes: tuple[str, str],
        crcs: Checksums | None = None,
    ) -> bytes | int:
        """Read what lies at (descriptor, offset), one a checkpoint, and average it, without the interpreter.

        It goes through `rows` [checkpoints at a time, bytes] and `sums` [outputs, elements at a time], so that what
        is read stays in the cache. Returns a byte an output as `average` does, or the number of the first place that
        could not be read. crcs [places]: the CRC-32 of what was read before of each, which goes on with this.
        """
        held, (outputs, block) = len(rows), sums.shape
        return _native.replay(
            self.name, *dtypes, outputs, elements, places, coefficients, held, block, rows, sums, results, crcs
        )
