"""The spring with every parameter a number: the rule that EMA and BELAY come to for one series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from belay_cli import words
from belay_cli.rules.damping import damping_ratio
from belay_cli.rules.debiased import debiased_ema_coefficients
from belay_cli.rules.dynamics import Dynamics, dynamics_coefficients
from belay_cli.rules.half_life import a_from_half_life, mean_spacing
from belay_cli.rules.recursion import replay_intervals
from belay_cli.rules.rule import Float64Array, Parameters, Rule

_MOSTLY = 0.5  # of the weight, on the last, by a half-life that is shorter than from one checkpoint to the next
_AGREEMENT = 1e-9  # relative, of parameters of which one follows from another
_FEW = 3  # checkpoints, of which the last may not weigh most
_PAPER = "https://arxiv.org/abs/2310.13854"


@dataclass(frozen=True)
class Spring(Rule):
    """EMA or BELAY with every parameter a number. half_life in ticks; damping_ratio only with inertia and no feedback.

    fixed_by: what gave the decay: `half_life`, `decay` or `default`.
    """

    method: str
    title: str
    dynamics: Dynamics
    half_life: float
    debias: bool = False
    damping_ratio: float | None = None
    fixed_by: str = "half_life"

    tags = ("ema",)

    @classmethod
    def of(cls, method: str, title: str, parameters: Mapping[str, Any]) -> Spring:
        """The spring that has these parameters. Raises KeyError, TypeError, ValueError or UsageError if none has."""
        ratio, debias = parameters["damping_ratio"], parameters["debias"]
        numbers = [parameters[name] for name in ("a", "inertia", "feedback", "curvature", "half_life", "decay")]
        given = [one for one in (*numbers, ratio) if one is not None]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in given):
            raise TypeError("its parameters are no numbers")
        if not (all(map(math.isfinite, given)) and isinstance(debias, bool)):
            raise ValueError("its parameters are no numbers that can be")
        spring = cls(
            method=method,
            title=title,
            dynamics=Dynamics(*map(float, numbers[:4])),
            half_life=float(numbers[4]),
            debias=debias,
            damping_ratio=None if ratio is None else float(ratio),
        )
        spring._agree(parameters)
        return spring

    def _agree(self, parameters: Mapping[str, Any]) -> None:
        """Raise ValueError for parameters of which one says something else than another, or that no spring has."""
        dynamics, ratio = self.dynamics, self.damping_ratio
        harmonic = dynamics.inertia > 0 and not dynamics.feedback
        if (ratio is not None) != harmonic or (self.method == "ema" and dynamics.feedback):
            raise ValueError("its parameters are not those of its method")
        # The decay is derived from the half-life: the other way round, one near 1 has lost the digits.
        a = a_from_half_life(self.half_life) if self.half_life > 0 else 1.0
        pairs = [(a, dynamics.a)] + ([] if ratio is None else [(damping_ratio(dynamics.a, dynamics.inertia), ratio)])
        near = self.half_life >= 0 and all(math.isclose(*pair, rel_tol=_AGREEMENT) for pair in pairs)
        if set(parameters) != set(self.parameters()) or not near or float(parameters["decay"]) != dynamics.decay:
            raise ValueError("its parameters contradict each other")

    @property
    def phrase(self) -> str:  # type: ignore[override]
        """What it is, in a sentence."""
        if self.dynamics.feedback:
            return f"{self.title}, in which a damped spring draws the average to the model and the model to the average"
        if self.dynamics.inertia:
            return "an exponential moving average (EMA) with inertia, a damped oscillator"
        return "an exponential moving average (EMA)"

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """The float64 factor of each checkpoint. [T] -> [T], sum 1."""
        if self.debias:
            return debiased_ema_coefficients(self.dynamics.a, ticks)
        return dynamics_coefficients(self.dynamics, ticks)

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The average by the recursion, interval by interval. [T], T × [n] -> [n]."""
        return replay_intervals(self.dynamics, ticks, weights, debias=self.debias)

    def parameters(self) -> Parameters:
        """Every parameter; `a` is 1 − decay, with the digits that decay has lost."""
        return {
            "decay": self.dynamics.decay,
            "half_life": self.half_life,
            "feedback": self.dynamics.feedback,
            "curvature": self.dynamics.curvature,
            "inertia": self.dynamics.inertia,
            "debias": self.debias,
            "damping_ratio": self.damping_ratio,
            "a": self.dynamics.a,
        }

    def arguments(self) -> list[str]:
        """The command-line words that give exactly this rule again."""
        decay = self.fixed_by == "decay"
        found = ["--decay", repr(self.dynamics.decay)] if decay else ["--half-life", repr(self.half_life)]
        if self.method == "belay":
            found += ["--feedback", repr(self.dynamics.feedback)]
            found += ["--curvature", repr(self.dynamics.curvature)] if self.dynamics.feedback else []
        found += ["--inertia", repr(self.dynamics.inertia)] if self.dynamics.inertia else []
        return found + (["--debias"] if self.debias else [])

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """Half-life, pulls and inertia, and the decay a tick."""
        half_life = f"{words.number(self.half_life)} {unit}{'' if self.half_life == 1 else 's'}"
        if unit == "step":
            half_life += f" = {self.half_life / mean_spacing(ticks):.1f} checkpoints"
        parts = [f"half-life {half_life}" + (" (default)" if self.fixed_by == "default" else "")]
        dynamics = self.dynamics
        if dynamics.feedback:
            parts.append(f"feedback {words.number(dynamics.feedback)}, curvature {words.number(dynamics.curvature)}")
        if dynamics.inertia:
            ratio = "" if self.damping_ratio is None else f" (damping ratio {words.number(self.damping_ratio)})"
            parts.append(f"inertia {words.number(dynamics.inertia)}{ratio}")
        if self.debias:
            parts.append("debiased")
        decay = words.number(dynamics.decay) if dynamics.a > 1e-4 else f"1 - {dynamics.a:.3g}"
        return f"{', '.join(parts)} · decay {decay} a {unit}"

    def warnings(self, ticks: Sequence[int], unit: str, coefficients: Float64Array) -> Iterator[str]:
        """An older checkpoint that weighs more than the last, and a first one that is never forgotten."""
        if len(ticks) > 1:
            yield from self._older_and_heavier(ticks, unit, coefficients)
        feedback = self.dynamics.feedback
        if feedback > 0 and self.dynamics.curvature == 0:
            stays = feedback / (1 + feedback)
            yield (
                f"without curvature {stays:.0%} of the weight stays on the first checkpoint however long the series "
                "is; let go of it with --curvature 1"
            )

    def leans_on_last(self, ticks: Sequence[int], unit: str, coefficients: Float64Array) -> str | None:
        """A half-life that is shorter than the distance between checkpoints."""
        spacing, last = mean_spacing(ticks), coefficients[-1]
        if self.half_life >= spacing or last <= _MOSTLY:
            return None
        mend = "a longer one: --half-life 2checkpoints"
        if unit == "step" and self.fixed_by == "decay":
            mend = "for the decay from one checkpoint to the next: --unit checkpoint"
        elif unit == "step" and self.half_life < 1 and ticks[-1] - ticks[0] >= 100:
            mend = f"for a share of the span: --half-life {100 * self.half_life:g}%"
        return (
            f"the half-life, {self.half_life:.4g} {unit}s, is {self.half_life / spacing:.2g} of the distance between "
            f"checkpoints, so the last one weighs {last:.0%}; {mend}"
        )

    def _older_and_heavier(self, ticks: Sequence[int], unit: str, c: Float64Array) -> Iterator[str]:
        few = len(ticks) <= _FEW and unit == "step"
        if few and c[-1] < c.max() and not (self.dynamics.inertia or self.dynamics.feedback):
            yield (
                f"an older checkpoint weighs {c.max():.1%}, and the last {c[-1]:.1%}: every step of the straight line "
                "between checkpoints is averaged, so the last one stands for the half interval before it alone; for "
                "one update a checkpoint, as in the textbook EMA e ← d e + (1 − d) w: --unit checkpoint"
            )

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Another half-life, or what lets go of the first checkpoint."""
        if not leans_on_first:
            return "take a longer --half-life, such as 3checkpoints"
        if self.dynamics.feedback > 0:
            return "take a shorter --half-life or a larger --curvature"
        return "take a shorter --half-life" + ("" if self.debias or self.dynamics.inertia else ", or --debias")

    def reference(self) -> tuple[str, Rule] | None:
        """With feedback, the EMA that forgets as fast: it lags less."""
        if not self.dynamics.feedback:
            return None
        return "the EMA of this half-life", Spring("ema", "EMA", Dynamics(self.dynamics.a), self.half_life)

    def remark(self, ticks: Sequence[int], coefficients: Float64Array) -> str:
        """Why the last checkpoint weighs less than the one before, where the straight path between them is why."""
        few = len(ticks) < 2 or ticks[-1] - ticks[-2] < 2
        if few or self.dynamics.inertia or coefficients[-1] >= coefficients[-2]:
            return ""  # with inertia the average lags behind for another reason; without a tick there is no path
        return "the last checkpoint stands for the half interval behind it, the others for two halves"

    def credit(self) -> str:
        """The paper, except for the plain EMA, which is everybody's."""
        if not (self.dynamics.feedback or self.dynamics.inertia):
            return ""
        return (
            f" The picture is that of [weight averaging as damped harmonic motion]({_PAPER}); the discretization is "
            "belay's own."
        )
