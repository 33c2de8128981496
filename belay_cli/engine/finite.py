"""When a result is not finite: whose fault it is, in words. Slow, and only on the way to an error."""

from __future__ import annotations

import torch

from belay_cli.engine.chunks import Chunk, Source
from belay_cli.engine.contract import TORCH_DTYPES, accumulate
from belay_cli.errors import NumericError, glob_for
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan
from belay_cli.storage.files import OpenFiles


def explain(plan: Plan, chunk: Chunk, k: int) -> NumericError | None:
    """The error for a chunk of output k that holds NaN or infinity, or None if the options allow what it holds."""
    with OpenFiles(limit=16) as files:
        return _explain(plan, chunk, k, files)


def _explain(plan: Plan, chunk: Chunk, k: int, files: OpenFiles) -> NumericError | None:
    parts = [source for source in chunk.sources if source.coefficients[k]]
    kinds = {source: kind for source in parts if (kind := _kind(_load(chunk, source, files)))}
    if not kinds:
        return _overflow(chunk)
    if plan.options.allow_nonfinite or chunk.tensor.action == "last":
        return _overflow(chunk) if _overflows(chunk, parts, k, files) else None
    source, kind = next(iter(kinds.items()))
    return _in_weights(plan, chunk, source, kind)


def _load(chunk: Chunk, source: Source, files: OpenFiles) -> torch.Tensor:
    buffer = bytearray(chunk.nbytes(chunk.tensor.source_dtype))
    source.stored.read_into(files, memoryview(buffer), chunk.begins(chunk.tensor.source_dtype))
    return torch.frombuffer(buffer, dtype=TORCH_DTYPES[chunk.tensor.source_dtype])


def _kind(x: torch.Tensor) -> str | None:
    if x.isnan().any():
        return "NaN"
    if x.isinf().any():
        return "-inf" if (x[x.isinf()] < 0).all() else "inf"
    return None


def _overflows(chunk: Chunk, parts: list[Source], k: int, files: OpenFiles) -> bool:
    """Whether the output's dtype makes an element infinite that float64 held."""
    acc = torch.empty(chunk.elements, dtype=torch.float64)
    for i, source in enumerate(parts):
        accumulate(acc, _load(chunk, source, files).double(), source.coefficients[k], first=i == 0)
    out = acc.to(TORCH_DTYPES[chunk.tensor.dtype])
    return bool((torch.isfinite(acc) & ~torch.isfinite(out)).any())


def _in_weights(plan: Plan, chunk: Chunk, source: Source, kind: str) -> NumericError:
    name = chunk.tensor.name
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


def _overflow(chunk: Chunk) -> NumericError:
    tensor = chunk.tensor
    return NumericError(
        f"the average of {tensor.name!r} is too large for {DTYPES[tensor.dtype].name}",
        tensor=tensor.name,
        hint="write a wider dtype: --dtype bfloat16 or --dtype float32",
    )
