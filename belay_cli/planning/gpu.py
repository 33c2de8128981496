"""Whether a GPU is worth its start. Reading takes as long with one; what it does sooner is the arithmetic."""

from __future__ import annotations

from belay_cli.planning.plan import TORCH, Plan
from belay_cli.planning.policies import AVERAGE

# Seconds of one core for a multiply-add, its share of widening and rounding included, as `benchmarks/` measures them.
_KERNEL, _BY_TORCH = 1e-10, 4e-10
_FASTEST_READ = 5e9  # bytes a second that storage hardly exceeds
_START = 10.0  # seconds of arithmetic that are hardly worth torch and CUDA, which take some to begin


def gpu_pays(plan: Plan) -> bool:
    """Whether the arithmetic takes the processor so much longer than reading that a GPU is plausibly faster."""
    elements = sum(piece.elements for piece in plan.pieces if piece.action == AVERAGE)
    each = _BY_TORCH if plan.engine == TORCH else _KERNEL
    seconds = elements * len(plan.read_checkpoints) * len(plan.outputs) * each / plan.buffers.threads
    return seconds > max(_START, 2 * plan.data_read / _FASTEST_READ)
