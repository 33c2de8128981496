"""What a vector of coefficients means, in the words of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belay_cli.rules.rule import Float64Array

_ROUNDED = 1e-9  # what a sum of 1 or 0 may miss it by


@dataclass(frozen=True)
class Summary:
    """Figures of one vector of coefficients; the lag is in ticks."""

    sum: float
    mean_lag: float
    effective_checkpoints: float


def summarize(coefficients: Float64Array, ticks: Sequence[int]) -> Summary:
    """Sum, mean lag Σ c_i (t_last − t_i) in ticks, and effective number of checkpoints (Σc)²/Σc². [T], [T].

    Of coefficients that do not sum to 1 the lag is that of their average, unless they sum to 0.
    """
    lag = ticks[-1] - np.asarray(ticks, dtype=np.float64)
    total = float(np.sum(coefficients))
    return Summary(
        sum=total,
        mean_lag=float(coefficients @ lag) / (total if abs(total - 1) > _ROUNDED and abs(total) > _ROUNDED else 1.0),
        effective_checkpoints=total * total / float(coefficients @ coefficients),
    )
