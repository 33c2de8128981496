"""Whether checkpoints that state steps are those of one run: by their names, and by the directories they lie in.

Two seeds, two models or two halves of an experiment have steps too, and together they would make a fine series.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from belay_cli.checkpoints.order import names
from belay_cli.checkpoints.order.pieces import Kind, Piece, pieces
from belay_cli.checkpoints.order.places import Place
from belay_cli.errors import SeriesError
from belay_cli.storage.files import AnyPath

_GIVEN = "if they are one run, give the checkpoints in order, with --order given"


def refuse_other_names(ordered: Sequence[Place]) -> None:
    """Raise SeriesError for a step that only a name states, in a name that is not like the others'.

    ordered: by step. Counts of other things and scores may differ; a fraction of an epoch, and a date, must not fall.
    """
    found: list[tuple[Place, tuple[str, ...]]] = []
    for place in ordered:
        level = next((i for i, name in enumerate(place.names) if names.step_in_name(name) is not None), None)
        if level is not None:
            found.append((place, place.names[: level + 2]))  # and the directory above it
    for (one, its), (other, others) in pairwise(found):
        if len(its) != len(others) or any(_form(a) != _form(b) for a, b in zip(its, others, strict=True)):
            raise SeriesError(
                f"is not named as {_own(its)} is, and only its name states a step", file=other.path, hint=_GIVEN
            )
        if any(a > b for a, b in zip(_moments(its), _moments(others), strict=False)):
            raise SeriesError(
                f"comes after {one.name} by its step, and before it by another number", file=other.path, hint=_GIVEN
            )


def _own(levels: Sequence[str]) -> str:
    return "/".join(reversed(levels))


def _form(name: str) -> list[tuple[Kind, str]]:
    """What names of one series have in common: their text, and the size of the model, which stands before the step."""
    found = pieces(name)
    numbers = [i for i, piece in enumerate(found) if piece.kind is Kind.NUMBER]
    first = numbers[0] if numbers else len(found)
    return [
        (piece.kind, piece.text if piece.kind is Kind.TEXT or (piece.kind is Kind.SIZE and i < first) else "")
        for i, piece in enumerate(found)
    ]


def _moments(levels: Sequence[str]) -> list[float]:
    start = Piece(Kind.TEXT, "")
    pairs = [pair for name in levels for pair in pairwise((start, *pieces(name)))]
    return [moment for before, piece in pairs if (moment := _moment(before, piece)) is not None]


def _moment(before: Piece, piece: Piece) -> float | None:
    """A date, or a fraction of an epoch, as a number that grows with time."""
    if piece.kind is Kind.DATE:
        return piece.value
    plain = piece.kind is Kind.MEASURE and piece.text.replace(".", "", 1).isdigit()
    return float(piece.text) if plain and names.is_round_word(before.text) else None


def note_several_runs(ordered: Sequence[Place]) -> list[str]:
    """A note about a run that goes on in another directory. Raises SeriesError if both have steps of one time.

    ordered: by step.
    """
    runs: dict[AnyPath, list[Place]] = {}
    for place, run in zip(ordered, _runs(ordered), strict=True):
        runs.setdefault(run, []).append(place)
    if len(runs) < 2 or len(runs) == len(ordered):
        return []
    for (_, earlier), (run, later) in pairwise(runs.items()):
        if (earlier[-1].step or 0) >= (later[0].step or 0):
            raise SeriesError(
                f"lies among checkpoints of {run}, whose steps are between those of {earlier[0].path.parent}",
                file=later[0].path,
                hint=f"give the checkpoints of one run; {_GIVEN}",
            )
    told = [f"{run} ({found[0].step} to {found[-1].step})" for run, found in runs.items()]
    return [f"takes checkpoints of {len(runs)} directories as one run: {', '.join(told)}"]


def _runs(places: Sequence[Place]) -> list[AnyPath]:
    """The directory of the run that each belongs to: the one above the first name that is not the same everywhere."""
    levels = list(zip(*(place.names for place in places), strict=True))
    varies = next((i for i, level in enumerate(levels) if len(set(level)) > 1), 0)
    return [_above(place.path.absolute(), varies + 1) for place in places]


def _above(path: AnyPath, levels: int) -> AnyPath:
    for _ in range(levels):
        path = path.parent
    return path
