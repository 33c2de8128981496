"""Quadratics with a condition of 10⁴: what an average can gain at its best rate, half-life and pull.

`exact` follows mean and variance of every direction, so its losses are expectations and have no error. `sampled` is a
linear regression, whose minibatch noise grows with the distance from the optimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 2000
_CURVATURES = np.logspace(-4, 0, 41)
_NOISE = 0.03  # standard deviation of the gradient in the direction of curvature 1; its variance is as the curvature
_DECAYS = np.array([1.0, *(2.0 ** (-1 / (share * STEPS)) for share in (0.003, 0.01, 0.03, 0.1, 0.3))])
_RATES = 2.0 ** np.arange(-5, 7.5, 0.5)


def quadratics(_: object = None) -> dict[str, Any]:
    """The least expected loss of each method after STEPS steps, and where it is."""
    return {"exact": _exact(), "sampled": _sampled()}


def _exact() -> list[dict[str, Any]]:
    feedbacks = (0.25, 1.0, 4.0)
    stiffnesses = (0.01, 0.1, 0.5, 1.0, 2.0)
    rows = [{"method": "linear decay", **_best(_Grid(decay_to_zero=True), last=True)}]
    rows += [{"method": "last", **_best(_Grid(), last=True)}, {"method": "EMA", **_best(_Grid())}]
    rows += [{"method": f"BELAY, feedback {f:g}", **_best(_Grid(feedback=f))} for f in feedbacks]
    rows += [{"method": f"BELAY, stiffness {k:g}", **_best(_Grid(stiffness=k))} for k in stiffnesses]
    rows += [
        {"method": f"BELAY, stiffness {k:g}, explicit", **_best(_Grid(stiffness=k, implicit=False))} for k in (0.1, 0.5)
    ]
    return rows


class _Grid:
    """Every rate, decay and curvature at once, [R, D, C]: mean and second moments of (x, e), loss after STEPS steps."""

    def __init__(
        self,
        feedback: float = 0.0,
        stiffness: float = 0.0,
        *,
        implicit: bool = True,
        decay_to_zero: bool = False,
    ) -> None:
        rates = _RATES[:, None, None]
        a = np.where(_DECAYS < 1, 1 - _DECAYS, 1.0)[None, :, None]
        start = _CURVATURES[None, None] ** -0.25  # more is left to learn where it is flat
        x = e = np.broadcast_to(start, (len(_RATES), len(_DECAYS), len(_CURVATURES)))
        xx = xe = ee = np.zeros_like(x)
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(STEPS):
                eta = rates * (1 - i / STEPS) if decay_to_zero else rates
                s = feedback * a + stiffness * eta
                k = 1 + s if implicit else 1.0
                p = (1 - eta * _CURVATURES) / k if implicit else 1 - eta * _CURVATURES - s
                r = s / k
                noise = (eta * _NOISE / k) ** 2 * _CURVATURES
                # x' = p x + r e + noise, e' = (1 − a) e + a x'
                new, newest = p * x + r * e, p * p * xx + 2 * p * r * xe + r * r * ee + noise
                with_e = p * xe + r * ee
                ee = (1 - a) ** 2 * ee + 2 * a * (1 - a) * with_e + a * a * newest
                xe = (1 - a) * with_e + a * newest
                x, xx, e = new, newest, (1 - a) * e + a * new
            self.last = (_CURVATURES * (x * x + xx) / 2).sum(-1)
            self.average = (_CURVATURES * (e * e + ee) / 2).sum(-1)
            self.bias = (_CURVATURES * e * e / 2).sum(-1)


def _best(grid: _Grid, *, last: bool = False) -> dict[str, Any]:
    losses = np.nan_to_num(grid.last if last else grid.average, nan=np.inf)
    i, j = np.unravel_index(losses.argmin(), losses.shape)
    by_rate = losses.min(1)
    near = _RATES[by_rate <= 1.05 * losses.min()]
    alive = _RATES[by_rate <= 2 * losses.min()]
    return {
        "loss": float(losses[i, j]),
        "of which bias": None if last else float(grid.bias[i, j]),
        "rate": float(_RATES[i]),
        "half-life": None if last or _DECAYS[j] == 1 else float(-1 / np.log2(_DECAYS[j])),
        "rates within 5 %": float(near.max() / near.min()),
        "rates within a factor of 2": float(alive.max() / alive.min()),
    }


_SEEDS, _BATCH, _SIZE = 16, 4, 40


def _sampled() -> list[dict[str, Any]]:
    """Least squares in 40 directions, condition 10⁴, label noise 0.3, batches of 4; 16 seeds, the same for all."""
    curvatures = torch.logspace(-4, 0, _SIZE, dtype=torch.float64)
    methods = [("EMA", 0.0, 0.0), *((f"BELAY, feedback {f:g}", f, 0.0) for f in (0.25, 1.0, 4.0))]
    methods += [(f"BELAY, stiffness {k:g}", 0.0, k) for k in (0.1, 0.5, 2.0, 8.0)]
    rates = 2.0 ** torch.arange(-7, 3, dtype=torch.float64)
    decays = torch.tensor(_DECAYS[1:4], dtype=torch.float64)
    shape = (len(methods), len(rates), len(decays), _SEEDS, 1)
    eta = rates.view(1, -1, 1, 1, 1)
    a = (1 - decays).view(1, 1, -1, 1, 1)
    feedback = torch.tensor([f for _, f, _ in methods], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    stiffness = torch.tensor([k for *_, k in methods], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    s = feedback * a + stiffness * eta
    x = (curvatures**-0.25).expand(*shape[:-1], _SIZE).clone()
    e = x.clone()
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        inputs = torch.randn(_SEEDS, _BATCH, _SIZE, generator=generator, dtype=torch.float64) * curvatures.sqrt()
        labels = 0.3 * torch.randn(_SEEDS, _BATCH, generator=generator, dtype=torch.float64)
        # [seeds, batch, size] · [configurations, seeds, size]
        residual = torch.einsum("sbd,...sd->...sb", inputs, x) - labels
        gradient = torch.einsum("sbd,...sb->...sd", inputs, residual) / _BATCH
        x = (x - eta * gradient + s * e) / (1 + s)
        e = torch.lerp(e, x, a.expand_as(e) if step else torch.ones_like(e))
    last = (curvatures * x**2).sum(-1) / 2
    average = (curvatures * e**2).sum(-1) / 2
    found = []
    for i, (name, *_) in enumerate(methods):
        found.append({"method": name, **_best_sampled(average[i], rates, decays)})
    return [{"method": "last", **_best_sampled(last[0], rates, decays)}, *found]


def _best_sampled(losses: torch.Tensor, rates: torch.Tensor, decays: torch.Tensor) -> dict[str, Any]:
    """losses: [rates, decays, seeds]."""
    losses = losses.nan_to_num(nan=float("inf"))
    mean = losses.mean(-1)
    i, j = divmod(int(mean.argmin()), len(decays))
    by_rate = mean.min(1).values
    near = rates[by_rate <= 1.05 * mean.min()]
    alive = rates[by_rate <= 2 * mean.min()]
    return {
        "loss": float(mean[i, j]),
        "standard error": float(losses[i, j].std() / _SEEDS**0.5),
        "rate": float(rates[i]),
        "half-life": float(-1 / torch.log2(decays[j])),
        "rates within 5 %": float(near.max() / near.min()),
        "rates within a factor of 2": float(alive.max() / alive.min()),
        "seeds": [float(v) for v in losses[i, j]],
    }
