"""BEMA, the bias-corrected EMA (arXiv 2508.00180), with the parameters of TRL's BEMACallback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.options import Option, flag
from belay_cli.rules.gains import coefficients_of_gains, follow
from belay_cli.rules.rule import Float64Array, Parameters, Rule

# Those of the paper's experiments and of TRL.
_DEFAULTS: dict[str, float] = {
    "ema_power": 0.5,
    "bias_power": 0.2,
    "lag": 10.0,
    "multiplier": 1.0,
    "min_ema_multiplier": 0.0,
}


@dataclass(frozen=True)
class Bema(Rule):
    """An EMA whose memory grows, and what it lags behind added back in part; t in ticks since the first checkpoint.

    e ← (1 − b_t) e + b_t w_t with b_t = max((ρ + γ t)^−κ, floor), and the result is e + (ρ + γ t)^−η (w_T − w_0).
    ema_power κ, bias_power η, lag ρ, multiplier γ, min_ema_multiplier the floor; all dimensionless. Signed, sum 1.
    """

    ema_power: Annotated[float | None, Option("bema: of the EMA's gain. Default 0.5.", "KAPPA")] = None
    bias_power: Annotated[float | None, Option("bema: of the correction. Default 0.2.", "ETA")] = None
    lag: Annotated[float | None, Option("bema: ticks that count as over at the start. Default 10.", "RHO")] = None
    multiplier: Annotated[float | None, Option("bema: what a tick counts. Default 1.", "GAMMA")] = None
    min_ema_multiplier: Annotated[float | None, Option("bema: the least gain of the EMA. Default 0.", "B")] = None

    method = "bema"
    title = "BEMA"
    phrase = "an EMA whose memory grows, its lag corrected in part"
    tags = ("ema",)

    def __post_init__(self) -> None:
        """Refuse what makes no average."""
        super().__post_init__()
        for name in ("ema_power", "bias_power", "multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"{flag(name)} must be 0 or more, not {value:g}")
        if self.lag is not None and not 1 <= self.lag < 1e18:
            raise UsageError(f"--lag must be 1 or more, not {self.lag:g}", hint="below 1 the EMA would overshoot")
        if self.min_ema_multiplier is not None and not 0 <= self.min_ema_multiplier <= 1:
            raise UsageError(f"--min-ema-multiplier must lie in [0, 1], not {self.min_ema_multiplier:g}")

    def resolve(self, ticks: Sequence[int], unit: str) -> Bema:
        """With every parameter a number."""
        return Bema(**self._numbers)

    @property
    def _numbers(self) -> dict[str, float]:
        given = {name: getattr(self, name) for name in _DEFAULTS}
        return {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}

    def gains(self, ticks: Sequence[int]) -> list[float]:
        """b_t at each checkpoint. [T] -> [T]."""
        n = self._numbers
        ages = [n["lag"] + n["multiplier"] * (tick - ticks[0]) for tick in ticks]
        return [max(age ** -n["ema_power"], n["min_ema_multiplier"]) for age in ages]

    def correction(self, ticks: Sequence[int]) -> float:
        """(ρ + γ T)^−η."""
        n = self._numbers
        age = n["lag"] + n["multiplier"] * (ticks[-1] - ticks[0])
        return float(age ** -n["bias_power"])

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """Those of the EMA, and the correction on the two ends. [T] -> [T], sum 1."""
        c = coefficients_of_gains(self.gains(ticks))
        ends = np.zeros(len(ticks))
        ends[-1] += 1.0
        ends[0] -= 1.0
        return np.asarray(c + self.correction(ticks) * ends)

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The recursion of the paper. [T], T × [n] -> [n]."""
        seen = list(weights)
        return np.asarray(follow(self.gains(ticks), seen) + self.correction(ticks) * (seen[-1] - seen[0]))

    def parameters(self) -> Parameters:
        """Every parameter, those that were not given too."""
        return dict(self._numbers)

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again."""
        return [word for name, value in self._numbers.items() for word in (flag(name), repr(value))]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """The powers and the lag."""
        n = self._numbers
        text = f"powers {n['ema_power']:g} and {n['bias_power']:g}, lag {n['lag']:g}, correction "
        text += f"{self.correction(ticks):.3g}"
        text += f", multiplier {n['multiplier']:g}" if n["multiplier"] != 1 else ""
        return text + (f", gain at least {n['min_ema_multiplier']:g}" if n["min_ema_multiplier"] else "")

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """What lets go of an end."""
        if leans_on_first:
            return "take a larger --bias-power, or a smaller --ema-power"
        return "take a larger --ema-power or --bias-power"

    def credit(self) -> str:
        """The paper."""
        return " The rule is that of [BEMA](https://arxiv.org/abs/2508.00180)."
