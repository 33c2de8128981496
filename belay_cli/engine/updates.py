"""Low-rank updates of a plan, averaged as products: whole factors are read, not chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from belay_cli.checkpoints.adapters.lora import Pair, gain
from belay_cli.engine.arithmetic import arithmetic
from belay_cli.engine.chunks import Chunk, Run, Sink
from belay_cli.engine.low_rank import Matrix, average_update, one_blas_thread
from belay_cli.errors import NumericError
from belay_cli.formats.floats import as_float64
from belay_cli.planning import Plan
from belay_cli.planning.layout import PlannedTensor
from belay_cli.storage.files import OpenFiles

_OPEN = 16  # files


def write_updates(plan: Plan, writers: Sequence[Sink]) -> list[float | None]:
    """Average every update of the plan and write its factors; for each output, the most energy that was discarded.

    None where there are no updates. Raises CheckpointError, NumericError or OutputError.
    """
    if not plan.updates:
        return [None] * len(writers)
    with ThreadPoolExecutor(1) as apart:  # engines set up the thread that they run in, which should not be the caller's
        return list(apart.submit(_write_all, plan, writers).result())


def _write_all(plan: Plan, writers: Sequence[Sink]) -> list[float]:
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    worst = [0.0] * len(writers)
    with one_blas_thread(), OpenFiles(_OPEN) as files:
        for pair in plan.updates:
            for k, writer in enumerate(writers):
                a, b = tensors[pair.a], tensors[pair.b]
                found = average_update(_factors(plan, pair, k, a.shape[0], files), a.shape[0])
                _write(plan, writer, a, found.a)
                _write(plan, writer, b, found.b)
                worst[k] = max(worst[k], found.discarded)
    return worst


def _factors(plan: Plan, pair: Pair, k: int, rank: int, files: OpenFiles) -> Iterator[tuple[float, Matrix, Matrix]]:
    scaled = gain(plan.series.last.tensors, pair, rank)
    for t in plan.read_checkpoints:
        coefficient = float(plan.outputs[k].coefficients[t])
        if coefficient:
            yield coefficient * scaled, *read_factors(plan, t, pair, files)


def read_factors(plan: Plan, t: int, pair: Pair, files: OpenFiles) -> tuple[Matrix, Matrix]:
    """B [out, r] and A [r, in] of one checkpoint, convolutions flattened. Raises NumericError if not finite."""
    checkpoint, matrices = plan.series.checkpoints[t], []
    for name in (pair.b, pair.a):
        tensor = checkpoint.tensors[name]
        data = np.empty(tensor.nbytes, np.uint8)
        checkpoint.stored(name).read_into(files, data.data, 0)
        x = as_float64(data, tensor.dtype)
        if not np.isfinite(x).all():
            raise NumericError(
                f"{name!r} holds NaN or infinity",
                file=checkpoint.path,
                tensor=name,
                hint="leave the checkpoint out",
            )
        matrices.append(x.reshape(tensor.shape[0], -1))
    return matrices[0], matrices[1]


def _write(plan: Plan, writer: Sink, tensor: PlannedTensor, values: Matrix) -> None:
    flat, result = np.ascontiguousarray(values).reshape(-1), np.empty(tensor.nbytes, np.uint8)
    sums, dtypes = np.empty((1, flat.size)), ("F64", tensor.dtype)
    bad = arithmetic(plan.engine).average([flat], np.ones((1, 1)), sums, [result], dtypes=dtypes, begins=True)
    if any(bad):
        raise NumericError(
            f"the average of {tensor.name!r} is too large for {tensor.dtype}",
            tensor=tensor.name,
            hint="write a wider dtype: --dtype float32",
        )
    alone = Run((tensor,), (0,), tensor.elements, (), np.empty((0, 1)))
    writer.write(Chunk(-1, alone, 0, tensor.elements), result.data)
