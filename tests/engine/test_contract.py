"""The arithmetic: one fused multiply-add an element, however the elements are divided, and one rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.engine.contract import accumulate, all_finite, finish, widen


def fused(c: float, x: float, acc: float) -> float:
    """c·x + acc with one rounding."""
    return float(Fraction(c) * Fraction(x) + Fraction(acc))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257])
def test_every_element_is_one_fused_multiply_add(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    x, acc = torch.randn(n, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64)
    c = float(torch.rand((), generator=g, dtype=torch.float64))
    acc = -c * x + acc * 1e-13  # so that the product's own rounding would show
    expected = [fused(c, a, b) for a, b in zip(x.tolist(), acc.tolist(), strict=True)]
    accumulate(acc, x, c, first=False)
    assert acc.tolist() == expected


def test_a_product_rounded_by_itself_would_be_seen() -> None:
    x = torch.full((9,), 1 + 2.0**-30, dtype=torch.float64)
    acc = torch.full((9,), -1.0, dtype=torch.float64)
    accumulate(acc, x, 1 + 2.0**-30, first=False)
    assert set(acc.tolist()) == {fused(1 + 2.0**-30, 1 + 2.0**-30, -1.0)}
    assert acc[0].item() != (1 + 2.0**-30) * (1 + 2.0**-30) - 1


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=70), st.floats(-2, 2))
def test_the_first_product_keeps_signed_zeros(values: Any, c: Any) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    acc = torch.full_like(x, float("nan"))
    accumulate(acc, x, c, first=True)
    assert torch.equal(acc.view(torch.int64), (x * c).view(torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_widening_is_exact(dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    x = bits.view(dtype) if dtype.itemsize == 2 else torch.randn(1 << 16, dtype=dtype)
    wide = torch.empty(x.numel(), dtype=torch.float64)
    back = widen(x, wide).to(dtype)
    keep = ~x.isnan()
    assert torch.equal(back[keep], x[keep])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_last_rounding_is_to_nearest(dtype: torch.dtype) -> None:
    # near the halfway points between neighbours; 16-bit dtypes are reached through float32
    near = 2**-20 if dtype == torch.float32 else 2**-12
    exact = torch.arange(1, 2000, dtype=torch.float64).to(dtype).double()
    after = torch.nextafter(exact.to(dtype), torch.tensor(float("inf"), dtype=dtype)).double()
    for share in (0.5 - near, 0.5 + near):
        out = torch.empty(exact.numel(), dtype=dtype)
        finish(exact + (after - exact) * share, out)
        assert torch.equal(out.double(), after if share > 0.5 else exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_seen_anywhere(value: float, dtype: torch.dtype) -> None:
    for n in (1, 2, 33, 1000):
        x = torch.ones(n, dtype=dtype)
        assert all_finite(x)
        for place in {0, n // 2, n - 1}:
            x[place] = value
            assert not all_finite(x)
            x[place] = 1
