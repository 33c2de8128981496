"""The averages that are judged, with labels that are the same in every setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from belay_cli import Belay, Bema, Ema, Polynomial, Power, Rule, Uniform, Wsm
from belay_cli.rules import summarize
from belay_cli.rules.half_life import mean_spacing

HALF_LIVES = (1, 2, 5, 10, 20, 40)  # % of the span
WINDOWS = (10, 15, 25, 35, 50, 70, 100)  # % of the checkpoints
EQUAL_LAG = "10%"  # half-life of the EMA whose mean lag the others are given
LAST = "last"
DEFAULT = "default"


def candidates(ticks: Sequence[int]) -> dict[str, Rule]:
    """Rules by label, of a series whose checkpoints are at these ticks, [T].

    A label is the family, and behind a blank what is varied in it; windows are rounded up to whole checkpoints.
    `same-lag` marks those with the mean lag of the EMA of EQUAL_LAG, the nearest where a rule counts checkpoints.
    """
    span, spacing = ticks[-1] - ticks[0], mean_spacing(ticks)

    def window(percent: int) -> int:
        return -(-percent * len(ticks) // 100)

    found: dict[str, Rule] = {LAST: Uniform(window=1), DEFAULT: Ema()}
    found |= {f"floored-ema {p}%": Ema(half_life=max(p / 100 * span, spacing)) for p in (7, 10, 20)}
    found |= {f"ema {p}%": Ema(half_life=f"{p}%") for p in HALF_LIVES}
    found |= {f"debiased-ema {p}%": Ema(half_life=f"{p}%", debias=True) for p in (10, 20, 40)}
    found |= {f"belay {p / 2:g}%": Belay(half_life=f"{p / 2:g}%") for p in HALF_LIVES}
    found |= {f"uniform {p}%": Uniform(window=window(p)) for p in WINDOWS}
    for shape in ("linear", "cosine", "1-sqrt"):
        found |= {f"wsm-{shape} {p}%": Wsm(window=window(p), shape=shape) for p in WINDOWS[1:]}
    found |= {f"power {sigma:g}": Power(sigma_rel=sigma) for sigma in (0.03, 0.05, 0.08, 0.1, 0.15, 0.2)}
    found |= {f"polynomial {eta}": Polynomial(eta=eta) for eta in (1, 3, 6, 12, 24, 48)}
    found["bema-defaults"] = Bema()
    found |= {f"bema {eta:g}": Bema(multiplier=1 / spacing, bias_power=eta) for eta in (0.2, 0.5, 1, 2)}
    return found | _same_lag(ticks)


def _same_lag(ticks: Sequence[int]) -> dict[str, Rule]:
    wanted, spacing = lag(Ema(half_life=EQUAL_LAG), ticks), mean_spacing(ticks)

    def nearest(make: Callable[[int], Rule]) -> Rule:
        return min((make(n) for n in range(1, len(ticks) + 1)), key=lambda rule: abs(lag(rule, ticks) - wanted))

    def solved(make: Callable[[float], Rule], least: float, most: float) -> Rule:
        """By bisection, from a parameter with too short a lag to one with too long a lag."""
        for _ in range(60):
            middle = (least + most) / 2
            least, most = (middle, most) if lag(make(middle), ticks) < wanted else (least, middle)
        return make(most)

    return {
        "belay same-lag": solved(lambda p: Belay(half_life=p), spacing / 100, ticks[-1] - ticks[0]),
        "uniform same-lag": nearest(lambda n: Uniform(window=n)),
        "wsm-linear same-lag": nearest(lambda n: Wsm(window=n)),
        "wsm-cosine same-lag": nearest(lambda n: Wsm(window=n, shape="cosine")),
        "wsm-1-sqrt same-lag": nearest(lambda n: Wsm(window=n, shape="1-sqrt")),
        "power same-lag": solved(lambda sigma: Power(sigma_rel=sigma), 0.001, 0.2886),
        "polynomial same-lag": solved(lambda inverse: Polynomial(eta=1 / inverse), 1e-4, 100.0),
        "bema same-lag": solved(lambda k: Bema(ema_power=k, bias_power=1.0, multiplier=1 / spacing), 0.01, 2.0),
    }


def lag(rule: Rule, ticks: Sequence[int]) -> float:
    """The mean lag, ticks."""
    return summarize(rule.resolve(ticks, "step").coefficients(ticks), ticks).mean_lag
