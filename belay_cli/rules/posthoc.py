"""EDM2's post-hoc EMA (arXiv 2312.02696, section 3 and Algorithm 3): a power EMA of any width from stored ones.

Each stored snapshot is itself an average over the run, with the profile p_i of its width, at its time. The combination
Σ x_i p_i that is nearest to the profile p that is asked for, in least squares, solves A x = b with A_ij = p_i · p_j and
b_i = p_i · p; then x is divided by its sum, as the authors' program does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.per_checkpoint import finite, in_a_row, numbers_in, one_each
from belay_cli.rules.power_options import PowerOptions, check_width, exponent_of_width
from belay_cli.rules.rule import Facts, Float64Array, Parameters

Widths = str | tuple[float, ...] | Mapping[str, float] | None


_LARGEST_SHARE = 1e4  # in any use that makes sense they are below 10; this costs four digits of the stored weights


@dataclass(frozen=True)
class PostHoc(PowerOptions):
    """The power EMA of relative width `sigma_rel` at the time of the last snapshot, from snapshots of other widths.

    widths: of each snapshot, as the name of a file, one for all, numbers in the order of the series, or by name.
    times: the training step of each, which the snapshots state.
    """

    widths: Annotated[
        Widths, Option("posthoc: of the stored EMAs, 0.05 for all, 0.05,0.1,…, or a .json or .csv by name.", "FILE")
    ] = None
    times: tuple[float, ...] | None = None

    method = "posthoc"
    title = "Post-hoc EMA"
    ordered = False
    phrase = "a power EMA of another width, from stored ones"
    tags = ("ema",)

    def told(self, facts: Facts) -> PostHoc:
        """With the width and the time of each snapshot. Raises UsageError if one is not known."""
        if self.widths is None:
            raise UsageError(
                "--method posthoc takes the widths of the stored EMAs",
                hint="--widths 0.05 if they are all alike, 0.05,0.1,… in order, or a file by name",
            )
        without = [name for name, step in zip(facts.names, facts.steps, strict=True) if not step]
        if without:
            raise UsageError(f"{without[0]} states no training step above 0, which --method posthoc takes")
        widths = finite(facts.numbers("--widths", self.widths, whole=True), "a width")
        for width in widths:
            check_width(width, "--widths")
        return PostHoc(self.width, widths, tuple(float(step or 0) for step in facts.steps))

    def _snapshots(self) -> tuple[Float64Array, Float64Array]:
        """Times, and exponents of the profiles; [T] each."""
        if not isinstance(self.widths, tuple) or self.times is None:
            raise ValueError("the widths are not known: told() finds them")
        known = {width: exponent_of_width(width) for width in set(self.widths)}
        return np.array(self.times), np.array([known[width] for width in self.widths])

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """x of A x = b, over its sum. [T] -> [T], signed, sum 1."""
        times, exponents = self._snapshots()
        one_each(times.tolist(), ticks, "snapshots")
        if len(set(zip(times.tolist(), exponents.tolist(), strict=True))) < len(times):
            raise _alike()  # rounding may hide it from what follows
        gamma, end = exponent_of_width(self.width), times.max()
        a = _products(times[:, None], exponents[:, None], times, exponents)  # [T, T]
        b = _products(times, exponents, np.float64(end), np.float64(gamma))  # [T]
        try:
            x = np.linalg.solve(a, b)
        except np.linalg.LinAlgError:
            raise _alike() from None
        if not np.isfinite(x).all() or not abs(x.sum()) > 1e-6 or abs(x).max() > _LARGEST_SHARE * abs(x.sum()):
            raise UsageError(
                "the snapshots are too nearly alike in width and time for shares that mean something",
                hint="leave some of them out",
            )
        return np.asarray(x / x.sum())

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The same combination found one snapshot after the other, on the snapshots themselves. [T], T × [n] -> [n].

        Gram and Schmidt: each snapshot loses what those before it explain of its profile, and gives its share of what
        is left of the wanted one. In long double where there is one: neighbouring profiles are nearly alike.
        """
        times, exponents = (part.astype(np.longdouble) for part in self._snapshots())
        gamma, end = np.longdouble(exponent_of_width(self.width)), times.max()
        a = _products(times[:, None], exponents[:, None], times, exponents)
        b = _products(times, exponents, end, gamma)
        count = len(times)
        found, products = np.zeros((count, count), b.dtype), np.zeros((count, count), b.dtype)  # rows, and rows · A
        x = np.zeros_like(b)
        for i in range(count):
            own = np.zeros_like(b)
            own[i] = 1
            for _ in range(2):  # once more: the first pass leaves what rounding left
                own = own - (products[:i] @ own) @ found[:i]
            product = own @ a
            length = np.sqrt(product @ own)
            if not length > 0:
                raise _alike()
            found[i], products[i] = own / length, product / length
            x = x + found[i] * (found[i] @ b)
        x = x / x.sum()
        return np.asarray(sum(float(c) * w for c, w in zip(x, weights, strict=True)))

    def parameters(self) -> Parameters:
        """The width that is wanted, and widths and times of the snapshots."""
        widths = self.widths if isinstance(self.widths, tuple) else ()
        return {"sigma_rel": self.width, "widths": list(widths), "times": list(self.times or ())}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> PostHoc:
        """The rule of a record. Raises KeyError, TypeError, ValueError or UsageError."""
        widths, times = numbers_in(parameters["widths"]), numbers_in(parameters["times"])
        for width in widths:
            check_width(width, "its widths")
        if len(widths) != len(times) or not all(time > 0 for time in times):
            raise ValueError("its parameters are not those of its method")
        return cls(parameters["sigma_rel"], widths, times)

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again; the snapshots state their times."""
        widths = self.widths if isinstance(self.widths, tuple) else ()
        return ["--sigma-rel", repr(self.width), "--widths", in_a_row(widths)]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """The width, and those that it is made of."""
        stored = sorted(set(self.widths)) if isinstance(self.widths, tuple) else []
        return f"relative width {self.width:g}, of stored EMAs of {' and '.join(f'{width:g}' for width in stored)}"

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Other snapshots."""
        return "take snapshots of more widths, or a --sigma-rel nearer to theirs"

    def remark(self, ticks: Sequence[int], coefficients: Float64Array) -> str:
        """What the lag of snapshots is not."""
        return "each snapshot is an average already, so the average lags behind by more than this says"

    def credit(self) -> str:
        """The paper."""
        return " The method is that of [EDM2](https://arxiv.org/abs/2312.02696)."


def _products(times: Any, exponents: Any, other_times: Any, other_exponents: Any) -> Any:
    """Inner products of profiles (equation 151): (γ+1)(γ'+1) (t/t')^±γ / ((γ+γ'+1) max(t, t')). They broadcast."""
    ratio = times / other_times
    fallen = np.where(times < other_times, ratio**other_exponents, ratio**-exponents)
    width = (exponents + other_exponents + 1) * np.maximum(times, other_times)
    return (exponents + 1) * (other_exponents + 1) * fallen / width


def _alike() -> UsageError:
    return UsageError(
        "two of the snapshots are of one width and one time, so their shares are not known",
        hint="leave one of them out",
    )
