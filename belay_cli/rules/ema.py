"""EMA: the spring that pulls on the average alone, e ← e + a (w − e) a tick; with inertia, the damped oscillator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.spring import Spring
from belay_cli.rules.spring_options import SpringOptions


@dataclass(frozen=True)
class Ema(SpringOptions):
    """The exponential moving average, with or without inertia."""

    debias: Annotated[bool, Option("ema: without the initial state.")] = False

    method = "ema"
    title = "EMA"
    phrase = "the exponential moving average; with inertia, a damped oscillator"

    def __post_init__(self) -> None:
        """Refuse what is not defined."""
        super().__post_init__()
        if self.debias and (self.inertia or self.damping_ratio is not None):
            raise UsageError("--debias is defined for the EMA without inertia", hint="leave one of the two out")

    def resolve(self, ticks: Sequence[int], unit: str) -> Spring:
        """The spring without feedback."""
        return self.spring(ticks, unit, debias=self.debias)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Spring:
        """The spring that has these parameters."""
        return Spring.of(cls.method, cls.title, parameters)
