"""The uniform average of the N checkpoints that an evaluation found best (WeNet, ESPnet, timm)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.gains import follow
from belay_cli.rules.per_checkpoint import finite, in_a_row, numbers_in, one_each
from belay_cli.rules.rule import Facts, Float64Array, Parameters, Rule

Mode = Literal["min", "max"]
Scores = str | tuple[float, ...] | Mapping[str, float] | None


@dataclass(frozen=True)
class Best(Rule):
    """The mean of the `best` checkpoints with the best scores; of two alike, the later is the better.

    best: how many. The scores are a metric that the run recorded at each checkpoint, or `scores`: the name of a file,
    numbers in the order of the series, or numbers by the names of the checkpoints. mode: which end is good.
    """

    best: Annotated[int | None, Option("best: how many, 5 by default; --best N alone means this method.", "N")] = None
    metric: Annotated[str | None, Option("best: which of those that the run recorded.", "NAME")] = None
    scores: Annotated[Scores, Option("best: in place of it, a .json or .csv by checkpoint or step.", "FILE")] = None
    mode: Annotated[Mode | None, Option("best: which end of it is good. Default for a loss: min.")] = None

    method = "best"
    title = "Mean of the best"
    chosen_by_name = True
    phrase = "the mean of the checkpoints that an evaluation found best"

    def __post_init__(self) -> None:
        """Refuse a number that takes nothing, and two sources of scores."""
        super().__post_init__()
        if self.best is not None and self.best < 1:
            raise UsageError(f"--best must be 1 or more, not {self.best}")
        if self.metric is not None and isinstance(self.scores, str):
            raise UsageError("--metric and --scores say the same thing twice", hint="give one of them")

    def told(self, facts: Facts) -> Best:
        """With the score of each checkpoint. Raises UsageError if one has none, or nobody said which end is good."""
        if self.scores is None and self.metric is None:
            raise UsageError(
                "--method best takes the scores of the checkpoints",
                hint="--metric eval_loss, as the run recorded it, or --scores FILE",
            )
        told = None
        if self.scores is not None:
            found = facts.numbers("--scores", self.scores, whole=False)
        else:
            found, told = facts.recorded(str(self.metric))
        if self.mode and told and self.mode != told:
            raise UsageError(f"--mode {self.mode}, but the run says that of {self.metric} the {told} is good")
        mode = self.mode or told or ("min" if (self.metric or "").endswith("loss") else None)
        if mode is None:
            what = self.metric or "the scores"
            raise UsageError(f"which end of {what} is good is not known", hint="--mode min or --mode max")
        count = 5 if self.best is None else self.best
        if count > len(found):
            raise UsageError(f"--best {count} is more than the {words.plural(len(found), 'checkpoint')} of the series")
        return Best(count, self.metric, finite(found, "a score"), "min" if mode == "min" else "max")

    @property
    def _scores(self) -> tuple[float, ...]:
        if not isinstance(self.scores, tuple) or self.best is None or self.best > len(self.scores):
            raise ValueError("the scores are not known: told() finds them")
        return self.scores

    @property
    def chosen(self) -> list[int]:
        """The places of the best in the series, rising."""
        sign = 1 if self.mode == "min" else -1
        order = sorted(range(len(self._scores)), key=lambda i: (sign * self._scores[i], -i))
        return sorted(order[: self.best])

    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """1/N for each of them, else 0. [T] -> [T], sum 1."""
        one_each(self._scores, ticks, "scores")
        c = np.zeros(len(ticks))
        c[self.chosen] = 1 / len(self.chosen)
        return c

    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The running mean over them. [T], T × [n] -> [n]."""
        taken = set(self.chosen)
        return follow([1 / k for k in range(1, len(taken) + 1)], (w for i, w in enumerate(weights) if i in taken))

    def parameters(self) -> Parameters:
        """How many, by which scores."""
        return {"best": self.best, "metric": self.metric, "scores": list(self._scores), "mode": self.mode}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Best:
        """The rule of a record. Raises KeyError, TypeError, ValueError or UsageError."""
        made = cls(parameters["best"], parameters["metric"], numbers_in(parameters["scores"]), parameters["mode"])
        if made.best is None or made.mode is None or made.best > len(made._scores):
            raise ValueError("its parameters are not those of its method")
        return made

    def arguments(self) -> list[str]:
        """The command-line words that give this rule again, the scores in the order of the series."""
        return ["--best", str(self.best), "--mode", str(self.mode), f"--scores={in_a_row(self._scores)}"]

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """How many of how many, by what, and which where there are few."""
        chosen = self.chosen
        by = f" by {self.metric}" if self.metric else ""
        end = {"min": "least", "max": "largest"}[str(self.mode)]
        which = f": {unit}s {', '.join(str(ticks[i]) for i in chosen)}" if unit == "step" and len(chosen) <= 8 else ""
        return f"{len(chosen)} of {len(ticks)} checkpoints{by}, the {end}{which}"

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """More of them."""
        return "take more: --best N"

    def remark(self, ticks: Sequence[int], coefficients: Float64Array) -> str:
        """What choosing costs."""
        return "chosen by these scores, it does better on their data than on others; judge it elsewhere"
