"""A sweep in memory: averages of a series, each judged by a function of its state dict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from belay_cli.api.average import Checkpoints, in_memory, listed_paths, listener, replayed
from belay_cli.api.keywords import PlanKeywords, plan_options
from belay_cli.api.tries import Try, planned_tries
from belay_cli.checkpoints import find_series
from belay_cli.errors import BelayError, UsageError
from belay_cli.rules import Rule
from belay_cli.show.sweep import SweepReport
from belay_cli.sweeping.grid import Grid, baselines, of_rule
from belay_cli.sweeping.measures import NoResult
from belay_cli.sweeping.metric import LARGEST, Score, mean_of
from belay_cli.sweeping.outcome import Outcome, Tried

if TYPE_CHECKING:
    from typing import Unpack

    import torch

Evaluate = Callable[[Any], "float | tuple[float, float | None]"]


def sweep(
    checkpoints: Checkpoints,
    rules: Sequence[str | Rule] | None = None,
    *,
    evaluate: Evaluate,
    maximize: bool,
    metric: str = "score",
    repeat: int = 1,
    at_once: int = 4,
    progress: bool = False,
    **options: Unpack[PlanKeywords],
) -> SweepReport:
    """Judge averages of a series by a function of their state dicts, in memory; nothing is written.

    rules: those to try, by default a grid over several methods; the last checkpoint and the uniform average are tried
    in any case. evaluate: takes a state dict as `averages` yields it, returns a score, or a score and its standard
    error; what it raises, and NaN, is recorded as a failure of that candidate. maximize: whether a high score is good.
    metric: what the score is called. repeat: how often each is evaluated. at_once: averages that are made in one read,
    and held in memory together. The other options are those of `average`. Raises a BelayError for what is wrong with
    the series or the options.
    """
    began, hears = time.monotonic(), listener(progress)
    selection, planned = plan_options(options)
    for name, value in (("repeat", repeat), ("at_once", at_once)):
        if value < 1:
            raise UsageError(f"{name} must be 1 or more, not {value!r}")
    with hears.phase("Opening the checkpoints"):
        series = find_series(listed_paths(checkpoints), selection)
    if rules is None:
        wanted = Grid().candidates(len(series.checkpoints))
    else:
        asked = [
            Grid((rule,)).candidates(len(series.checkpoints))[2:] if isinstance(rule, str) else [of_rule(rule)]
            for rule in rules
        ]
        wanted = [*baselines(), *(one for several in asked for one in several)]
    tries = planned_tries(series, wanted, planned)
    found = []
    made = replayed(in_memory(series, [one.candidate.rule for one in tries], planned, at_once), hears)
    for one, (_, state) in zip(tries, made, strict=True):
        found.append(_tried(one, lambda state=state: _called(evaluate, state, repeat)))  # type: ignore[misc]
    if found and all(one.score is None for one in found):
        raise BelayError("no evaluation gave a score", hint=f"{found[0].candidate.label} {found[0].failure}")
    return SweepReport(
        series=series.name,
        unit=series.unit,
        metric=metric,
        outcome=Outcome(found, maximize),
        rules={one.candidate.label: one.parameters for one in tries},
        seconds=time.monotonic() - began,
        evaluated=len(found) * repeat,
    )


def _called(evaluate: Evaluate, state: dict[str, torch.Tensor], repeat: int) -> Score:
    scores = []
    for _ in range(repeat):
        try:
            # A function may change what it is given; the next call is given what the first one was.
            told = evaluate({name: tensor.clone() for name, tensor in state.items()} if repeat > 1 else state)
            value, spread = told if isinstance(told, tuple) else (told, None)
            value, spread = float(value), None if spread is None else float(spread)
        except Exception as error:  # the user's own function: whatever it raises is said of this candidate
            raise NoResult(f"raised {type(error).__name__}: {error}") from error
        if not abs(value) < LARGEST:
            raise NoResult(f"gave {value}")
        scores.append(Score(value, spread))
    return mean_of(scores)


def _tried(one: Try, score: Callable[[], Score]) -> Tried:
    try:
        return Tried(one.candidate, one.summary, score())
    except NoResult as why:
        return Tried(one.candidate, one.summary, failure=str(why))
