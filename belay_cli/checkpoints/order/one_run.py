"""Whether checkpoints that state steps are those of one run: by their names, and by the directories they lie in.

Two seeds, two models or two halves of an experiment have steps too, and together they would make a fine series.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from belay_cli.checkpoints.order import names
from belay_cli.checkpoints.order.pieces import Kind, Piece, Shape, pieces, shape, without_digits
from belay_cli.checkpoints.order.places import Place
from belay_cli.checkpoints.order.rounds import GIVEN
from belay_cli.errors import SeriesError
from belay_cli.storage.files import AnyPath

Levels = tuple[str, ...]  # the names on a path below what all paths have in common, its own first

_DEEPEST = 8  # levels that are looked at
_MOST_SHOWN = 4  # directories in a note
_LIGHTNING = re.compile(r"version_(\d+)")  # counts the times that a run was started, or started again
_RUN = re.compile(r"(?<![a-z])(run|exp|experiment|version|v)[-_.]?\d+", re.IGNORECASE)


class _Run(NamedTuple):
    """A directory with checkpoints of a run: the names on its path, and which of those in order lie in it."""

    path: AnyPath
    levels: Levels
    members: list[int]


def refuse_other_names(ordered: Sequence[Place]) -> None:
    """Raise SeriesError for a step that only a name states, on a path that is not named as those of the others.

    ordered: by step. Counts of other things and scores may differ; a fraction of an epoch, and a date, must not fall.
    """
    levels = _below_what_is_common(ordered)
    forms = [tuple(map(_form, path)) for path in levels]
    count = Counter(forms)
    if len(count) > 1:
        odd = min(range(len(forms)), key=lambda i: (count[forms[i]], -i))
        usual = max((i for i, form in enumerate(forms) if form != forms[odd]), key=lambda i: count[forms[i]])
        raise SeriesError(
            f"is not named as {_shown(levels[usual])} is, and only its name states a step",
            file=ordered[odd].path,
            hint=GIVEN,
        )
    for (one, its), (other, others) in pairwise(zip(ordered, levels, strict=True)):
        if any(a > b for a, b in zip(_moments(its), _moments(others), strict=False)):
            raise SeriesError(
                f"comes after {one.name} by its step, and before it by another number", file=other.path, hint=GIVEN
            )


def note_several_runs(ordered: Sequence[Place], *, counted: bool = False) -> list[str]:
    """A note about a run that goes on in another directory. Raises SeriesError unless it plainly does.

    ordered: by step, or counted: by the numbers in their names, which proved it.
    """
    if _in_one_directory(ordered):
        return []
    runs: dict[AnyPath, list[int]] = {}
    for i, run in enumerate(_runs(ordered)):
        runs.setdefault(run, []).append(i)
    if len(runs) < 2:
        return []
    levels = _below_what_is_common([Place(run, run.name, (run.name,)) for run in runs])
    found = [_Run(run, path, members) for (run, members), path in zip(runs.items(), levels, strict=True)]
    for before, after in pairwise(found):
        if what := _not_one_run(before, after, ordered, counted):
            raise SeriesError(what, file=ordered[after.members[0]].path, hint=GIVEN)
    told = [f"{run.path} ({_first_and_last(ordered, run.members)})" for run in found]
    more = f" and {len(told) - _MOST_SHOWN} more" if len(told) > _MOST_SHOWN else ""
    return [f"takes checkpoints of {len(found)} directories as one run: {', '.join(told[:_MOST_SHOWN])}{more}"]


def _first_and_last(ordered: Sequence[Place], members: Sequence[int]) -> str:
    first, last = ordered[members[0]], ordered[members[-1]]
    known = first.step is not None and last.step is not None
    return f"{first.step} to {last.step}" if known else f"{first.name} to {last.name}"


def _not_one_run(one: _Run, other: _Run, ordered: Sequence[Place], counted: bool) -> str:
    """What speaks against it that a run went on in another directory, in words; empty if nothing does."""
    if one.members[-1] > other.members[0]:
        return f"is one of {other.path}, whose {'numbers' if counted else 'steps'} are between those of {one.path}"
    its, others = one.levels, other.levels
    alike = list(map(without_digits, its)) == list(map(without_digits, others))
    if alike and _numbers(its) > _numbers(others):
        before, by = ordered[one.members[-1]].name, "its own number" if counted else "its step"
        return f"comes after {before} by {by}, and before it by its directory, {_shown(others)}"
    if alike and list(map(_of_run, its)) != list(map(_of_run, others)):
        return f"lies in {_shown(others)}, which differs from {_shown(its)} in a setting, and is no later part of it"
    goes_on = alike or its[-1].startswith(others[-1]) or others[-1].startswith(its[-1])
    if counted or goes_on or min(len(one.members), len(other.members)) > 1:
        return ""
    return f"lies in {_shown(others)}, and nothing says that it goes on from {_shown(its)}"


def _numbers(levels: Levels) -> list[int]:
    return [int(digits) for name in reversed(levels) for digits in re.findall(r"[0-9]{1,18}", name)]


def _of_run(name: str) -> Shape:
    return shape(_RUN.sub(r"\1", name))


def _runs(places: Sequence[Place]) -> list[AnyPath]:
    """The directory of the run that each belongs to."""
    levels = list(zip(*(place.names for place in places), strict=True))
    varies = next((i for i, level in enumerate(levels) if len(set(level)) > 1), 0)
    return [_above(_lexical(place.path), max(varies, _says_it(place)) + 1) for place in places]


def _says_it(place: Place) -> int:
    """The highest level of the names that tells which checkpoint of its run it is: its step, its epoch, its number."""
    found = [i for i, name in enumerate(place.names) if _tells(name, place.step)]
    return max(found, default=0)


def _tells(name: str, step: int | None) -> bool:
    if names.rounds_in_name(name):
        return True
    if step is None:
        return name.isdecimal() or names.names_a_checkpoint(name)
    return names.step_in_name(name) == step or (name.isdecimal() and int(name) == step)


def _below_what_is_common(places: Sequence[Place]) -> list[Levels]:
    """Of each path the names below the directory that all have in common, its own first: that without its suffix."""
    levels = [[place.names[0]] for place in places]
    if _in_one_directory(places):
        return list(map(tuple, levels))
    at = [_lexical(place.path) for place in places]
    for _ in range(_DEEPEST):
        at = [path.parent for path in at]
        if len(set(at)) == 1:
            break
        for path, found in zip(at, levels, strict=True):
            found.append(path.name)
    return list(map(tuple, levels))


def _in_one_directory(places: Sequence[Place]) -> bool:
    """Whether paths differ in their last names alone: the usual case, of a thousand files too."""
    return len({place.path.parent for place in places}) == 1 and not any(p.path.name in ("", "..") for p in places)


def _lexical(path: AnyPath) -> AnyPath:
    """A path by which directories can be told apart, without `..`; its own name stays, if it is a link."""
    whole = path.absolute()
    if path.name in ("", ".."):
        return whole.resolve()
    return whole.parent.resolve() / whole.name if "/../" in str(whole) else whole


def _above(path: AnyPath, levels: int) -> AnyPath:
    for _ in range(levels):
        path = path.parent
    return path


def _shown(levels: Levels) -> str:
    return "/".join(reversed(levels))


def _form(name: str) -> Shape:
    return shape(_LIGHTNING.sub(r"\1", name)) if _LIGHTNING.fullmatch(name) else shape(name)


def _moments(levels: Levels) -> list[float]:
    """What must not fall from one checkpoint to the next: dates, fractions of an epoch, the numbers before the step."""
    start = Piece(Kind.TEXT, "")
    pairs = [pair for name in levels for pair in pairwise((start, *pieces(name)))]
    moments = [moment for before, piece in pairs if (moment := _moment(before, piece)) is not None]
    return moments + [float(number) for name in levels for number in names.numbers_before_step(name)]


def _moment(before: Piece, piece: Piece) -> float | None:
    """A date, or a fraction of an epoch, as a number that grows with time."""
    if piece.kind is Kind.DATE:
        return piece.value
    plain = piece.kind is Kind.MEASURE and piece.text.replace(".", "", 1).isdigit()
    return float(piece.text) if plain and names.is_round_word(before.text) else None
