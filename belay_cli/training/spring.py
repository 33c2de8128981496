"""The spring's pull on the model.

With x̂ the weights after the optimizer's step, e the average and s the strength of the spring in one update:

    implicit, at the new point      x' = x̂ + s (e − x')     ⟺     x' = x̂ + s/(1 + s) (e − x̂)
    explicit, at the old point      x' = x̂ + s (e − x)

    s = feedback · a                    a share of the difference, as in the replay
    s = lr · stiffness                  a force: SGD on the loss plus stiffness/2 · |x − e|²
    s = lr · stiffness / (√v̂ + ε)       the same force, in the metric of Adam: one s for each coordinate

The implicit order is the backward Euler method on the spring, or a proximal step: x' is where
|x' − x̂|²/(2 lr) + stiffness/2 · |x' − e|² is least, in Adam's metric too. It moves x by a share β = s/(1 + s) that is
below 1 whatever the rate and the stiffness are. Explicit it is s itself, held below 1 by `LARGEST_SHARE`.

On a quadratic with curvature λ, rate η, h = ηλ, e' = e + a (x' − e), the two are stable (no eigenvalue outside the
unit circle) for

    implicit   h < 2 + 2 s/(2 − a)          explicit   h < 2 − 2 s (1 − a)/(2 − a)

so the implicit spring widens the range of the rate, the explicit one narrows it, and since s = η·stiffness an
implicit stiffness of (1 − a/2) λ or more has no largest rate at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from belay_cli.errors import UsageError

LARGEST_SHARE = 0.99  # of the way to the average, by an explicit pull: at 1 nothing would be left of the model

_SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq")  # as AMSGrad and Adam name v, the first that is there


@dataclass(frozen=True)
class Spring:
    """`fixed`: s itself; or `stiffness`, and whether it is in the optimizer's metric. At most one of the two."""

    fixed: float | None = None
    stiffness: float | None = None
    in_metric: bool = False
    implicit: bool = True

    @classmethod
    def of(
        cls, feedback: float | None, stiffness: float | None, metric: str | None, *, a: float | None, implicit: bool
    ) -> Spring | None:
        """From what a person says; None is the plain EMA, in which nothing pulls on the model. Raises UsageError."""
        for name, value in (("feedback", feedback), ("stiffness", stiffness)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UsageError(f"{name} must be a number, not {value!r}")
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be a number of 0 or more, not {value:g}")
        if feedback is not None and stiffness is not None:
            raise UsageError("feedback and stiffness are two ways to say how hard the spring pulls", hint="give one")
        if metric not in (None, "optimizer"):
            raise UsageError(f"metric is 'optimizer' or None, not {metric!r}")
        if metric and stiffness is None:
            raise UsageError("metric says in which metric a stiffness pulls", hint="give a stiffness, or no metric")
        if feedback and a is None:
            raise UsageError("feedback is a share of 1 − decay", hint="give a half_life or a decay, or a stiffness")
        if stiffness:
            return cls(stiffness=stiffness, in_metric=bool(metric), implicit=implicit)
        if not feedback or a is None:
            return None
        if not implicit and feedback * a > LARGEST_SHARE:
            raise UsageError(
                f"an explicit pull of {feedback * a:g} of the way to the average is unstable",
                hint="take a longer half_life, a smaller feedback, or the implicit spring",
            )
        return cls(fixed=feedback * a, implicit=implicit)

    def strength(self, group: Mapping[str, Any], steps: int) -> float:
        """s for a group of parameters, in an update that stands for so many steps; in a metric, its numerator."""
        if self.fixed is not None:
            return self.fixed
        if self.stiffness is None:
            return 0.0
        return float(group["lr"]) * self.stiffness * steps

    def share(self, strength: float) -> float:
        """The share β of the way to the average that x moves."""
        return strength / (1 + strength) if self.implicit else min(strength, LARGEST_SHARE)


def second_moment(state: Mapping[str, Any], group: Mapping[str, Any], name: str) -> tuple[torch.Tensor, float]:
    """v of Adam, and the factor that makes it v̂, from the optimizer's state of one parameter.

    Raises UsageError if the optimizer keeps none.
    """
    found = next((state[key] for key in _SECOND_MOMENTS if isinstance(state.get(key), torch.Tensor)), None)
    if found is None or "betas" not in group:
        raise UsageError(
            "metric='optimizer' needs the second moments that Adam and its kin keep (exp_avg_sq), and this optimizer "
            "has none",
            tensor=name,
            hint="leave metric out",
        )
    return found, 1 / (1 - float(group["betas"][1]) ** float(state["step"]))
