"""The power profile of EDM2 (arXiv 2312.02696): an EMA whose memory is a share of the time so far.

The profile of exponent γ weighs time τ in [0, t] by τ^γ. Its relative width σ is its standard deviation over t, by
equation 123 of the paper: σ² = (γ + 1) / ((γ + 2)² (γ + 3)), at most 1/12 at γ = 0, the uniform average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.rule import Rule

WIDEST = 1 / math.sqrt(12)
DEFAULT_WIDTH = 0.1
_NARROWEST = 1e-6


@dataclass(frozen=True)
class PowerOptions(Rule):
    """A rule with the profile's relative width, above 0 and below 1/√12 = 0.2887; dimensionless."""

    sigma_rel: Annotated[
        float | None, Option("power, posthoc: relative width of the profile, below 0.2887. Default 0.1.", "SIGMA")
    ] = None

    def __post_init__(self) -> None:
        """Refuse a width that no profile has."""
        super().__post_init__()
        if self.sigma_rel is not None:
            check_width(self.sigma_rel, "--sigma-rel")

    @property
    def width(self) -> float:
        """The width, or the default."""
        return DEFAULT_WIDTH if self.sigma_rel is None else self.sigma_rel


def check_width(width: float, what: str) -> None:
    """Raise UsageError if no profile has this relative width."""
    if not _NARROWEST <= width < WIDEST:
        raise UsageError(
            f"{what} must lie between {_NARROWEST:g} and 1/√12 = 0.2887, not {width:g}",
            hint="0.05 forgets fast, 0.1 is usual, 0.2 remembers half of the run",
        )


def exponent_of_width(width: float) -> float:
    """γ > 0 of relative width σ: the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻² = 0 (Algorithm 2)."""
    t = width**-2
    gamma = float(np.roots([1, 7, 16 - t, 12 - t]).real.max())
    for _ in range(3):  # Newton: the eigenvalues that np.roots takes lose digits of a large root
        value = ((gamma + 7) * gamma + (16 - t)) * gamma + (12 - t)
        gamma -= value / ((3 * gamma + 14) * gamma + (16 - t))
    return gamma
