"""What an average is, in Markdown: for the model card, and for the page of a CI job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from belay_cli import words
from belay_cli.record import Record
from belay_cli.show import markdown as md
from belay_cli.show import sentences

_ROWS = 40  # of a table; more checkpoints share rows
_BAR = 40  # columns of the heaviest row


def overview(record: Record) -> list[str]:
    """What the weights are, in lines that need neither a picture nor a repository."""
    return [what(record), "", *bars(record), "", lag(record)]


def what(record: Record) -> str:
    """In a sentence or two: of what it is an average, by which rule, and how it was computed."""
    count, (first, last) = len(record.names), (record.ticks[0], record.ticks[-1])
    steps = (f", steps {first} to {last}" if count > 1 else f", step {first}") if record.unit == "step" else ""
    rule = f"{record.rule.phrase}; {record.rule.sentence(record.ticks, record.unit)}".removesuffix("; ")
    return (
        f"These weights are an average of {words.plural(count, 'checkpoint')} of one training run{steps}: {rule}. They "
        "were computed after training, from the saved checkpoints: every averaged tensor is the sum of the "
        "checkpoints' tensors, each times its weight below." + record.rule.credit()
    )


def choice(chosen: Mapping[str, Any]) -> str:
    """How a sweep came to choose the average."""
    number = words.number
    error = f" ± {number(chosen['standard_error'])}" if "standard_error" in chosen else ""
    which = "higher" if chosen.get("higher_is_better") else "lower"
    text = (
        f"It was chosen by an evaluation, as the best of {chosen.get('candidates')} candidates: "
        f"{md.code(str(chosen.get('metric')))} {number(chosen['score'])}{error} ({which} is better)"
    )
    text += f"; the last checkpoint has {number(chosen['last_score'])}." if "last_score" in chosen else "."
    if "confirmed" not in chosen:
        return text + " The best of many on some data does a little worse on other data."
    last = f", and {number(chosen['last_confirmed'])} at the last checkpoint" if "last_confirmed" in chosen else ""
    return text + f" On data that chose nothing it is {number(chosen['confirmed'])}{last}."


def lag(record: Record) -> str:
    """How far it lags behind, and how many checkpoints it is worth."""
    summary = record.summary
    return (
        f"The average lags {sentences.lag(summary.mean_lag, record.unit)} behind the last checkpoint; "
        f"its {sentences.EFFECTIVE} is {summary.effective_checkpoints:.1f}, if their noise is independent."
    )


def rows(record: Record) -> list[tuple[int, int]]:
    """First and last checkpoint of each row: one each, or as many as together weigh a fortieth of everything."""
    count = len(record.names)
    if count <= _ROWS:
        return [(i, i) for i in range(count)]
    found, first, weight = [], 0, 0.0
    share = sum(map(abs, record.coefficients)) / _ROWS
    for i, c in enumerate(record.coefficients):
        if abs(c) >= share and first < i:  # a heavy one stands alone
            found.append((first, i - 1))
            first, weight = i, 0.0
        weight += abs(c)
        if weight >= share or i == count - 1:
            found.append((first, i))
            first, weight = i + 1, 0.0
    return found


def span(values: Sequence[Any], first: int, last: int) -> str:
    """Of some values, one or the first and the last."""
    return str(values[first]) if first == last else f"{values[first]} … {values[last]}"


def percent(weight: float) -> str:
    """A weight to a tenth of a percent."""
    return f"{round(100 * weight, 1) + 0.0:.1f}%"  # + 0.0: no minus before a zero


def bars(record: Record) -> list[str]:
    """The weight of every row as bars, in a code block."""
    groups = rows(record)
    labels = [span(record.ticks if record.unit == "step" else record.names, *row) for row in groups]
    weights = [sum(record.coefficients[first : last + 1]) for first, last in groups]
    shown = [words.printable(label if len(label) <= 36 else "…" + label[-35:]) for label in labels]
    width, heaviest = max(map(len, shown)), max(map(abs, weights))
    lines = [
        f"{label:<{width}}  {percent(weight):>6}  {'░█'[weight > 0] * round(abs(weight) / heaviest * _BAR)}".rstrip()
        for label, weight in zip(shown, weights, strict=True)
    ]
    return md.block(lines)
