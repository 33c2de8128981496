"""EMA warm-ups of libraries: a decay that grows, tick by tick, until it is the one that was asked for.

With s = max(0, n − update_after − 1) at update n, and decay 0 at s = 0:

    diffusers     (1 + s) / (10 + s)             training_utils.EMAModel.get_decay
    timm          1 − (1 + s/inv_gamma)^−power   utils.model_ema.ModelEmaV3.get_decay
    ema-pytorch   the same                       EMA.get_current_decay

clamped to [min_decay, decay]. diffusers has the second form too, with `use_ema_warmup`: give it a power. In step unit
update n is training step n; in checkpoint unit the first checkpoint is update 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.options import Option, Options, flag
from belay_cli.rules.debiased import shares_of_ends
from belay_cli.rules.dynamics import Dynamics
from belay_cli.rules.half_life import a_from_half_life
from belay_cli.rules.recursion import over_interval
from belay_cli.rules.rule import Float64Array, Parameters, Rule

Library = Literal["diffusers", "timm", "ema-pytorch"]

_POWER = 2 / 3  # of all three libraries
_MOST_TICKS = 20_000_000  # of a warm-up: each of them is gone through
_BLOCK = 1 << 18  # of them at a time


@dataclass(frozen=True)
class WarmUpOptions(Options):
    """The options of a warm-up, as they are asked for; None means not given."""

    panel: ClassVar[str] = Rule.panel

    warmup: Annotated[Library | None, Option("ema: as the library warms its decay up.")] = None
    warmup_power: Annotated[float | None, Option("ema, with --warmup: of its growth. Default 2/3.", "P")] = None
    inv_gamma: Annotated[float | None, Option("ema, with --warmup: its first ticks. Default 1.", "TICKS")] = None
    min_decay: Annotated[float | None, Option("ema, with --warmup: the least. Default 0.", "DECAY")] = None
    update_after: Annotated[int | None, Option("ema, with --warmup: ticks before it begins. Default 0.", "N")] = None

    def __post_init__(self) -> None:
        """Refuse what is no warm-up."""
        super().__post_init__()
        for name in ("warmup_power", "inv_gamma", "min_decay", "update_after"):
            if (value := getattr(self, name)) is None:
                continue
            if self.warmup is None:
                raise UsageError(f"{flag(name)} goes with --warmup", hint="--warmup diffusers, timm or ema-pytorch")
            low, high = (0, 1) if name == "min_decay" else (0, 1e18)
            if not low <= value < high or (value == 0 and name in ("warmup_power", "inv_gamma")):
                raise UsageError(f"{flag(name)} cannot be {value:g}")


@dataclass(frozen=True)
class WarmUp(Rule):
    """An EMA with a warm-up, every parameter a number. half_life in ticks, of the decay in the end, 1 − a.

    power: None for the first form. `offset` is added to a tick to have the number of its update.
    """

    warmup: str
    a: float
    half_life: float
    power: float | None = _POWER
    inv_gamma: float = 1.0
    min_decay: float = 0.0
    update_after: int = 0
    offset: int = 0

    method = "ema"
    title = "EMA"
    phrase = "an exponential moving average (EMA) with a warm-up of its decay"
    tags = ("ema",)

    @classmethod
    def asked(cls, options: WarmUpOptions, a: float, half_life: float, unit: str) -> WarmUp:
        """What was asked for, for a series in this unit. Raises UsageError for a least decay above the last."""
        power = options.warmup_power
        if (options.min_decay or 0.0) > 1 - a:
            raise UsageError(
                f"--min-decay {options.min_decay:g} is above the decay in the end, {1 - a:g}", hint="leave it out"
            )
        if power is None and options.warmup != "diffusers":
            power = _POWER
        return cls(
            warmup=str(options.warmup),
            a=a,
            half_life=half_life,
            power=power,
            inv_gamma=1.0 if options.inv_gamma is None else options.inv_gamma,
            min_decay=options.min_decay or 0.0,
            update_after=options.update_after or 0,
            offset=int(unit == "checkpoint"),
        )

    def gains(self, updates: Float64Array) -> Float64Array:
        """1 − decay at each of these updates: where decay is near 1, this has its digits. [N] -> [N]."""
        s = np.maximum(0.0, updates - self.update_after - 1)
        fallen = 9 / (10 + s) if self.power is None else np.exp(-self.power * np.log1p(s / self.inv_gamma))
        return np.where(s > 0, np.minimum(np.maximum(fallen, self.a), 1 - self.min_decay), 1.0)

    def warm_from(self) -> float:
        """The update from which on the decay is the one that was asked for: at least it, at most a few later."""
        if self.power is None:
            s = (10 * (1 - self.a) - 1) / self.a if self.a else math.inf
        else:
            s = self.inv_gamma * math.expm1(-math.log(self.a) / self.power) if self.a else math.inf
        return self.update_after + 1 + max(1.0, math.ceil(s) + 1)

    def _stretches(self, ticks: Sequence[int]) -> list[tuple[int, int, int]]:
        """For each interval: its first and last update, and how many of its ticks the warm-up has, at its start.

        Raises UsageError if there are too many of those to go through.
        """
        warm, found, gone = self.warm_from(), [], 0
        for before, tick in pairwise(ticks):
            first, last = before + self.offset + 1, tick + self.offset
            warming = int(min(max(0.0, warm - first), last - first + 1))
            gone += warming
            found.append((first, last, warming))
        if gone > _MOST_TICKS:
            raise UsageError(
                f"the warm-up goes on for {words.count(gone)} ticks, which is too long to go through",
                hint="--unit checkpoint, or leave --warmup out",
            )
        return found

    def resolve(self, ticks: Sequence[int], unit: str) -> WarmUp:
        """Itself."""
        return self

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """Σ over ticks of (1 − d_k) Π_{m>k} d_m on the straight line between checkpoints. [T] -> [T], sum 1."""
        c, later = np.zeros(len(ticks)), 1.0  # later: Π of the decays after the interval
        for j, (first, last, warming) in reversed(list(enumerate(self._stretches(ticks)))):
            n = last - first + 1
            parts = [self._steady(n, n - warming)] if n > warming else []
            parts += list(self._warming(first, n, warming))
            for to_end, to_start, kept in parts:
                c[j + 1] += later * to_end
                c[j] += later * to_start
                later *= kept
        c[0] += later
        return c

    def _steady(self, n: int, last: int) -> tuple[float, float, float]:
        """Of an interval of n ticks the last ones, at the decay in the end: weight on its two ends, and what is kept.

        In closed form: the stretch is a straight line itself, from a point of the line between the checkpoints.
        """
        to_end, to_start = shares_of_ends(self.a, last)
        kept = math.exp(last * math.log1p(-self.a)) if self.a < 1 else 0.0
        begins = (n - last) / n  # where on the line
        return to_end + begins * to_start, (1 - begins) * to_start, kept

    def _warming(self, first: int, n: int, count: int) -> Iterable[tuple[float, float, float]]:
        """The same of its first `count` ticks, a block at a time, the latest first."""
        for end in range(count, 0, -_BLOCK):
            begin = max(0, end - _BLOCK)
            k = np.arange(begin + 1, end + 1, dtype=np.float64)
            gains = self.gains(first - 1 + k)
            with np.errstate(divide="ignore"):  # a gain of 1 keeps nothing of what was
                kept = np.exp(np.cumsum(np.log1p(-gains[::-1]))[::-1])  # Π of the decays from each tick on
            share = gains * np.append(kept[1:], 1.0)
            yield float(share @ (k / n)), float(share @ ((n - k) / n)), float(kept[0])

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """e ← d e + (1 − d) w, tick by tick on numbers, then once on the weights. [T], T × [n] -> [n]."""
        stretches, e = self._stretches(ticks), np.zeros(0)
        before: Float64Array | None = None
        for j, now in enumerate(weights):
            if before is None:
                e = now
            else:
                kept, of_start, of_end = self._replayed(*stretches[j - 1])
                e = kept * e + of_start * before + of_end * now
            before = now
        return np.asarray(e)

    def _replayed(self, first: int, last: int, warming: int) -> tuple[float, float, float]:
        """What an interval makes of (e, its start, its end)."""
        n, kept, of_start, of_end = last - first + 1, 1.0, 0.0, 0.0
        for k, gain in enumerate(self.gains(np.arange(first, first + warming, dtype=np.float64)).tolist(), 1):
            kept -= gain * kept
            of_start += gain * ((n - k) / n - of_start)
            of_end += gain * (k / n - of_end)
        if n > warming:
            x = over_interval(Dynamics(self.a), n - warming)[1]  # e of (x, e, v, w, δ), and without a spring x is w
            on_line, rise = float(x[0] + x[3]), float(x[4]) / n
            start = warming / n
            kept, of_start, of_end = (
                float(x[1]) * kept,
                float(x[1]) * of_start + on_line * (1 - start) - rise,
                float(x[1]) * of_end + on_line * start + rise,
            )
        return kept, of_start, of_end

    def parameters(self) -> Parameters:
        """Every parameter; `a` is 1 − decay, with the digits that decay has lost."""
        return {
            "decay": 1 - self.a,
            "half_life": self.half_life,
            "warmup": self.warmup,
            "warmup_power": self.power,
            "inv_gamma": self.inv_gamma,
            "min_decay": self.min_decay,
            "update_after": self.update_after,
            "offset": self.offset,
            "a": self.a,
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> WarmUp:
        """The rule of a record. Raises KeyError, TypeError, ValueError or UsageError."""
        asked = WarmUpOptions(
            parameters["warmup"],
            parameters["warmup_power"],
            parameters["inv_gamma"],
            parameters["min_decay"],
            parameters["update_after"],
        )
        a, half_life, offset = parameters["a"], parameters["half_life"], parameters["offset"]
        if not (0 < a <= 1 and math.isfinite(half_life) and offset in (0, 1)):
            raise ValueError("its parameters are no numbers that can be")
        made = cls.asked(asked, float(a), float(half_life), "checkpoint" if offset else "step")
        if made.parameters() != dict(parameters):
            raise ValueError("its parameters contradict each other")
        if half_life > 0 and not math.isclose(a_from_half_life(half_life), a, rel_tol=1e-9):
            raise ValueError("its parameters contradict each other")
        return made

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again."""
        by_half_life = self.half_life > 0 and a_from_half_life(self.half_life) == self.a
        found = ["--half-life", repr(self.half_life)] if by_half_life else ["--decay", repr(1 - self.a)]
        found += ["--warmup", self.warmup]
        found += [] if self.power is None else ["--warmup-power", repr(self.power)]
        return [
            *found,
            *("--inv-gamma", repr(self.inv_gamma)),
            *("--min-decay", repr(self.min_decay)),
            *("--update-after", str(self.update_after)),
        ]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """The half-life in the end, and the warm-up."""
        half_life = f"{words.number(self.half_life)} {unit}{'' if self.half_life == 1 else 's'}"
        decay = words.number(1 - self.a) if self.a > 1e-4 else f"1 - {self.a:.3g}"
        reached = self.warm_from() <= ticks[-1] + self.offset
        last = 1 - float(self.gains(np.array([float(ticks[-1] + self.offset)]))[0])
        end = "" if reached else f", at the last checkpoint {words.number(last)}"
        return f"half-life {half_life}, warmed up as {self.warmup} does · decay {decay} a {unit}{end}"

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Another half-life."""
        return f"take a {'shorter' if leans_on_first else 'longer'} --half-life"
