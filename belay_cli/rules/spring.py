"""The damped spring of EMA and BELAY: ticks in, one float64 factor a checkpoint out.

One tick, from the unprimed to the primed (this project's discretization of the damped spring of
arXiv 2310.13854; the paper's own numbering is not implied):

    x' = x + δ − κ (x − w) + β (e − x)     recorded step · the loss pulling back to the path · the spring
    w' = w + δ
    v' = μ v + α (x' − e)                  the same spring on the other end, with inertia
    e' = e + v'

    a = 1 − decay        α = (1 − μ) a        β = feedback · a        κ = curvature · a        μ = inertia

Measured from the recorded weights, y = x − w and u = e − w, the same tick is

    y' = (1 − κ − β) y + β u
    v' = α y' − α u + μ v + α δ
    u' = u + v' − δ

a 3×3 matrix P on (y, u, v) and a forcing g by δ. Between checkpoints j−1 and j, n_j ticks apart, δ is
(w_j − w_{j−1}) / n_j throughout, and at the start y = u = v = 0, so with G_n = Σ_{k<n} P^k g

    e_T = w_T + Σ_j d_j (w_j − w_{j−1}),    d_j = [row u of P^(n_T) ⋯ P^(n_{j+1})] · G_{n_j} / n_j
    c_0 = −d_1,    c_j = d_j − d_{j+1},    c_T = 1 + d_T.

The 5×5 matrix on (x, e, v, w, δ) says the same; this form has no eigenvalue at 1 that is not the
spring's own, and its powers are taken of P − I (below), which keeps the digits that plain powers lose
where a·n is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.rules.debiased import debiased_ema_coefficients
from belay_cli.rules.half_life import mean_spacing
from belay_cli.rules.rule import Float64Array, Parameters, Rule

STABILITY_TOLERANCE = 1e-9
_MOSTLY = 0.5  # of the weight, on the last, by a half-life that is shorter than from one checkpoint to the next
_FEW = 3  # checkpoints, of which the last may not weigh most
_PAPER = "https://arxiv.org/abs/2310.13854"


@dataclass(frozen=True)
class Dynamics:
    """The parameters of one tick, all dimensionless and per tick.

    `a` is 1 − decay, kept itself because 1 − decay loses digits when decay is near 1.
    """

    a: float
    inertia: float = 0.0
    feedback: float = 0.0
    curvature: float = 0.0

    def __post_init__(self) -> None:
        # `not (…)` rather than the opposite comparison, so that NaN is refused too.
        if not 0.0 < self.a <= 1.0:
            raise UsageError(f"decay must lie in [0, 1), not {1.0 - self.a:g}")
        if not 0.0 <= self.inertia < 1.0:
            raise UsageError(f"inertia must lie in [0, 1), not {self.inertia:g}")
        for name in ("feedback", "curvature"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise UsageError(f"{name} must be a number of 0 or more, not {value:g}")

    @property
    def decay(self) -> float:
        """The factor by which the EMA forgets, per tick."""
        return 1.0 - self.a

    @property
    def spring(self) -> float:
        """α, the pull on the EMA weights; (1 − μ) keeps the mean lag the same at every inertia."""
        return (1.0 - self.inertia) * self.a

    @property
    def pull_back(self) -> float:
        """κ, the pull on the model weights back to the recorded path; 0 where nothing pulls them away from it."""
        return self.curvature * self.a if self.feedback else 0.0


def transition_minus_identity(dynamics: Dynamics) -> Float64Array:
    """One tick as a 4×4 matrix on (y, u, v, δ), less the identity.

    The identity is never added, so that entries as small as a keep all their digits.
    """
    alpha, mu = dynamics.spring, dynamics.inertia
    beta, kappa = dynamics.feedback * dynamics.a, dynamics.pull_back
    y = np.array([-(kappa + beta), beta, 0.0, 0.0])  # y' − y
    v = np.array([alpha * (1.0 - kappa - beta), alpha * beta - alpha, mu, alpha])  # v' = α y' − α u + μ v + α δ
    u = v - np.array([0.0, 0.0, 0.0, 1.0])  # u' − u = v' − δ
    return np.array([y, u, v - np.array([0.0, 0.0, 1.0, 0.0]), np.zeros(4)])


def power_minus_identity(e: Float64Array, n: int) -> Float64Array:
    """(I + E)^n − I for n ≥ 0, by squaring: (I + A)(I + B) − I = A + B + A B.

    Plain matrix powers would round at the size of the identity, n times; these round at the size of E.
    """
    result = np.zeros_like(e)
    while n:
        if n & 1:
            result = result + e + result @ e
        n >>= 1
        if n:
            e = 2.0 * e + e @ e
    return result


def dynamics_coefficients(dynamics: Dynamics, ticks: Sequence[int]) -> Float64Array:
    """The factor of each checkpoint in the EMA weights after the last tick. ticks: [T] rising -> [T], sum 1.

    Cost: O(T log n) products of 4×4 matrices, n the ticks between two checkpoints.
    """
    check_stable(dynamics)
    c = np.zeros(len(ticks))
    c[-1] = 1.0
    one_tick = transition_minus_identity(dynamics)
    cached: dict[int, Float64Array] = {}  # most series are evenly spaced
    row = np.array([0.0, 1.0, 0.0])  # reads u = e − w at the end; carried backward through the intervals
    for j in range(len(ticks) - 1, 0, -1):
        n = ticks[j] - ticks[j - 1]
        if n not in cached:
            cached[n] = power_minus_identity(one_tick, n)
        power = cached[n]
        d = float(row @ power[:3, 3]) / n
        c[j] += d
        c[j - 1] -= d
        row = row + row @ power[:3, :3]
    return c


def spectral_radius(dynamics: Dynamics) -> float:
    """Of the 3×3 block on (x − w, e − w, v); of the (e, v) block alone when nothing pulls on x."""
    p = transition_minus_identity(dynamics)[:3, :3] + np.eye(3)
    block = p if dynamics.feedback else p[1:, 1:]
    return float(np.max(np.abs(np.linalg.eigvals(block))))


def check_stable(dynamics: Dynamics) -> None:
    """Raise UsageError if a disturbance would grow from tick to tick."""
    radius = spectral_radius(dynamics)
    if not radius <= 1.0 + STABILITY_TOLERANCE:
        raise UsageError(
            f"these dynamics are unstable: a disturbance grows by {radius:.6g} a tick "
            f"(decay {dynamics.decay:.6g}, feedback {dynamics.feedback:g}, "
            f"curvature {dynamics.curvature:g}, inertia {dynamics.inertia:.6g})",
            hint="lengthen --half-life, or lower --feedback or --curvature",
        )


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
        ratio = parameters["damping_ratio"]
        numbers = [float(parameters[name]) for name in ("a", "inertia", "feedback", "curvature", "half_life")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("its parameters are no numbers that can be")
        return cls(
            method=method,
            title=title,
            dynamics=Dynamics(*numbers[:4]),
            half_life=numbers[4],
            debias=bool(parameters["debias"]),
            damping_ratio=None if ratio is None else float(ratio),
        )

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
        from belay_cli.rules.recursion import replay_intervals

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
        """A half-life too short for these checkpoints, an older one that weighs more, one that is never forgotten."""
        if len(ticks) > 1:
            yield from self._short_half_life(ticks, unit, coefficients)
            yield from self._older_and_heavier(ticks, unit, coefficients)
        feedback, decay = self.dynamics.feedback, self.dynamics.decay
        if feedback > 0 and self.dynamics.curvature == 0:
            stays = feedback * decay / (1 + feedback * decay)
            yield (
                f"without curvature {stays:.0%} of the weight stays on the first checkpoint however long the series "
                "is; let go of it with --curvature 1"
            )

    def _short_half_life(self, ticks: Sequence[int], unit: str, c: Float64Array) -> Iterator[str]:
        spacing = mean_spacing(ticks)
        if self.half_life >= spacing or c[-1] <= _MOSTLY:
            return
        mend = "a longer one: --half-life 2checkpoints"
        if unit == "step" and self.fixed_by == "decay":
            mend = "for the decay from one checkpoint to the next: --unit checkpoint"
        elif unit == "step" and self.half_life < 1 and ticks[-1] - ticks[0] >= 100:
            mend = f"for a share of the span: --half-life {100 * self.half_life:g}%"
        yield (
            f"the half-life, {self.half_life:.4g} {unit}s, is {self.half_life / spacing:.2g} of the distance between "
            f"checkpoints, so the last one weighs {c[-1]:.0%}; {mend}"
        )

    def _older_and_heavier(self, ticks: Sequence[int], unit: str, c: Float64Array) -> Iterator[str]:
        few = len(ticks) <= _FEW and unit == "step"
        if few and c[-1] < c.max():
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
