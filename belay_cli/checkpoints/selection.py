"""Which checkpoints are taken of what is given, in which order, and what of each one."""

from __future__ import annotations

from dataclasses import dataclass

from belay_cli.checkpoints.components import canonical
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import UsageError

UNITS = ("auto", "step", "checkpoint")
ORDERS = ("step", "given")
SOURCES = ("raw", "ema")


@dataclass(frozen=True)
class Selection:
    """How arguments become a series: the order, the unit of ticks, which part of it is taken, and what of each one.

    `subfolder`, `state_key` and `source` are those of `Opening`.
    """

    order: str = "step"
    unit: str = "auto"
    from_step: int | None = None
    to_step: int | None = None
    every: int = 1
    allow_averages: bool = False
    subfolder: str | None = None
    state_key: str | None = None
    source: str | None = None

    @property
    def opening(self) -> Opening:
        """How each checkpoint is opened."""
        return Opening(canonical(self.subfolder), self.state_key, self.source, self.allow_averages)

    def __post_init__(self) -> None:
        if self.source not in (None, *SOURCES):
            raise UsageError(f"--source {self.source} is unknown", hint=f"one of: {', '.join(SOURCES)}")
        if self.order not in ORDERS:
            raise UsageError(f"--order {self.order} is unknown", hint=f"one of: {', '.join(ORDERS)}")
        if self.unit not in UNITS:
            raise UsageError(f"--unit {self.unit} is unknown", hint=f"one of: {', '.join(UNITS)}")
        if self.order == "given" and self.unit == "step":
            raise UsageError("--order given counts checkpoints, so --unit step has no meaning with it")
        if self.every < 1:
            raise UsageError(f"--every must be 1 or more, not {self.every}")
