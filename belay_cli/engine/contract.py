"""The arithmetic, and nothing else: a float64 sum, one fused multiply-add a checkpoint, one rounding.

outputs[K] = coefficients[K, T] · checkpoints[T], elementwise and in the order of the checkpoints, so that no byte
depends on how the elements are divided among chunks, threads or devices. What that is of one element x_t of each
checkpoint, in every engine:

    s ← −0                            to which the first product is added as it is, its sign included
    s ← fma(c_t, x_t, s)              for each t in order whose c_t is not 0; one rounding to float64
    y ← round(s)                      to nearest, ties to even; to bfloat16 and float16 by way of float32
    y ← NaN                           the one without a sign or a payload, if it is any

The way through float32 adds at most 2⁻¹⁴ ulp to the half of a rounding. Subnormals are numbers like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Coefficients = np.ndarray[tuple[int, int], np.dtype[np.float64]]  # [checkpoints, outputs]
Sums = np.ndarray[tuple[int, int], np.dtype[np.float64]]  # [outputs, elements]
Bytes = np.ndarray[tuple[int], np.dtype[Any]]  # of any element type, contiguous
Checksums = np.ndarray[tuple[int], np.dtype[np.uint32]]
Bytes2D = np.ndarray[tuple[int, int], np.dtype[Any]]


class Arithmetic(Protocol):
    """The arithmetic on a processor, for one thread at a time; `name` is the engine's."""

    name: str

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
        """Add rows to the sums, which begin with these or go on; with `results`, round the sums into them.

        rows: one a checkpoint, each as many elements of the dtype `dtypes[0]` as a row of `sums` has; results: one an
        output, of the dtype `dtypes[1]`. Dtypes are safetensors codes of floating point. What is in `sums` when they
        are rounded is undefined. Returns a byte an output, which is 1 if one of its results is NaN or infinite.
        """
        ...
