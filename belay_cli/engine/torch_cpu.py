"""The arithmetic by torch on the CPU, where the kernel was not built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from belay_cli.engine.contract import Bytes, Coefficients, Sums
from belay_cli.engine.torch_ops import TORCH_DTYPES, accumulate, begin, check_finite, finish, widen


class TorchArithmetic:
    """The same sums by torch. See Arithmetic."""

    name = "torch"

    def __init__(self) -> None:
        # Both are of the thread that this runs in: chunks are the parallelism, and subnormals are numbers.
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)
        self._wide = torch.empty(0, dtype=torch.float64)

    def average(
        self,
        rows: Sequence[Bytes],
        coefficients: Coefficients,
        sums: Sums,
        results: Sequence[Bytes] | None,
        *,
        dtypes: tuple[str, str],
        begins: bool,
    ) -> bytes:
        """As the contract says."""
        source, into = (TORCH_DTYPES[code] for code in dtypes)
        n = sums.shape[1]
        if len(self._wide) < n:
            self._wide = torch.empty(n, dtype=torch.float64)
        whole = torch.from_numpy(sums)
        if begins:
            begin(whole)
        accs = list(whole)
        for row, factors in zip(rows, coefficients.tolist(), strict=True):
            x = widen(as_tensor(row, source)[:n], self._wide[:n])
            for acc, factor in zip(accs, factors, strict=True):
                if factor:
                    accumulate(acc, x, factor)
        if results is None:
            return bytes(len(sums))
        return bytes(_rounded(acc, as_tensor(out, into)[:n]) for acc, out in zip(accs, results, strict=True))


@contextmanager
def threads_kept() -> Iterator[None]:
    """A program that calls belay gets its number of torch's threads back, which those that run here share with it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rounded(acc: torch.Tensor, out: torch.Tensor) -> bool:
    """Round a sum; whether something in it is not finite."""
    finish(acc, out)
    return not check_finite(out)


def as_tensor(data: Bytes, dtype: torch.dtype) -> torch.Tensor:
    """The same memory as a tensor of this dtype, flat."""
    return torch.from_numpy(data.view(np.uint8)).view(dtype)
