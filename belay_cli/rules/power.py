"""EDM2's power EMA from raw checkpoints (arXiv 2312.02696, equations 121, 123 and 127)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from belay_cli.rules.gains import follow
from belay_cli.rules.power_options import PowerOptions, exponent_of_width
from belay_cli.rules.rule import Float64Array, Parameters, Rule


@dataclass(frozen=True)
class Power(PowerOptions):
    """The weights of time τ count τ^γ, from the start of training: the memory is a share of the time so far.

    A checkpoint stands for the time since the one before. In step unit time is the step; in checkpoint unit, where
    nobody knows when training began, `offset` is 1: the first checkpoint is at 1.
    """

    offset: int = 0

    method = "power"
    title = "Power EMA"
    phrase = "EDM2's profile, whose memory is a share of the time so far"
    tags = ("ema",)

    def resolve(self, ticks: Sequence[int], unit: str) -> Rule:
        """With the width a number, and time as it is counted in this unit."""
        return replace(self, sigma_rel=self.width, offset=int(unit == "checkpoint"))

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """c_i = (t_i^{γ+1} − t_{i−1}^{γ+1}) / t_N^{γ+1}, with 0 before the first. [T] -> [T], sum 1."""
        t = np.asarray(ticks, np.float64) + self.offset
        if len(t) == 1:
            return np.ones(1)
        power = exponent_of_width(self.width) + 1
        with np.errstate(divide="ignore"):  # a checkpoint at time 0 stands for no time
            passed = np.exp(power * np.log(t / t[-1]))
            forgotten = -np.expm1(power * np.log(np.append(0.0, t[:-1]) / np.where(t == 0, 1.0, t)))
        return np.asarray(passed * forgotten)

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """e ← β e + (1 − β) w, β = (1 − Δt/t)^{γ+1} (equation 127). [T], T × [n] -> [n]."""
        power = exponent_of_width(self.width) + 1
        times = [tick + self.offset for tick in ticks]
        pairs = zip([0, *times], times, strict=False)
        return follow([1.0 - math.pow(1 - (t - before) / t, power) if t else 1.0 for before, t in pairs], weights)

    def parameters(self) -> Parameters:
        """The width, the exponent γ that has it, and what is added to a tick."""
        return {"sigma_rel": self.width, "gamma": exponent_of_width(self.width), "offset": self.offset}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Power:
        """The rule of a record. Raises KeyError, TypeError, ValueError or UsageError."""
        made = cls(parameters["sigma_rel"], parameters["offset"])
        told, own = dict(parameters), made.parameters()
        if set(told) != set(own) or made.offset not in (0, 1) or type(made.offset) is not int:
            raise ValueError("its parameters are not those of its method")
        if not math.isclose(float(told["gamma"]), exponent_of_width(made.width), rel_tol=1e-9):
            raise ValueError("its parameters contradict each other")
        return made

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again."""
        return ["--sigma-rel", repr(self.width)]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """The width, and the exponent."""
        return f"relative width {self.width:g}, exponent {exponent_of_width(self.width):.5g}"

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Another width."""
        return "take a smaller --sigma-rel" if leans_on_first else "take a larger --sigma-rel"

    def remark(self, ticks: Sequence[int], coefficients: Float64Array) -> str:
        """Why a first checkpoint that comes late weighs much."""
        late = len(ticks) > 2 and ticks[0] + self.offset > 2 * (ticks[-1] - ticks[0]) / (len(ticks) - 1)
        return "the first checkpoint stands for all of training before it" if late and coefficients[0] > 0.01 else ""

    def credit(self) -> str:
        """The paper."""
        return " The profile is that of [EDM2](https://arxiv.org/abs/2312.02696)."
