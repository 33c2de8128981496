"""EMA: the spring that pulls on the average alone, e ← e + a (w − e) a tick; with inertia, the damped oscillator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.rule import Rule
from belay_cli.rules.spring import Spring
from belay_cli.rules.spring_options import SpringOptions
from belay_cli.rules.warmup import WarmUp, WarmUpOptions


@dataclass(frozen=True)
class Ema(WarmUpOptions, SpringOptions):
    """The exponential moving average: with or without inertia, or with a library's warm-up."""

    debias: Annotated[bool, Option("ema: without the initial state.")] = False

    method = "ema"
    title = "EMA"
    phrase = "the exponential moving average; with inertia, a damped oscillator"

    def __post_init__(self) -> None:
        """Refuse what is not defined."""
        super().__post_init__()
        if self.debias and (self.inertia or self.damping_ratio is not None):
            raise UsageError("--debias is defined for the EMA without inertia", hint="leave one of the two out")
        if self.warmup and (self.debias or self.inertia or self.damping_ratio is not None):
            raise UsageError("--warmup is defined for the plain EMA", hint="leave --debias and inertia out")

    def resolve(self, ticks: Sequence[int], unit: str) -> Rule:
        """The spring without feedback, or the EMA whose decay warms up."""
        if self.warmup:
            a, half_life, _ = self.forgetting(ticks, unit)
            return WarmUp.asked(self, a, half_life, unit)
        return self.spring(ticks, unit, debias=self.debias)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Rule:
        """The rule that has these parameters."""
        if "warmup" in parameters:
            return WarmUp.from_parameters(parameters)
        return Spring.of(cls.method, cls.title, parameters)
