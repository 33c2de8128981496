"""The damped spring of EMA and BELAY: ticks in, one float64 factor a checkpoint out.

One tick, from the unprimed to the primed (this project's discretization of the damped spring of
arXiv 2310.13854; the paper's own numbering is not implied):

    x̂  = x + δ − κ (x − w)       recorded step · the loss pulling back to the path
    x' = x̂ + β (e − x')          the spring, at the new point: x' = (x̂ + β e) / (1 + β)
    w' = w + δ
    v' = μ v + α (x' − e)        the same spring on the other end, with inertia
    e' = e + v'

    a = 1 − decay        α = (1 − μ) a        β = feedback · a        κ = curvature · a        μ = inertia

Measured from the recorded weights, y = x − w and u = e − w, the same tick is

    y' = ((1 − κ) y + β (u − δ)) / (1 + β)
    v' = α (y' − u + δ) + μ v
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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.rules.rule import Float64Array

STABILITY_TOLERANCE = 1e-9


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
    y = np.array([-(kappa + beta), beta, 0.0, -beta]) / (1.0 + beta)  # y' − y
    stretch = np.array([1.0 - kappa, -1.0, 0.0, 1.0]) / (1.0 + beta)  # x' − e = (x̂ − e) / (1 + β) = y' − u + δ
    v = alpha * stretch + np.array([0.0, 0.0, mu, 0.0])  # v' = α (x' − e) + μ v
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
            hint="lengthen --half-life, or lower --curvature",
        )
