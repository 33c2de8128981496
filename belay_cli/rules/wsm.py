"""WSM: a learning-rate decay that never was, emulated by merging checkpoints (arXiv 2507.17634).

Had the rate been multiplied by f(u) from the first checkpoint on, u the fraction of the span, each step of the run
would have been f times as long, if gradients stay the same: w_0 + Σ f_j (w_j − w_{j−1}), which is an average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from belay_cli.options import Option
from belay_cli.rules.rule import Float64Array
from belay_cli.rules.windowed import Windowed

Shape = Literal["linear", "cosine", "1-sqrt"]

# From 1 at the first checkpoint to 0 at the last; u: [N], from 0 to 1.
_ENVELOPES: dict[str, Callable[[Float64Array], Float64Array]] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + np.cos(np.pi * u)) / 2,
    "1-sqrt": lambda u: 1 - np.sqrt(u),
}


@dataclass(frozen=True)
class Wsm(Windowed):
    """The average that stands for a decay of the learning rate over the last `window` checkpoints, or over all."""

    shape: Annotated[Shape, Option("wsm: of the decay that is emulated. Default linear.", also={"sqrt": "1-sqrt"})] = (
        "linear"
    )

    method = "wsm"
    title = "WSM"
    phrase = "a decay of the learning rate, emulated"

    def envelope(self, ticks: Sequence[int]) -> Float64Array:
        """f in the middle of each interval between the checkpoints of the window at ticks [T]. -> [K − 1], falling."""
        t = np.asarray(ticks[len(ticks) - self.taken(ticks) :], np.float64)
        middle = (t[1:] + t[:-1]) / 2
        return _ENVELOPES[self.shape]((middle - t[0]) / (t[-1] - t[0])) if len(t) > 1 else np.zeros(0)

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """c_0 = 1 − f_1, c_j = f_j − f_{j+1}, and f_N for the last of the window. [T] -> [T], sum 1."""
        f = np.concatenate([[1.0], self.envelope(ticks), [0.0]])
        return np.append(np.zeros(len(ticks) - self.taken(ticks)), f[:-1] - f[1:])

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The run with shorter steps: x ← x + f_j (w_j − w_{j−1}) from the first of the window. [T], T × [n] -> [n]."""
        first, shares = len(ticks) - self.taken(ticks), iter(self.envelope(ticks).tolist())
        x = before = np.zeros(0)
        for number, now in enumerate(weights):
            x = now if number <= first else x + next(shares) * (now - before)
            before = now
        return np.asarray(x)

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again, the shape always."""
        return ["--shape", self.shape, *(["--window", str(self.window)] if self.window else [])]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """The shape, and over what."""
        count = self.taken(ticks)
        whole = count == len(ticks)
        over = "the whole series" if whole else f"the last {count} of {len(ticks)} checkpoints"
        return f"{self.shape} decay over {over}"
