"""The arithmetic, and nothing else: a float64 accumulator, one fused multiply-add a checkpoint, one rounding.

outputs[K] = coefficients[K, T] · checkpoints[T], elementwise and in the order of the checkpoints, so that no
byte depends on how the elements are divided among chunks, threads or devices.

torch's `add_(x, alpha=c)` on float64 is fma(c, x, acc) on CPU (vector and remainder alike) and on CUDA.
"""

from __future__ import annotations

import math

import torch

# safetensors code -> torch dtype, of everything that can be averaged
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def widen(x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """x: [n] of any dtype, into wide: [n] float64; exact. Returns the float64 tensor, x itself if it is one."""
    return x if x.dtype == torch.float64 else wide.copy_(x)


def accumulate(acc: torch.Tensor, x: torch.Tensor, coefficient: float, *, first: bool) -> None:
    """acc ← fma(coefficient, x, acc), both [n] float64; the first product is rounded as it is, signed zeros kept."""
    if first:
        torch.mul(x, coefficient, out=acc)
    else:
        acc.add_(x, alpha=coefficient)


def finish(acc: torch.Tensor, out: torch.Tensor) -> None:
    """acc: [n] float64, into out: [n] in the output's dtype, to nearest.

    To bfloat16 and float16 torch goes through float32, which adds at most 2⁻¹⁴ ulp to the half of a rounding.
    """
    out.copy_(acc)


def all_finite(x: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. x: [n], n ≥ 1, any float dtype."""
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(x))  # NaN goes into both
