"""When a result is not finite: whose fault it is, in words. Slow, and only on the way to an error."""

from __future__ import annotations

import numpy as np

from belay_cli.engine.arithmetic import arithmetic
from belay_cli.engine.chunks import Chunk, Source
from belay_cli.engine.contract import Bytes
from belay_cli.errors import NumericError, glob_for
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.floats import Float64s, as_float64
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles


def explain(plan: Plan, chunk: Chunk, k: int, result: Bytes) -> NumericError | None:
    """The error for a chunk of output k, whose bytes are `result`; None if the options allow what it holds."""
    begins = chunk.begins(chunk.dtype)
    with OpenFiles(limit=16) as files:
        for piece in chunk.by_tensor():
            at = piece.begins(piece.dtype) - begins
            found = as_float64(result[at : at + piece.nbytes(piece.dtype)], piece.dtype)
            if not np.isfinite(found).all() and (error := _explain(plan, piece, k, found, files)):
                return error
    return None


def _explain(plan: Plan, chunk: Chunk, k: int, found: Float64s, files: OpenFiles) -> NumericError | None:
    """The same for what lies in one tensor."""
    coefficients = chunk.run.coefficients[:, k]
    parts = [source for source, c in zip(chunk.run.sources, coefficients, strict=True) if c]
    kinds = {source: kind for source in parts if (kind := _kind(_load(chunk, source, files), chunk.source_dtype))}
    if not kinds:
        return _overflow(plan, chunk)
    if plan.options.allow_nonfinite or chunk.part.tensor.action == "last":
        return _overflow(plan, chunk) if _overflows(plan, chunk, k, found, files) else None
    source, kind = next(iter(kinds.items()))
    return _in_weights(plan, chunk, source, kind)


def _load(chunk: Chunk, source: Source, files: OpenFiles) -> Bytes:
    data = np.empty(chunk.nbytes(chunk.source_dtype), np.uint8)
    source.stored.read_into(files, data.data, chunk.begins(chunk.source_dtype))
    return data


def _kind(data: Bytes, dtype: str) -> str | None:
    x = as_float64(data, dtype)
    if np.isnan(x).any():
        return "NaN"
    if np.isinf(x).any():
        return "-inf" if (x[np.isinf(x)] < 0).all() else "inf"
    return None


def _overflows(plan: Plan, chunk: Chunk, k: int, found: Float64s, files: OpenFiles) -> bool:
    """Whether the output's dtype makes an element infinite that float64 held."""
    by, exact = arithmetic(plan.engine), np.empty(chunk.elements)
    sums = np.empty((1, chunk.elements))
    for i, source in enumerate(chunk.run.sources):
        rows, into = [_load(chunk, source, files)], [exact] if i == len(chunk.run.sources) - 1 else None
        factors = np.ascontiguousarray(chunk.run.coefficients[i : i + 1, k : k + 1])
        by.average(rows, factors, sums, into, dtypes=(chunk.source_dtype, "F64"), begins=not i)
    return bool((np.isfinite(exact) & ~np.isfinite(found)).any())


def _in_weights(plan: Plan, chunk: Chunk, source: Source, kind: str) -> NumericError:
    name = chunk.part.tensor.known_as
    checkpoint = plan.series.checkpoints[source.checkpoint]
    mend = (
        "leave the checkpoint out"
        if kind == "NaN"
        else f"for a mask, keep the last checkpoint's: --last {glob_for(name)}"
    )
    return NumericError(
        f"{name!r} holds {kind}",
        file=checkpoint.path,
        tensor=name,
        hint=f"{mend}; to average it all the same: --allow-nonfinite",
    )


def _overflow(plan: Plan, chunk: Chunk) -> NumericError:
    tensor = chunk.part.tensor
    other = "leave out --format same, and " if plan.is_same else ""
    return NumericError(
        f"the average of {tensor.known_as!r} is too large for {DTYPES[tensor.dtype].name}",
        tensor=tensor.known_as,
        hint=f"{other}write a wider dtype: --dtype bfloat16 or --dtype float32",
    )
