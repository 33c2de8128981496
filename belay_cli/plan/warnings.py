"""What a person should know before trusting an average, each with the option that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.order.proof import falling
from belay_cli.formats.text import listed
from belay_cli.plan.adapters import apart_warning
from belay_cli.plan.layout import PlannedTensor
from belay_cli.plan.policies import AVERAGE, DELTA
from belay_cli.plan.statistics import statistics_warnings
from belay_cli.rules import Rule
from belay_cli.rules.dynamics import Float64Array
from belay_cli.rules.half_life import mean_spacing
from belay_cli.storage.remote import content_id
from belay_cli.storage.remote.path import RemotePath

NEARLY_ONE = 0.95  # of the weight, on one checkpoint
LEANING = 0.2  # of the weight, on the first
SHORT = 0.25  # checkpoints, as a half-life


def rule_warnings(series: Series, rule: Rule, c: Float64Array) -> Iterator[str]:
    """About the coefficients c, [T]."""
    count = len(series.checkpoints)
    if count == 1:
        yield "one checkpoint only: the average is a copy of it"
        return
    spacing = mean_spacing(series.ticks)
    if rule.unit == "step" and rule.half_life < SHORT * spacing:
        yield (
            f"the half-life, {rule.half_life:.4g} steps, is {rule.half_life / spacing:.2g} of the distance between "
            "checkpoints: what lies between them is guessed; a longer one: --half-life 2checkpoints"
        )
    heaviest = int(c.argmax())
    if c[heaviest] > NEARLY_ONE:
        name = series.checkpoints[heaviest].name
        yield f"the average is nearly {name} alone ({c[heaviest]:.1%}); {_mend(rule, heaviest == 0)}"
    elif c[0] > LEANING and c[0] > 2 / count:
        name = series.checkpoints[0].name
        yield f"the average leans on the first checkpoint, {name} ({c[0]:.1%}); {_mend(rule, True)}"
    feedback, decay = rule.dynamics.feedback, rule.dynamics.decay
    if feedback > 0 and rule.dynamics.curvature == 0:
        stays = feedback * decay / (1 + feedback * decay)
        yield (
            f"without curvature {stays:.0%} of the weight stays on the first checkpoint however long the series is; "
            "let go of it with --curvature 1"
        )


def _mend(rule: Rule, too_long: bool) -> str:
    if not too_long:
        return "take a longer --half-life, such as 3checkpoints"
    if rule.dynamics.feedback > 0:
        return "take a shorter --half-life or a larger --curvature"
    return "take a shorter --half-life" + ("" if rule.debias or rule.dynamics.inertia else ", or --debias")


def tensor_warnings(series: Series, tensors: list[PlannedTensor]) -> Iterator[str]:
    """About what is averaged."""
    averaged = [tensor.name for tensor in tensors if tensor.action == AVERAGE]
    if not averaged and not any(tensor.action == DELTA for tensor in tensors):
        yield "no tensor is averaged: the output is the last checkpoint"
    yield from statistics_warnings(tensors)
    if not any(tensor.action == DELTA for tensor in tensors) and (apart := apart_warning(series.last, averaged)):
        yield apart


def order_warnings(series: Series) -> Iterator[str]:
    """About an order that was given, where the numbers say another."""
    if series.selection.order == "given":
        yield from falling(series.checkpoints)


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
        marks.append(" ".join(map(str, known)) if whole else checkpoint.name)
    yield from identical_warnings(series, marks)


def identical_warnings(series: Series, marks: Sequence[str]) -> Iterator[str]:
    """About checkpoints that hold the same weights: usually one of them was saved or uploaded wrongly.

    marks: a text for each checkpoint, by which it is known.
    """
    first: dict[str, str] = {}
    for checkpoint, mark in zip(series.checkpoints, marks, strict=True):
        other = first.setdefault(mark, checkpoint.name)
        if other != checkpoint.name:
            yield f"{checkpoint.name} looks the same as {other}: was it saved or downloaded wrongly?"
