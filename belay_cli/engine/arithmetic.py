"""Which engine does the arithmetic on the processor: the kernel where there is one, else torch."""

from __future__ import annotations

import os

from belay_cli.engine.contract import Arithmetic
from belay_cli.engine.kernel import KERNELS, Kernel
from belay_cli.errors import UsageError
from belay_cli.planning.plan import TORCH

VARIABLE = "BELAY_ENGINE"


def engines() -> tuple[str, ...]:
    """The names of those that run here, the fastest first."""
    return (*KERNELS, TORCH)


def chosen_engine() -> str:
    """The fastest, or the one that the environment variable BELAY_ENGINE names. Raises UsageError if it is not here."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return engines()[0]
    if asked not in engines():
        raise UsageError(f"{VARIABLE} is {asked!r}, and what runs here is {' or '.join(engines())}")
    return asked


def arithmetic(engine: str) -> Arithmetic:
    """The engine of this name, for the thread that asks."""
    if engine != TORCH:
        return Kernel(engine)
    from belay_cli.engine.torch_cpu import TorchArithmetic

    return TorchArithmetic()
