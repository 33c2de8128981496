"""Polynomial-decay averaging (Shamir and Zhang, ICML 2013, section 4): later checkpoints weigh more, by a power."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.gains import follow
from belay_cli.rules.rule import Float64Array, Rule

_DEFAULT_ETA = 3.0


@dataclass(frozen=True)
class Polynomial(Rule):
    """e ← (1 − g) e + g w with g = (η + 1)/(t + η), t counting checkpoints from 1. η = 0 is the uniform average."""

    eta: Annotated[
        float | None, Option("polynomial: the larger, the more the late ones weigh; 0 is uniform. Default 3.", "ETA")
    ] = None

    method = "polynomial"
    title = "Polynomial-decay average"
    phrase = "weights that grow with a power of the checkpoint's number"

    def __post_init__(self) -> None:
        """Refuse what the paper does not define."""
        super().__post_init__()
        if self.eta is not None and not 0 <= self.eta < 1e9:
            raise UsageError(f"--eta must be 0 or more, not {self.eta:g}")

    def resolve(self, ticks: Sequence[int], unit: str) -> Polynomial:
        """With η a number."""
        return Polynomial(_DEFAULT_ETA if self.eta is None else self.eta)

    @property
    def _eta(self) -> float:
        return _DEFAULT_ETA if self.eta is None else self.eta

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """c_T = (η + 1)/(T + η) and c_{t−1} = c_t (t − 1)/(t − 1 + η). [T] -> [T], sum 1."""
        count = len(ticks)
        earlier = np.arange(count - 1, 0, -1)  # t − 1 from T − 1 down to 1
        last = (self._eta + 1) / (count + self._eta)
        return np.asarray(last * np.append(np.cumprod(earlier / (earlier + self._eta))[::-1], 1.0))

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The recursion of the paper, checkpoint by checkpoint. [T], T × [n] -> [n]."""
        return follow(((self._eta + 1) / (t + self._eta) for t in range(1, len(ticks) + 1)), weights)

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Another η."""
        return "take a larger --eta" if leans_on_first else "take a smaller --eta"

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """η."""
        return f"eta {self._eta:g}"
