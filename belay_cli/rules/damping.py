"""The damping ratio of the EMA as a damped oscillator, and the inertia that has a given one.

The (e, v) block has eigenvalues λ₁ λ₂ = μ and λ₁ + λ₂ = 1 − α + μ, α = (1 − μ) a. A continuous oscillator
with the same ones decays at s = ln λ, and its damping ratio is ζ = −(s₁ + s₂) / (2 √(s₁ s₂)):
ζ = 1 is critical, at μ = ((1 − a)/(1 + a))²; above it nothing overshoots; ζ → ∞ (μ → 0) is the plain EMA.
"""

from __future__ import annotations

import math

from belay_cli.errors import UsageError

_LOG_SMALLEST = -745.0  # ln of the smallest positive float64


def damping_ratio(a: float, inertia: float) -> float:
    """ζ for 0 < a ≤ 1 and 0 < inertia < 1."""
    return _damping_ratio(a, math.log(inertia))


def _damping_ratio(a: float, log_mu: float) -> float:
    # In η = λ − 1, so that eigenvalues close to 1 keep their digits: η² + (α + ε) η + α = 0, ε = 1 − μ.
    epsilon = -math.expm1(log_mu)
    alpha = epsilon * a
    half = (alpha + epsilon) / 2
    discriminant = half * half - alpha
    if discriminant <= 0:  # s = ln μ / 2 ± iθ
        theta = math.atan2(math.sqrt(-discriminant), 1 - half)
        return -log_mu / (2 * math.hypot(log_mu / 2, theta))
    slow = math.log1p(-alpha / (half + math.sqrt(discriminant)))  # the root nearer to λ = 1, without cancellation
    fast = log_mu - slow
    return -log_mu / (2 * math.sqrt(slow * fast))


def inertia_for_damping_ratio(a: float, ratio: float) -> float:
    """μ with damping ratio ζ = `ratio`, by bisection on ln μ: ζ falls as μ rises.

    As near as a float64 μ can be: next to 1 its last digit moves ζ, by up to 5e-9 of it at a = 1e-7 and ζ = 0.1.
    Raises UsageError if no inertia has it: ζ must be positive, and at decay 0 it stays below 1.
    """
    if not 0 < ratio < math.inf:
        raise UsageError(f"--damping-ratio must be a positive number, not {ratio:g}")
    if a == 1.0 and ratio >= 1:
        raise UsageError(
            "at decay 0 the EMA follows the weights at once and every inertia is underdamped",
            hint="take a longer --half-life, or leave --damping-ratio out",
        )
    low, high = _LOG_SMALLEST, -1e-18
    if _damping_ratio(a, low) <= ratio:
        return 0.0  # so overdamped that no float64 tells it from the plain EMA
    # ln μ spans eighteen orders of magnitude: halve its logarithm.
    near, far = math.log(-high), math.log(-low)
    for _ in range(200):
        middle = (near + far) / 2
        if _damping_ratio(a, -math.exp(middle)) > ratio:
            far = middle
        else:
            near = middle
    return math.exp(-math.exp((near + far) / 2))
