"""The options that every method on the spring has: how fast the average forgets, and its inertia (momentum)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from belay_cli.errors import UsageError
from belay_cli.options import Option, flag
from belay_cli.rules.damping import damping_ratio, inertia_for_damping_ratio
from belay_cli.rules.dynamics import Dynamics, check_stable
from belay_cli.rules.half_life import (
    a_from_half_life,
    default_half_life,
    half_life_from_a,
    parse_half_life,
    split_half_life,
)
from belay_cli.rules.rule import Float64Array, Rule
from belay_cli.rules.spring import Spring


@dataclass(frozen=True)
class SpringOptions(Rule):
    """Options of the spring as they are asked for; None means not given. Raises UsageError if they contradict.

    half_life: text (`10%`, `2000steps`, `3checkpoints`) or a number of ticks. The rest is dimensionless and per tick.
    """

    half_life: Annotated[
        str | float | None,
        Option(
            "10% of the span, 2000steps, 3checkpoints, or ticks. Default: 5% of the span, at least the mean spacing.",
            metavar="TEXT",
        ),
    ] = None
    decay: Annotated[float | None, Option("Per tick, instead of the half-life.")] = None
    damping_ratio: Annotated[float | None, Option("Inertia without a scale: 1 is critical, less overshoots.")] = None
    inertia: Annotated[float | None, Option("Velocity kept per tick, in [0, 1): the field's momentum.")] = None

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        super().__post_init__()
        for one, other in (("half_life", "decay"), ("inertia", "damping_ratio")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UsageError(f"{flag(one)} and {flag(other)} say the same thing twice", hint="give one of them")
        if self.half_life is not None:
            split_half_life(self.half_life)
        if self.decay is not None and not 0 <= self.decay < 1:
            raise UsageError(f"--decay must lie in [0, 1), not {self.decay:g}", hint="0.999 forgets half in 693 ticks")

    def spring(
        self,
        ticks: Sequence[int],
        unit: str,
        *,
        feedback: float = 0.0,
        curvature: float = 0.0,
        debias: bool = False,
    ) -> Spring:
        """The spring for these ticks. Raises UsageError if a value is out of range or it is unstable."""
        a, half_life, fixed_by = self.forgetting(ticks, unit)
        inertia = self.inertia or 0.0
        if self.damping_ratio is not None:
            inertia = inertia_for_damping_ratio(a, self.damping_ratio)
        dynamics = Dynamics(a, inertia=inertia, feedback=feedback, curvature=curvature)
        check_stable(dynamics)
        return Spring(
            method=self.method,
            title=self.title,
            dynamics=dynamics,
            half_life=half_life,
            debias=debias,
            damping_ratio=damping_ratio(a, inertia) if inertia > 0 and feedback == 0 else None,
            fixed_by=fixed_by,
        )

    def forgetting(self, ticks: Sequence[int], unit: str) -> tuple[float, float, str]:
        """a = 1 − decay, the half-life in ticks, and which of the options fixed them."""
        if self.decay is not None:
            a = 1.0 - self.decay
            return a, half_life_from_a(a), "decay"
        if self.half_life is not None:
            half_life, fixed_by = parse_half_life(self.half_life, ticks, unit), "half_life"
        else:
            half_life, fixed_by = default_half_life(ticks), "default"
        return a_from_half_life(half_life), half_life, fixed_by

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """Those of the rule that this is for these ticks, taken as steps. [T] -> [T], sum 1."""
        return self.resolve(ticks, "step").coefficients(ticks)

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """That of the rule that this is for these ticks, taken as steps. [T], T × [n] -> [n]."""
        return self.resolve(ticks, "step").replay(ticks, weights)
