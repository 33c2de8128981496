"""Steps that start again in each epoch, stage or phase: they order checkpoints only together with its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.order import names
from belay_cli.checkpoints.order.twins import merge_twins
from belay_cli.errors import SeriesError

GIVEN = "give the checkpoints in order, with --order given"

Levels = Sequence[str]  # the names on a checkpoint's path, its own first


def rounds_of(levels: Levels) -> tuple[int, ...]:
    """The numbers of epochs, stages and phases on a path, the outermost first."""
    return tuple(number for name in reversed(levels) for number in names.rounds_in_name(name))


def steps_restart(ordered: Sequence[tuple[Levels, int]]) -> bool:
    """Whether, in the order of their steps, checkpoints go back to an earlier epoch, or share a step between two.

    Names that do not all state as many numbers say nothing.
    """
    rounds = [rounds_of(levels) for levels, _ in ordered]
    if not all(rounds) or len(set(map(len, rounds))) > 1:
        return False
    steps = [step for _, step in ordered]
    pairs = zip(pairwise(rounds), pairwise(steps), strict=True)
    return any(after < before or (after != before and step == last) for (before, after), (last, step) in pairs)


def by_rounds(
    checkpoints: Sequence[Checkpoint], levels: Sequence[Levels], unit: str, notes: list[str]
) -> list[Checkpoint]:
    """In the order of epoch and step, without their steps, which measure no time. Raises SeriesError if unsure."""
    for checkpoint, path in zip(checkpoints, levels, strict=True):
        if checkpoint.step not in map(names.step_in_name, path):
            raise SeriesError(
                f"is at step {checkpoint.step}, which another epoch in the names has too, or has passed",
                file=checkpoint.path,
                hint=GIVEN,
            )
    if unit == "step":
        raise SeriesError(
            "states a step that starts again in each epoch",
            file=checkpoints[-1].path,
            hint="count in checkpoints: --unit checkpoint",
        )
    rounds = {id(c): rounds_of(path) for c, path in zip(checkpoints, levels, strict=True)}
    place = lambda c: (rounds[id(c)], c.step)  # noqa: E731
    ordered = merge_twins(sorted(checkpoints, key=place), notes, place)
    return [replace(checkpoint, step=None) for checkpoint in ordered]
