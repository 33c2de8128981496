"""How much of the model goes into the average at each update.

The EMA of a half-life h updates by e ← e + a (x − e) with a = 1 − 2^(−1/h) a step. Begun at random weights it is of
little use for some half-lives, so it begins with a *warm-up*: at update n

    a_n = max(a, (γ + 1) / (n + γ)),    γ = 1/w − 2.

The second term alone gives the average whose profile is a power of time, t^γ (arXiv 2312.02696), and whose mean lag is
1/(γ + 2) = w of the updates so far. So until it has reached its own lag, the average lags by the share w: a tenth of
the run (w = 0.1, γ = 8: nearly the (1 + t)/(10 + t) of TensorFlow and diffusers), or half of it (w = 0.5, γ = 0: the
uniform mean). At n = 1 it is 1: the first average is the weights.

Over k steps in one update the spring of EMA and inertia is that of k ticks: the block on (e, v) has the eigenvalues
λ^k, so with M that block (see `belay_cli.rules.damping` for its eigenvalues)

    μ_k = μ^k,    α_k = 1 + μ^k − tr(M^k),    a_k = α_k / (1 − μ_k),

which is 1 − (1 − a)^k without inertia.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.rules.dynamics import Dynamics
from belay_cli.rules.half_life import a_from_half_life

_IN_STEPS = "of steps: nobody knows here how many there will be"


@dataclass(frozen=True)
class Schedule:
    """`a`: 1 − decay of one update, None for an average that always lags by its share; `inertia`: μ of one update."""

    a: float | None
    inertia: float
    warmup: float | None

    @classmethod
    def of(
        cls,
        half_life: float | None,
        decay: float | None,
        inertia: float,
        warmup: float | None,
        update_every: int,
    ) -> Schedule:
        """From what a person says; half_life in steps, decay and inertia a step. Raises UsageError."""
        if half_life is not None and decay is not None:
            raise UsageError("half_life and decay say the same", hint="give one of the two")
        for name, value in (("half_life", half_life), ("decay", decay), ("inertia", inertia), ("warmup", warmup)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UsageError(
                    f"{name} must be a number, not {value!r}", hint=_IN_STEPS if name == "half_life" else None
                )
        if half_life is not None and not 0 < half_life < math.inf:
            raise UsageError(f"half_life must be a positive number of steps, not {half_life:g}")
        if warmup is not None and not 0 < warmup <= 0.5:
            raise UsageError(
                f"warmup is the share of the steps so far by which the average lags, above 0 and at most 0.5, "
                f"not {warmup:g}",
                hint="0.1 is the default, 0.5 the uniform mean, None no warm-up",
            )
        if half_life is None and decay is None:
            if warmup is None:
                raise UsageError("without half_life, decay and warmup nothing says how long the average remembers")
            if inertia:
                raise UsageError("inertia needs a half_life or a decay")
            return cls(None, 0.0, warmup)
        a = a_from_half_life(half_life) if half_life is not None else 1.0 - (decay or 0.0)
        return cls(*over_steps(Dynamics(a, inertia), update_every), warmup)

    def share(self, n: int) -> float:
        """a_n of update n, counted from 1."""
        a = 0.0 if self.a is None else self.a
        if self.warmup is None:
            return a
        gamma = 1 / self.warmup - 2
        return max(a, (gamma + 1) / (n + gamma)) if n > 1 else 1.0  # of many steps with inertia, a may be above 1


def over_steps(dynamics: Dynamics, k: int) -> tuple[float, float]:
    """a and μ of one update that stands for k steps."""
    if not dynamics.inertia:
        # By log1p, so that a tiny a keeps its digits.
        return (-math.expm1(k * math.log1p(-dynamics.a)) if dynamics.a < 1 else 1.0), 0.0
    if k == 1:
        return dynamics.a, dynamics.inertia
    alpha, mu = dynamics.spring, dynamics.inertia
    block = np.array([[1 - alpha, mu], [-alpha, mu]])  # of (e, v): v' = μ v − α e, e' = e + v'
    mu_k = mu**k
    trace = float(np.trace(np.linalg.matrix_power(block, k)))
    return (1 + mu_k - trace) / (1 - mu_k), mu_k
