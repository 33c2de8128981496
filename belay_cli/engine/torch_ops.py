"""The steps of the arithmetic in torch, on tensors of any device.

torch's `add_(x, alpha=c)` on float64 is fma(c, x, sum) on CPU (vector and remainder alike) and on CUDA.
"""

from __future__ import annotations

import math

import torch

# safetensors code -> torch dtype, of everything that can be averaged
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def widen(x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """x: [n] of any dtype, into wide: [n] float64; exact. Returns the float64 tensor, x itself if it is one."""
    return x if x.dtype == torch.float64 else wide.copy_(x)


def begin(acc: torch.Tensor) -> None:
    """acc: [..., n] float64 ← −0, to which the first product is added as it is."""
    acc.fill_(-0.0)


def accumulate(acc: torch.Tensor, x: torch.Tensor, coefficient: float) -> None:
    """acc ← fma(coefficient, x, acc), both [n] float64."""
    acc.add_(x, alpha=coefficient)


def finish(acc: torch.Tensor, out: torch.Tensor) -> None:
    """acc: [n] float64, into out: [n] in the output's dtype, to nearest; to 16 bits torch goes through float32."""
    out.copy_(acc)


def check_finite(out: torch.Tensor) -> bool:
    """Whether no element of out: [n], any float dtype, is NaN or infinite. NaNs become the one of the contract."""
    finite = not len(out) or all(math.isfinite(extreme.item()) for extreme in torch.aminmax(out))  # NaN goes into both
    if not finite:
        out.masked_fill_(out.isnan(), math.nan)
    return finite
