"""Low-rank updates of a plan, averaged as products: whole factors are read, not chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from belay_cli.checkpoints.adapters.lora import Pair, gain
from belay_cli.engine.chunks import Chunk, Sink
from belay_cli.engine.contract import TORCH_DTYPES, all_finite
from belay_cli.engine.low_rank import average_update
from belay_cli.errors import NumericError
from belay_cli.planning import Plan
from belay_cli.planning.layout import PlannedTensor
from belay_cli.storage.files import OpenFiles

_OPEN = 16  # files


def write_updates(plan: Plan, writers: Sequence[Sink]) -> list[float | None]:
    """Average every update of the plan and write its factors; for each output, the most energy that was discarded.

    None where there are no updates. Raises CheckpointError, NumericError or OutputError.
    """
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    worst: list[float | None] = [0.0 if plan.updates else None for _ in writers]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the same input gives the same bytes, whatever the number of cores
    try:
        with OpenFiles(_OPEN) as files:
            for pair in plan.updates:
                for k, writer in enumerate(writers):
                    a, b = tensors[pair.a], tensors[pair.b]
                    found = average_update(_factors(plan, pair, k, a.shape[0], files), a.shape[0])
                    _write(writer, a, found.a)
                    _write(writer, b, found.b)
                    worst[k] = max(worst[k] or 0.0, found.discarded)
    finally:
        torch.set_num_threads(before)
    return worst


def _factors(
    plan: Plan, pair: Pair, k: int, rank: int, files: OpenFiles
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    scaled = gain(plan.series.last.tensors, pair, rank)
    for t in plan.read_checkpoints:
        coefficient = float(plan.outputs[k].coefficients[t])
        if coefficient:
            yield coefficient * scaled, *read_factors(plan, t, pair, files)


def read_factors(plan: Plan, t: int, pair: Pair, files: OpenFiles) -> tuple[torch.Tensor, torch.Tensor]:
    """B [out, r] and A [r, in] of one checkpoint, convolutions flattened. Raises NumericError if not finite."""
    checkpoint, matrices = plan.series.checkpoints[t], []
    for name in (pair.b, pair.a):
        tensor = checkpoint.tensors[name]
        buffer = bytearray(tensor.nbytes)
        checkpoint.stored(name).read_into(files, memoryview(buffer), 0)
        x = torch.frombuffer(buffer, dtype=TORCH_DTYPES[tensor.dtype])
        if not all_finite(x):
            raise NumericError(
                f"{name!r} holds NaN or infinity",
                file=checkpoint.path,
                tensor=name,
                hint="leave the checkpoint out",
            )
        matrices.append(x.reshape(tensor.shape[0], -1))
    return matrices[0], matrices[1]


def _write(writer: Sink, tensor: PlannedTensor, values: torch.Tensor) -> None:
    out = values.contiguous().reshape(-1).to(TORCH_DTYPES[tensor.dtype])
    if not all_finite(out):
        raise NumericError(
            f"the average of {tensor.name!r} is too large for {tensor.dtype}",
            tensor=tensor.name,
            hint="write a wider dtype: --dtype float32",
        )
    writer.write(Chunk(-1, tensor, 0, tensor.elements, ()), out.view(torch.uint8).numpy().data)
