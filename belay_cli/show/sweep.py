"""What a sweep found: the table, the picture made of signs, the sentences under them, and the object for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from belay_cli import words
from belay_cli._version import __version__
from belay_cli.options import flag
from belay_cli.show.report import Shown
from belay_cli.show.sentences import lag
from belay_cli.show.styles import STRONG, WARNING
from belay_cli.show.tables import columns
from belay_cli.sweeping.grid import UNIFORM, Candidate
from belay_cli.sweeping.metric import Score
from belay_cli.sweeping.outcome import Outcome, Tried

_ROWS = 24  # of the table; the rest is in sweep.json
_HEIGHT, _WIDTH = 11, 60  # of the picture made of signs
_SIGNS = {"ema": "e", "belay": "b", "uniform": "u", "wsm": "w", "power": "p", "posthoc": "h", "polynomial": "y"}


@dataclass(frozen=True)
class SweepReport(Shown):
    """A sweep that is done.

    metric: its name; unit: of lags; output: its directory, empty if nothing is written; confirmed: the scores of the
    winner and of the last checkpoint by the second command. `evaluated`: how many evaluations ran this time.
    """

    series: str
    unit: str
    metric: str
    outcome: Outcome
    rules: Mapping[str, Mapping[str, Any]]
    output: str = ""
    best_output: str = ""
    seconds: float = 0.0
    evaluated: int = 0
    confirmed: tuple[Score | None, Score | None] | None = None
    warnings: tuple[str, ...] = ()
    pictures: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Candidate | None:
        """The winner."""
        return self.outcome.best.candidate if self.outcome.best else None

    def to_json(self) -> dict[str, Any]:
        """As sweep.json has it; docs/sweep.md describes it."""
        outcome, tied = self.outcome, {one.candidate.label for one in self.outcome.tied}
        best = outcome.best
        return {
            "command": "sweep",
            "version": __version__,
            "series": self.series,
            "unit": self.unit,
            "metric": self.metric,
            "higher_is_better": outcome.higher,
            "output": self.output,
            "seconds": round(self.seconds, 3),
            "evaluated": self.evaluated,
            "best": best.candidate.label if best else None,
            "best_output": self.best_output or None,
            "tied": [one.candidate.label for one in outcome.tied],
            "longest_memory": outcome.longest.candidate.label if outcome.longest else None,
            "edges": [{"option": flag(name), "try": value} for name, value in outcome.edges],
            "confirmed": self._confirmed(),
            "candidates": [self._candidate(one, tied) for one in (*outcome.ranked, *outcome.failed)],
            "pictures": list(self.pictures),
            "warnings": list(self.warnings),
        }

    def _confirmed(self) -> dict[str, Any] | None:
        if self.confirmed is None:
            return None
        return {name: _score(one) for name, one in zip(("best", "last"), self.confirmed, strict=True)}

    def _candidate(self, one: Tried, tied: set[str]) -> dict[str, Any]:
        return {
            "name": one.candidate.label,
            "rule": dict(self.rules[one.candidate.label]),
            "mean_lag": one.summary.mean_lag,
            "effective_checkpoints": one.summary.effective_checkpoints,
            **_score(one.score),
            "measured": dict(one.measured or {}),
            "tied": one.candidate.label in tied,
            "failure": one.failure or None,
            "seconds": None if one.seconds is None else round(one.seconds, 3),
        }

    def __str__(self) -> str:
        """The table, the picture and what they say."""
        return "\n".join(line.plain for line in sweep_lines(self, width=None, unicode=True))


def _score(score: Score | None) -> dict[str, float | None]:
    return {"score": score.value if score else None, "standard_error": score.error if score else None}


def sweep_lines(done: SweepReport, *, width: int | None, unicode: bool) -> Iterator[Text]:
    """The whole result as lines."""
    outcome = done.outcome
    if outcome.ranked:
        yield from table_lines(done, width=width, unicode=unicode)
    if len(outcome.ranked) > 2:
        yield Text()
        yield from chart_lines(outcome, done.metric, done.unit, width=width, unicode=unicode)
    yield Text()
    yield from map(Text, said(done))
    for failed in outcome.failed:
        text = f"failed: {failed.candidate.label} {failed.failure}"
        yield Text(words.printable(text), style=WARNING)


def table_lines(done: SweepReport, *, width: int | None, unicode: bool) -> Iterator[Text]:
    """A row for each candidate, the best first; the last checkpoint and the uniform average are always there."""
    ranked, tied = done.outcome.ranked, {id(one) for one in done.outcome.tied}
    shown = [one for place, one in enumerate(ranked) if place < _ROWS - 2 or one.candidate.is_baseline]
    errors = any(one.score is not None and one.score.error is not None for one in shown)
    heading = ["candidate", f"lag, {done.unit}s", "eff. number", _head(done.metric)]
    rows = [heading + (["±"] if errors else []) + [""]]
    for one in shown:
        assert one.score is not None  # noqa: S101 - it is ranked
        error = "" if one.score.error is None else _digits(one.score.error)
        mark = "best" if one is ranked[0] else "tied" if id(one) in tied else ""
        cells = [one.candidate.label, words.three_digits(one.summary.mean_lag)]
        cells += [f"{one.summary.effective_checkpoints:.1f}", _digits(one.score.value)]
        rows.append([*cells, *([error or "-"] if errors else []), mark])
    for number, line in enumerate(columns(rows, width=width, unicode=unicode)):
        if number == 1:
            line.stylize(STRONG)
        yield line
    if len(shown) < len(ranked):
        yield Text(f"  and {len(ranked) - len(shown)} more")


def _head(metric: str) -> str:
    if len(metric) <= 24:
        return metric
    short = "score" if " + " in metric or " × " in metric else metric.rpartition(" ")[2]  # without its task
    return short if len(short) <= 24 else short[:23] + "…"


def _digits(value: float) -> str:
    """Five digits, and as many behind the point for small numbers."""
    return f"{value:.5g}" if abs(value) >= 1e4 or 0 < abs(value) < 1e-3 else f"{value:.4f}"


def said(done: SweepReport) -> Iterator[str]:
    """What the table says, in sentences: the gain, the tie, the edge, the confirmation."""
    outcome, best = done.outcome, done.outcome.best
    if best is None or best.score is None:
        return
    last = outcome.last
    if last is not None and last.score is not None and last is not best:
        yield (
            f"best: {best.candidate.label}, {done.metric} {_digits(best.score.value)}; the last checkpoint has "
            f"{_digits(last.score.value)}"
        )
    elif last is best and len(outcome.ranked) > 1:
        yield "no average is better than the last checkpoint, as after a learning rate that fell to zero"
    yield from _of_ties(outcome)
    for name, value in outcome.edges:
        yield f"the best is at the edge of the grid: try {flag(name)} {value} too, or --refine 2"
    if done.confirmed is not None:
        yield _confirmation(done.confirmed)
    elif len(outcome.ranked) > 3:
        mend = ": --confirm" if done.output else ""
        yield f"chosen as the best of {len(outcome.ranked)} on this data, it does a little worse on other data{mend}"


def _of_ties(outcome: Outcome) -> Iterator[str]:
    best, longest = outcome.best, outcome.longest
    others = len(outcome.tied) - 1
    if not outcome.tied and len(outcome.ranked) > 1:
        yield "no standard error is known, so nothing is said of ties: --repeat 3, or an evaluation that states one"
    elif others and longest is not None:
        text = f"{words.plural(others, 'other')} within one standard error of it"
        text += f"; the longest memory of them has {longest.candidate.label}" if longest is not best else ""
        yield text
        if any(one.candidate.label == UNIFORM for one in outcome.tied) and longest is best:
            yield "the uniform average is among them, which has nothing to choose"


def _confirmation(confirmed: tuple[Score | None, Score | None]) -> str:
    best, last = (None if one is None else _digits(one.value) for one in confirmed)
    return f"confirmed on other data: {best or 'failed'}; the last checkpoint: {last or 'failed'}"


def chart_lines(outcome: Outcome, metric: str, unit: str, *, width: int | None, unicode: bool) -> Iterator[Text]:
    """The metric over the mean lag as a picture of signs, one for each method; the lag is on a logarithmic axis."""
    ranked = outcome.ranked
    values = [one.score.value for one in ranked if one.score is not None]
    low, high = min(values), max(values)
    columns_ = min(_WIDTH, (width or 80) - 14)
    lags = [one.summary.mean_lag for one in ranked]
    least = min((one for one in lags if one > 0), default=1.0) / 2
    place = _scale(math.log(least), math.log(max(max(lags), least) * 1.0001 + least * 1e-3), columns_ - 1)
    row = _scale(low, high, _HEIGHT - 1)
    canvas = [[" "] * columns_ for _ in range(_HEIGHT)]
    last = outcome.last
    if last is not None and last.score is not None:
        canvas[_HEIGHT - 1 - row(last.score.value)] = ["·" if unicode else "."] * columns_
    for one in reversed(ranked):
        assert one.score is not None  # noqa: S101 - it is ranked
        if one is last:
            continue
        x = place(math.log(max(one.summary.mean_lag, least)))
        canvas[_HEIGHT - 1 - row(one.score.value)][x] = _sign(one)
    for number, line in enumerate(canvas):
        label = _digits(high) if number == 0 else _digits(low) if number == _HEIGHT - 1 else ""
        yield Text(f"  {label:>9} {'│' if unicode else '|'}{''.join(line)}".rstrip())
    yield Text(f"  {'':>9} {'└' if unicode else '+'}{('─' if unicode else '-') * columns_}")
    ends = f"{lag(least * 2, unit)}", f"{lag(max(lags), unit)}"
    yield Text(f"  {'':>10} {ends[0]}{'mean lag'.center(columns_ - len(ends[0]) - len(ends[1]))}{ends[1]}")
    methods = dict.fromkeys(one.candidate.method for one in ranked if one is not last)
    better = "higher" if outcome.higher else "lower"
    yield Text(f"  {'':>10} {better} is better".rstrip())
    legend = "  ".join(f"{_SIGNS.get(method, method[0])} {method}" for method in methods)
    yield Text(f"  {'':>10} {legend}  {'···' if unicode else '...'} last checkpoint")


def _sign(one: Tried) -> str:
    return _SIGNS.get(one.candidate.method, one.candidate.method[0])


def _scale(low: float, high: float, steps: int) -> Any:
    """From a number between low and high to one of steps + 1 places."""
    span = high - low
    return lambda value: round((value - low) / span * steps) if span > 0 else 0


def curves(outcome: Outcome) -> dict[str, Sequence[tuple[float, float, float | None]]]:
    """By method, mean lag, score and standard error of its candidates, in the order of the lag."""
    found: dict[str, list[tuple[float, float, float | None]]] = {}
    for one in sorted(outcome.ranked, key=lambda one: one.summary.mean_lag):
        if one.score is not None and one is not outcome.last:
            found.setdefault(one.candidate.method, []).append((one.summary.mean_lag, *one.score))
    return dict(found)
