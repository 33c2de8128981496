"""Numbers from the bytes of the dtypes that can be averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}

Float64s = np.ndarray[tuple[int], np.dtype[np.float64]]
Raw = np.ndarray[tuple[int], np.dtype[Any]]


def as_float64(raw: Raw, dtype: str) -> Float64s:
    """The numbers that the bytes raw: [n · itemsize] uint8 hold in a dtype (safetensors code); exact."""
    # The upper half of a float32 is a bfloat16.
    numbers = (raw.view("<u2").astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw.view(_NUMPY[dtype])
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return numbers.astype(np.float64)
