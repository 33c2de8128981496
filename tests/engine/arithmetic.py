"""The definition of the arithmetic, number by number in rational numbers, and numbers in the dtypes that it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from belay_cli.engine.contract import Arithmetic, Bytes, Coefficients
from belay_cli.formats.floats import as_float64

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16 as the upper half of a float32
ONE_NAN = {"F64": 0x7FF8 << 48, "F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}
INTEGERS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}


def fused(c: float, x: float, s: float) -> float:
    """c·x + s with one rounding; with the sign of a zero as IEEE 754 has it."""
    if not (math.isfinite(x) and math.isfinite(s)):
        return c * x + s
    if x == 0 == s:
        return c * x + s  # a sum of zeros, each with its sign
    exact = Fraction(c) * Fraction(x) + Fraction(s)
    try:
        return math.copysign(float(exact), -1 if exact < 0 else 1)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def rounded(s: float, into: str) -> int:
    """The bits of a sum in a dtype."""
    if math.isnan(s):
        return ONE_NAN[into]
    with np.errstate(over="ignore"):
        if into == "F64":
            return int(np.float64(s).view("<u8"))
        single = np.float32(s)
        if into == "F32":
            return int(single.view("<u4"))
        if into == "F16":
            return int(np.float16(single).view("<u2"))
    bits = int(single.view("<u4"))
    low, high = bits & 0xFFFF, bits >> 16
    return high + (low > 0x8000 or (low == 0x8000 and high & 1 == 1))


def defined(rows: Sequence[Bytes], coefficients: Coefficients, dtypes: tuple[str, str], k: int) -> list[int]:
    """The bits of output k, from the definition."""
    wide = [as_float64(row.view(np.uint8), dtypes[0]).tolist() for row in rows]
    found = []
    for i in range(len(wide[0])):
        s = -0.0
        for c, x in zip(coefficients[:, k].tolist(), wide, strict=True):
            s = fused(c, x[i], s) if c else s
        found.append(rounded(s, dtypes[1]))
    return found


def average(
    by: Arithmetic, rows: Sequence[Bytes], coefficients: Coefficients, dtypes: tuple[str, str], cuts: Sequence[int] = ()
) -> tuple[list[Any], bytes]:
    """The bits of every output, and which are not finite; the rows are handed over in pieces that end at `cuts`."""
    n, outputs = rows[0].nbytes // np.dtype(DTYPES[dtypes[0]]).itemsize, coefficients.shape[1]
    sums = np.full((outputs, n), np.nan)
    results = [np.empty(n, INTEGERS[dtypes[1]]) for _ in range(outputs)]
    edges = [0, *cuts, len(rows)]
    for first, last in pairwise(edges):
        into = results if last == len(rows) else None
        bad = by.average(rows[first:last], coefficients[first:last], sums, into, dtypes=dtypes, begins=not first)
    return results, bad


def random_rows(rng: np.random.Generator, count: int, n: int, dtype: str, *, special: bool = True) -> list[Bytes]:
    """Numbers of every size in a dtype, signed zeros and subnormals among them; as bits, so no NaN is quietened."""
    bits = rng.integers(0, 1 << (8 * np.dtype(INTEGERS[dtype]).itemsize), (count, n), np.uint64).astype(INTEGERS[dtype])
    plain = rng.standard_normal((count, n)).astype("<f4")
    near = (plain.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else plain.astype(DTYPES[dtype])
    near = near.view(INTEGERS[dtype])
    wild = rng.random((count, n)) < (0.3 if special else 0)
    mixed = np.where(wild, bits, near)
    if special:
        mixed[rng.random((count, n)) < 0.1] = 0
        mixed[rng.random((count, n)) < 0.1] = 1 << (8 * mixed.itemsize - 1)  # −0
    return list(mixed)
