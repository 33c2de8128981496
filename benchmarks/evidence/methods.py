"""How it is trained: one plain run with several averages, and the methods that change the run.

Each method follows a torch optimizer by hooks on its step, as `belay_cli.training.Belay` does, and offers the weights
that it would hand to a user. `METHODS` has all of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from belay_cli.training import Belay

Weights = dict[str, Tensor]
HALF_LIVES = (0.01, 0.03, 0.1)  # of the steps, for the plain EMA
HALF_LIFE = 0.03  # of the steps, where a method has one average
FOLLOWED = f"EMA {HALF_LIFE:.0%}"  # which of the plain run's averages is evaluated along the way
TAILS = (0.25, 0.5)  # of the steps, the last of which are averaged equally


@dataclass
class Run:
    """What a method can follow: parameters by name, the optimizer, how many steps there will be, and in an epoch."""

    parameters: Weights
    optimizer: Optimizer
    steps: int
    epoch: int

    def copies(self) -> Weights:
        """The weights as they are now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def pairs(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters, without their gradients."""
        return ((name, p.detach()) for name, p in self.parameters.items())


class Method:
    """The plain run: the last weights, and nothing done to them."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def rate(self, step: int) -> float:
        """The factor of the rate at step `step`, counted from 1."""
        return 1.0

    def before_step(self, step: int) -> None:
        """Before the optimizer's step, when the gradients are there."""

    def after_step(self, step: int) -> None:
        """After it, and after all hooks."""

    def weights(self) -> dict[str, Weights]:
        """The weights that a user could take, by what they are called."""
        return {"last": self.run.copies()}

    def own(self) -> Weights:
        """Those that are evaluated along the way."""
        found = self.weights()
        return found["average"] if "average" in found else found["last"]


def _average(belay: Belay) -> Weights:
    found: Weights = belay.state_dict()["average"]
    return found


class Averages(Method):
    """The plain run with EMAs of several half-lives, and uniform means over its tail."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        steps = run.steps
        self.kept = {f"EMA {share:.0%}": Belay(run.optimizer, half_life=share * steps) for share in HALF_LIVES}
        self.kept |= {
            f"uniform {share:.0%}": Belay(run.optimizer, warmup=0.5, start_step=round((1 - share) * steps))
            for share in TAILS
        }

    def weights(self) -> dict[str, Weights]:
        """The last, and every average."""
        return super().weights() | {name: _average(one) for name, one in self.kept.items()}

    def own(self) -> Weights:
        """One of the EMAs."""
        return _average(self.kept[FOLLOWED])


class Decay(Method):
    """The rate falls to zero in a straight line: what averaging competes with."""

    def rate(self, step: int) -> float:
        """In a straight line."""
        return 1 - (step - 1) / self.run.steps


class Sprung(Method):
    """BELAY. `options` are those of Belay; `released`: the share of the steps after which the pull ends."""

    def __init__(self, run: Run, options: dict[str, Any], released: float | None = None) -> None:
        super().__init__(run)
        self.belay = Belay(run.optimizer, **{"half_life": HALF_LIFE * run.steps} | options)
        self.until = None if released is None else round(released * run.steps)

    def after_step(self, step: int) -> None:
        """Let go when it is time."""
        if step == self.until:
            self.belay.release()

    def weights(self) -> dict[str, Weights]:
        """The average, and the weights that train."""
        return {"average": _average(self.belay)} | super().weights()


class Lookahead(Method):
    """Lookahead (arXiv 1907.08610): every k steps the slow weights go half way to the fast, which go on from there."""

    def __init__(self, run: Run, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(run)
        self.k, self.alpha, self.slow = k, alpha, run.copies()

    def after_step(self, step: int) -> None:
        """Synchronise."""
        if step % self.k == 0:
            for name, p in self.run.pairs:
                p.copy_(self.slow[name].lerp_(p, self.alpha))

    def weights(self) -> dict[str, Weights]:
        """The slow weights, and the fast ones."""
        return {"average": self.slow} | super().weights()


class SwitchEma(Method):
    """Switch EMA (arXiv 2402.09240): after every epoch the model goes on from its EMA."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.belay = Belay(run.optimizer, half_life=HALF_LIFE * run.steps)

    def after_step(self, step: int) -> None:
        """Switch at the end of an epoch."""
        if step % self.run.epoch == 0 and step < self.run.steps:
            average = _average(self.belay)
            for name, p in self.run.pairs:
                p.copy_(average[name])

    def weights(self) -> dict[str, Weights]:
        """The average, and the weights that train."""
        return {"average": _average(self.belay)} | super().weights()


class Pace(Method):
    """PACE (arXiv 2606.25086), by the update rule that its authors publish, with their defaults.

    With θ' what AdamW makes of θ, and t the steps before: d = max((1 + t)^(−0.2), 1e-4), λ = min(lr c d/(√v̂ + ε), 1) a
    coordinate, θ ← θ' + λ (ema − θ), ema ← (1 − d) ema + d θ.
    """

    def __init__(self, run: Run, c: float = 0.15, kappa: float = 0.2) -> None:
        super().__init__(run)
        self.c, self.kappa, self.ema = c, kappa, run.copies()
        self.before = run.copies()

    def before_step(self, step: int) -> None:
        """Keep the weights from which the step starts."""
        for name, p in self.run.pairs:
            self.before[name].copy_(p)

    def after_step(self, step: int) -> None:
        """Pull, then average."""
        d = max(step**-self.kappa, 1e-4)  # t = step - 1
        (group,) = self.run.optimizer.param_groups
        for name, parameter in self.run.parameters.items():
            p, state = parameter.detach(), self.run.optimizer.state[parameter]
            v = state["exp_avg_sq"] / (1 - group["betas"][1] ** step)
            share = (group["lr"] * self.c * d / (v.sqrt() + group["eps"])).clamp(max=1)
            p.add_(share * (self.ema[name] - self.before[name]))
            self.ema[name].lerp_(p, d)

    def weights(self) -> dict[str, Weights]:
        """The average, and the weights that train."""
        return {"average": self.ema} | super().weights()


class ScheduleFree(Method):
    """Schedule-free (arXiv 2405.15682): the gradient is taken at y = 0.1 z + 0.9 x, z takes the optimizer's steps.

    x is the uniform mean of z, and what is evaluated. Adam's own first moment is off (β₁ = 0), as in the paper.
    """

    def __init__(self, run: Run, beta: float = 0.9) -> None:
        super().__init__(run)
        self.beta, self.x, self.z = beta, run.copies(), run.copies()
        for group in run.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (0.0, group["betas"][1])

    def before_step(self, step: int) -> None:
        """The step goes from z, by the gradient at y."""
        for name, p in self.run.pairs:
            p.copy_(self.z[name])

    def after_step(self, step: int) -> None:
        """Average, and put y in place for the next gradient."""
        for name, p in self.run.pairs:
            self.z[name].copy_(p)
            self.x[name].lerp_(p, 1 / step)
            p.lerp_(self.x[name], self.beta)

    def weights(self) -> dict[str, Weights]:
        """The average."""
        return {"average": self.x}


@dataclass(frozen=True)
class Entry:
    """A method: how it is called, what it is, for which optimizers, and how it is made."""

    name: str
    family: str
    make: Callable[[Run], Method]
    optimizers: tuple[str, ...] = ("SGD", "AdamW")
    also_long: bool = True
    """Whether it is worth its time on the transformer too."""


def _sprung(released: float | None = None, **options: Any) -> Callable[[Run], Method]:
    return lambda run: Sprung(run, options, released)


def _feedback(name: str, feedback: float, half_life: float, **more: Any) -> Entry:
    def make(run: Run) -> Method:
        return Sprung(run, {"feedback": feedback, "half_life": half_life * run.steps, **more})

    return Entry(name, "BELAY, feedback", make)


def _share(share: float) -> Entry:
    """A spring that moves the model by a fixed share of the way to the average in each step."""

    def make(run: Run) -> Method:
        decay = 2 ** (-1 / (HALF_LIFE * run.steps))
        return Sprung(run, {"feedback": share / (1 - share) / (1 - decay)})

    return Entry(f"BELAY, share {share:g}", "BELAY, feedback", make, also_long=False)


def _entries() -> Iterator[Entry]:
    yield Entry("plain", "EMA", Averages)
    yield Entry("linear decay", "linear decay", Decay)
    yield Entry("Lookahead", "Lookahead", Lookahead)
    yield Entry("Switch EMA", "Switch EMA", SwitchEma)
    yield Entry("schedule-free", "schedule-free", ScheduleFree)
    yield Entry("PACE", "PACE", Pace, ("AdamW",))
    yield _feedback("BELAY, feedback 1, half-life 1%", 1.0, 0.01)
    yield _feedback("BELAY, feedback 1", 1.0, HALF_LIFE)
    yield _share(0.1)
    for k in (0.05, 0.2, 0.8):
        yield Entry(f"BELAY, stiffness {k:g}", "BELAY, stiffness", _sprung(stiffness=k), ("SGD",))
    for k in (1.0, 4.0, 16.0):
        yield Entry(f"BELAY, stiffness {k:g}", "BELAY, stiffness", _sprung(stiffness=k), ("AdamW",))
    for k in (0.01, 0.05, 0.25):
        name = f"BELAY, stiffness {k:g} in Adam's metric"
        yield Entry(name, "BELAY, Adam's metric", _sprung(stiffness=k, metric="optimizer"), ("AdamW",), k < 0.1)
    for optimizer, k in (("SGD", 0.2), ("AdamW", 4.0)):
        name, options = f"BELAY, stiffness {k:g}", {"stiffness": k}
        yield Entry(f"{name}, let go at 80%", "BELAY, let go", _sprung(0.8, **options), (optimizer,), False)
        yield Entry(f"{name}, explicit", "BELAY, explicit", _sprung(**options, implicit=False), (optimizer,), False)


METHODS = {(optimizer, one.name): one for one in _entries() for optimizer in one.optimizers}
_OTHERS = dict.fromkeys(one.family for one in METHODS.values() if one.family != "EMA")
FAMILIES = ("last", "EMA", "uniform tail", *_OTHERS)  # in the order of tables
