"""The mechanics: `belay_cli.training.Belay` on quadratics, next to theory in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from belay_cli.rules.damping import inertia_for_damping_ratio
from belay_cli.training import Belay
from evidence.theory import Mode, ema_gain, largest_h, overshoot, same_as_ema, step_response

_A = 0.05
_DECAY = 1 - _A


class Direction:
    """Many copies of one direction side by side, each with its own h, trained by torch's SGD at rate 1."""

    def __init__(self, h: torch.Tensor, start: float, **options: Any) -> None:
        self.h = h.double()
        self.x = torch.nn.Parameter(torch.full_like(self.h, start))
        self.optimizer = torch.optim.SGD([("x", self.x)], lr=1.0)
        self.belay = Belay(self.optimizer, warmup=None, **options)

    def step(self, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
        """One step, by the gradient h x + noise. The average after it."""
        self.x.grad = self.h * self.x.detach() + noise
        self.optimizer.step()
        return self.average

    @property
    def average(self) -> torch.Tensor:
        """e."""
        found: torch.Tensor = self.belay.state_dict()["average"]["x"]
        return found


def mechanics(_: object = None) -> dict[str, Any]:
    """All of it."""
    return {
        "oscillation": _oscillation(),
        "noise": _noise(),
        "stable range": _stable_range(),
        "same as an EMA": _same_as_an_ema(),
    }


def _oscillation() -> dict[str, Any]:
    """e after a jump of x from 0 to 1, for several damping ratios."""
    found = {}
    for ratio in (0.2, 0.5, 1.0, 2.0, None):
        inertia = inertia_for_damping_ratio(_A, ratio) if ratio else 0.0
        one = Direction(torch.zeros(1), 0.0, decay=_DECAY, inertia=inertia)
        # The jump is the first step; h = 0, so x stays there.
        seen = [float(one.step(-1.0 if i == 0 else 0.0)) for i in range(400)]
        theory = step_response(_A, inertia, 400)
        found[f"damping ratio {ratio}" if ratio else "EMA"] = {
            "inertia": inertia,
            "largest difference from theory": float(np.max(np.abs(theory - seen))),
            "overshoot": max(0.0, max(seen) - 1),
            "overshoot in theory": overshoot(ratio) if ratio else 0.0,
            "seen": [round(v, 5) for v in seen[:200]],
        }
    return found


def _noise() -> list[dict[str, Any]]:
    """Stationary variance of x and e for unit noise: 10,000 directions side by side, 600 steps after 1,500."""
    found = []
    generator = torch.Generator().manual_seed(0)
    rows = [Mode(0.3, _A, s, implicit) for s in (0.0, 0.05, 0.5) for implicit in (True, False) if s or implicit]
    rows += [Mode(1.0, _A, inertia=inertia) for inertia in (0.5, 0.9)]  # h = 1: x is noise without memory
    for mode in rows:
        options = {"feedback": mode.s / mode.a} if mode.s else {}
        h = torch.full((10_000,), mode.h)
        one = Direction(h, 0.0, decay=_DECAY, inertia=mode.inertia, implicit=mode.implicit, **options)
        x, e = [], []
        for i in range(2100):
            one.step(torch.randn(10_000, generator=generator, dtype=torch.float64))
            if i >= 1500 and i % 30 == 0:
                x.append(float(one.x.detach().var()))
                e.append(float(one.average.var()))
        theory = mode.variances()
        found.append(
            {
                "h": mode.h,
                "s": mode.s,
                "order": "implicit" if mode.implicit else "explicit",
                "inertia": mode.inertia,
                "x": float(np.mean(x)),
                "x in theory": theory[0],
                "e": float(np.mean(e)),
                "e in theory": theory[1],
            }
            | ({"e in closed form": ema_gain(mode.a, mode.inertia)} if mode.h == 1.0 else {})
        )
    return found


def _stable_range() -> list[dict[str, Any]]:
    """The largest h that does not grow: 8,001 of them side by side for 4,000 steps."""
    found = []
    for s in (0.0, 0.05, 0.25, 0.5, 1.0, 2.0):
        for implicit in (True, False):
            h = torch.linspace(0, 8, 8001, dtype=torch.float64)
            share = s / _A
            if not implicit and s > 0.99:
                continue
            one = Direction(h, 1.0, decay=_DECAY, feedback=share or None, implicit=implicit)
            for _ in range(4000):
                one.step()
            grows = ~(one.x.detach().abs() < 10)
            seen = float(h[grows][0]) if grows.any() else float("inf")
            order = "implicit" if implicit else "explicit"
            theory = largest_h(_A, s, implicit=implicit)
            found.append({"s": s, "order": order, "seen": seen, "theory": theory})
    return found


def _same_as_an_ema() -> list[dict[str, Any]]:
    """BELAY's average next to the EMA of the SGD that theory names, under the same noise."""
    found = []
    for h, s in ((0.001, 0.05), (0.3, 0.05), (0.3, 0.5), (1.5, 0.5), (2.5, 1.0)):
        h0, a0 = same_as_ema(h, _A, s)
        belay = Direction(torch.tensor([h], dtype=torch.float64), 0.0, decay=_DECAY, feedback=s / _A)
        ema = Direction(torch.tensor([h0], dtype=torch.float64), 0.0, decay=1 - a0)
        generator = torch.Generator().manual_seed(0)
        worst, size = 0.0, 0.0
        for _ in range(3000):
            noise = float(torch.randn((), generator=generator))
            difference = belay.step(noise) - ema.step(noise * h0 / h)
            worst, size = max(worst, float(difference.abs())), max(size, float(belay.average.abs()))
        found.append({"h": h, "s": s, "h of the SGD": h0, "a of the EMA": a0, "largest difference": worst / size})
    return found
