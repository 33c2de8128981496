"""BELAY on a quadratic, in closed form: one direction of curvature λ, a rate η, h = ηλ, and noise ξ in the gradient.

    x̂ = (1 − h) x − η ξ
    x' = (x̂ + s e)/(1 + s)  or  x̂ + s (e − x)          implicit, explicit
    v' = μ v + (1 − μ) a (x' − e),    e' = e + v'

`docs/evidence.md` has the derivations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mode:
    """One direction. All are numbers, of one step."""

    h: float
    a: float
    s: float = 0.0
    implicit: bool = True
    inertia: float = 0.0

    @property
    def matrix(self) -> Array:
        """One step on (x, e, v), [3, 3]."""
        k = 1 + self.s if self.implicit else 1.0
        x = np.array([(1 - self.h) / k if self.implicit else 1 - self.h - self.s, self.s / k, 0.0])
        alpha, mu = (1 - self.inertia) * self.a, self.inertia
        v = alpha * x + np.array([0.0, -alpha, mu])
        return np.array([x, v + np.array([0.0, 1.0, 0.0]), v])

    @property
    def noise(self) -> Array:
        """What a unit of noise in x̂ does, [3]."""
        k = 1 + self.s if self.implicit else 1.0
        alpha = (1 - self.inertia) * self.a
        return np.array([1.0, alpha, alpha]) / k

    def variances(self) -> tuple[float, float]:
        """Of x and of e once they are stationary, for unit noise in x̂: the solution of P = M P Mᵀ + b bᵀ."""
        m, b = self.matrix, self.noise
        p = np.linalg.solve(np.eye(9) - np.kron(m, m), np.outer(b, b).ravel()).reshape(3, 3)
        return float(p[0, 0]), float(p[1, 1])


def largest_h(a: float, s: float, *, implicit: bool) -> float:
    """The h below which nothing grows, without inertia: where an eigenvalue passes −1."""
    return 2 + 2 * s / (2 - a) if implicit else 2 - 2 * s * (1 - a) / (2 - a)


def ema_gain(a: float, inertia: float = 0.0) -> float:
    """Variance of e for x of unit variance and no memory: e is an autoregression of order 2."""
    return a * (1 + inertia) / (2 * (1 + inertia) - (1 - inertia) * a)


def same_as_ema(h: float, a: float, s: float) -> tuple[float, float]:
    """The (h₀, a₀) of the plain SGD whose EMA is the average e of the implicit BELAY in this direction.

    With q = (1 − h)/(1 + s), d = 1 − a, β = s/(1 + s), e is the autoregression

        e_{n+1} = (q + d + β a) e_n − q d e_{n−1} − (a η/(1 + s)) ξ

    and the EMA with decay r₂ of an SGD with 1 − h₀ = r₁ is e_{n+1} = (r₁ + r₂) e_n − r₁ r₂ e_{n−1} − a₀ η₀ ξ. The same
    roots make them the same, noise included, as (1 − r₁)(1 − r₂) = a h/(1 + s). They are real: for q ≥ 0 since
    (q + d + β a)² ≥ (q + d)² ≥ 4 q d, for q < 0 since their product is negative.
    """
    q, d, beta = (1 - h) / (1 + s), 1 - a, s / (1 + s)
    half = (q + d + beta * a) / 2
    root = math.sqrt(half * half - q * d)
    small, large = sorted((half - root, half + root), key=abs)
    return 1 - small, 1 - large


def step_response(a: float, inertia: float, steps: int) -> Array:
    """e after each step when x goes from 0 to 1 and stays: 1 − A λ₁ⁿ − B λ₂ⁿ. [steps]."""
    n = np.arange(1, steps + 1)
    if not inertia:
        return np.asarray(1 - (1 - a) ** n, dtype=np.float64)
    alpha = (1 - inertia) * a
    first, second = np.roots([1.0, -(1 + inertia - alpha), inertia]).astype(complex)
    # e₀ = 0 and e₁ = α fix the two amplitudes.
    large = ((1 - alpha) - second) / (first - second)
    return np.asarray((1 - large * first**n - (1 - large) * second**n).real)


def overshoot(damping_ratio: float) -> float:
    """How far a damped spring that is let go swings past its rest, as a share of where it started; 0 from ζ = 1 on."""
    if damping_ratio >= 1:
        return 0.0
    return math.exp(-math.pi * damping_ratio / math.sqrt(1 - damping_ratio**2))
