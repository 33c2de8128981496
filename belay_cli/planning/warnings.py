"""What a person should know before trusting an average, each with the option that mends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.learning_rate import NEAR_ZERO, of_series
from belay_cli.checkpoints.order.proof import falling
from belay_cli.formats.text import listed
from belay_cli.planning.adapters import apart_warning
from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.policies import AVERAGE, DELTA
from belay_cli.planning.statistics import statistics_warnings
from belay_cli.rules import Float64Array, Rule
from belay_cli.storage.remote import content_id
from belay_cli.storage.remote.path import RemotePath

NEARLY_ONE = 0.95  # of the weight, on one checkpoint
LEANING = 0.2  # of the weight, on the first


def rule_warnings(series: Series, rule: Rule, c: Float64Array) -> Iterator[str]:
    """About the coefficients c, [T]."""
    count = len(c)
    if len(series.checkpoints) == 1:
        yield "one checkpoint only: the average is a copy of it"
        return
    heaviest, total = int(abs(c).argmax()), float(abs(c).sum())
    why = rule.leans_on_last(series.ticks, series.unit, c) if heaviest == count - 1 else None
    if abs(c[heaviest]) > NEARLY_ONE * total and why is None:
        name, mend = series.checkpoints[heaviest].name, rule.mend(series.unit, leans_on_first=heaviest == 0)
        yield f"the average is nearly {name} alone ({c[heaviest]:.1%}); {mend}"
    elif abs(c[0]) > LEANING * total and abs(c[0]) > 2 * total / count and not rule.chosen_by_name:
        name, mend = series.checkpoints[0].name, rule.mend(series.unit, leans_on_first=True)
        yield f"the average leans on the first checkpoint, {name} ({c[0]:.1%}); {mend}"
    if why is not None:
        yield why
    yield from rule.warnings(series.ticks, series.unit, c)


def tensor_warnings(series: Series, tensors: list[PlannedTensor]) -> Iterator[str]:
    """About what is averaged."""
    averaged = [tensor.name for tensor in tensors if tensor.action == AVERAGE]
    if not averaged and not any(tensor.action == DELTA for tensor in tensors):
        yield "no tensor is averaged: the output is the last checkpoint"
    yield from statistics_warnings(tensors)
    if not any(tensor.action == DELTA for tensor in tensors) and (apart := apart_warning(series.last, averaged)):
        yield apart


def order_warnings(series: Series, rules: Iterable[Rule]) -> Iterator[str]:
    """About an order that was given, where the numbers say another, unless the rules ask for none."""
    if series.selection.order == "given" and any(rule.ordered for rule in rules):
        yield from falling(series.checkpoints)


def learning_rate_warnings(series: Series) -> Iterator[str]:
    """About a learning rate that has fallen so far that the checkpoints have little noise to average away."""
    rate = of_series(checkpoint.learning_rate for checkpoint in series.checkpoints)
    if rate and len(series.checkpoints) > 1 and rate.last < NEAR_ZERO * rate.largest:
        yield (
            f"averaging will hardly help: the learning rate has fallen to {rate.last:.3g} from {rate.largest:.3g} "
            f"({rate.where}), so the last checkpoints are nearly one; average those of a higher rate: --to-step"
        )


def left_out_warnings(series: Series) -> Iterator[str]:
    """About weights that lie beside those that are averaged."""
    if series.left_out:
        yield f"{series.last.name} has other weights, which are in no average: {listed(series.left_out)}"


def differing_notes(names: Sequence[str]) -> Iterator[str]:
    """About integers that are not the same everywhere: they cannot be averaged, so the last ones are taken."""
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"{shown}: integers that differ between checkpoints; those of the last one are taken"


def served_twice(series: Series) -> Iterator[str]:
    """The same about checkpoints whose server knows what they hold, before anything is read of them."""
    marks = []
    for checkpoint in series.checkpoints:
        known = [content_id(file.path) for file in checkpoint.files if isinstance(file.path, RemotePath)]
        whole = len(known) == len(checkpoint.files) and None not in known
        marks.append(" ".join(map(str, known)) if whole else str(checkpoint.path))
    yield from identical_warnings(series, marks)


def identical_warnings(series: Series, marks: Sequence[str]) -> Iterator[str]:
    """About checkpoints that hold the same weights: usually one of them was saved or uploaded wrongly.

    marks: a text for each checkpoint, by which it is known.
    """
    alike: dict[str, list[str]] = {}
    for checkpoint, mark in zip(series.checkpoints, marks, strict=True):
        alike.setdefault(mark, []).append(checkpoint.name)
    for first, *others in alike.values():
        if len(others) == 1:
            yield f"{others[0]} looks the same as {first}: was it saved or downloaded wrongly?"
        elif others:
            yield f"{listed(others)} look the same as {first}: were they saved or downloaded wrongly?"
