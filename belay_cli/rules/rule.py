"""Rules: what a person asked for, and what it comes to for one series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from belay_cli.errors import UsageError
from belay_cli.rules.damping import damping_ratio, inertia_for_damping_ratio
from belay_cli.rules.dynamics import (
    Dynamics,
    Float64Array,
    check_stable,
    debiased_ema_coefficients,
    dynamics_coefficients,
)
from belay_cli.rules.half_life import (
    a_from_half_life,
    default_half_life,
    half_life_from_a,
    parse_half_life,
    split_half_life,
)

# The options that each method takes, beside the method itself.
METHODS: dict[str, tuple[str, ...]] = {
    "ema": ("half_life", "decay", "debias", "inertia", "damping_ratio"),
    "belay": ("half_life", "decay", "feedback", "curvature", "inertia", "damping_ratio"),
}

# The names that each method has for people.
TITLES = {"ema": "EMA", "belay": "BELAY"}


@dataclass(frozen=True)
class RuleOptions:
    """A rule as it is asked for; None means not given. Raises UsageError if the options contradict each other.

    half_life is text (`10%`, `2000steps`, `3checkpoints`) or a number of ticks; the rest are the
    dimensionless parameters of `belay_cli.rules.dynamics`.
    """

    method: str = "ema"
    half_life: str | float | None = None
    decay: float | None = None
    feedback: float | None = None
    curvature: float | None = None
    inertia: float | None = None
    damping_ratio: float | None = None
    debias: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method {self.method} is unknown", hint=f"one of: {', '.join(METHODS)}")
        self._refuse_options_of_other_methods()
        for one, other in (("half_life", "decay"), ("inertia", "damping_ratio")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UsageError(f"{_flag(one)} and {_flag(other)} say the same thing twice", hint="give one of them")
        if self.half_life is not None:
            split_half_life(self.half_life)
        if self.decay is not None and not 0 <= self.decay < 1:
            raise UsageError(f"--decay must lie in [0, 1), not {self.decay:g}", hint="0.999 forgets half in 693 ticks")
        if self.debias and (self.inertia or self.damping_ratio is not None):
            raise UsageError("--debias is defined for the EMA without inertia", hint="leave one of the two out")

    def _refuse_options_of_other_methods(self) -> None:
        for field in fields(self):
            if field.name == "method" or getattr(self, field.name) == field.default:
                continue
            if field.name not in METHODS[self.method]:
                takers = [method for method, options in METHODS.items() if field.name in options]
                raise UsageError(
                    f"--method {self.method} takes no {_flag(field.name)}",
                    hint=f"{_flag(field.name)} belongs to --method {' or '.join(takers)}",
                )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Rule:
    """A rule for one series: every parameter a number. half_life is in ticks of `unit`."""

    method: str
    unit: str
    dynamics: Dynamics
    half_life: float
    debias: bool
    damping_ratio: float | None
    given: str  # what fixed the decay: "half_life", "decay" or "default"

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """The float64 factor of each checkpoint. [T] -> [T], sum 1."""
        if self.debias:
            return debiased_ema_coefficients(self.dynamics.a, ticks)
        return dynamics_coefficients(self.dynamics, ticks)

    def describe(self) -> dict[str, Any]:
        """Every parameter, as `--json` prints it."""
        return {
            "method": self.method,
            "unit": self.unit,
            "decay": self.dynamics.decay,
            "half_life": self.half_life,
            "feedback": self.dynamics.feedback,
            "curvature": self.dynamics.curvature,
            "inertia": self.dynamics.inertia,
            "debias": self.debias,
            "damping_ratio": self.damping_ratio,
        }

    def arguments(self) -> list[str]:
        """The command-line options that give exactly this rule again."""
        words = ["--method", self.method, "--unit", self.unit]
        words += ["--decay", repr(self.dynamics.decay)] if self.given == "decay" else []
        words += ["--half-life", repr(self.half_life)] if self.given != "decay" else []
        for name in ("feedback", "curvature"):
            words += [f"--{name}", repr(getattr(self.dynamics, name))] if name in METHODS[self.method] else []
        words += ["--inertia", repr(self.dynamics.inertia)] if self.dynamics.inertia else []
        return words + (["--debias"] if self.debias else [])


def resolve_rule(options: RuleOptions, ticks: Sequence[int], unit: str) -> Rule:
    """Turn what was asked for into numbers, for the ticks [T] of one series.

    `belay` defaults to feedback 1 and curvature 1: the two ends of the spring are equal partners.
    Raises UsageError if a value is out of range or the dynamics are unstable.
    """
    a, half_life, given = _resolve_decay(options, ticks, unit)
    partner = 1.0 if options.method == "belay" else 0.0
    inertia = options.inertia or 0.0
    if options.damping_ratio is not None:
        inertia = inertia_for_damping_ratio(a, options.damping_ratio)
    dynamics = Dynamics(
        a,
        inertia=inertia,
        feedback=partner if options.feedback is None else options.feedback,
        curvature=partner if options.curvature is None else options.curvature,
    )
    check_stable(dynamics)
    harmonic = dynamics.inertia > 0 and dynamics.feedback == 0
    return Rule(
        method=options.method,
        unit=unit,
        dynamics=dynamics,
        half_life=half_life,
        debias=options.debias,
        damping_ratio=damping_ratio(a, dynamics.inertia) if harmonic else None,
        given=given,
    )


def _resolve_decay(options: RuleOptions, ticks: Sequence[int], unit: str) -> tuple[float, float, str]:
    if options.decay is not None:
        a = 1.0 - options.decay
        return a, half_life_from_a(a), "decay"
    if options.half_life is not None:
        half_life, given = parse_half_life(options.half_life, ticks, unit), "half_life"
    else:
        half_life, given = default_half_life(ticks), "default"
    return a_from_half_life(half_life), half_life, given
