"""The order of a series: proved by steps or by names, or refused.

Without steps, the names must be of one template in which one integer varies, or several that agree. Which numbers
count is said in `names`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.order import names
from belay_cli.checkpoints.order.one_run import note_several_runs, refuse_other_names
from belay_cli.checkpoints.order.parts import refuse_parts_by_number
from belay_cli.checkpoints.order.pieces import Kind, Piece, amounts, has_number, pieces, shape, without_digits
from belay_cli.checkpoints.order.places import Place, place_of, places_of
from belay_cli.checkpoints.order.rounds import GIVEN, by_rounds, steps_restart
from belay_cli.checkpoints.order.twins import merge_twins, same_content
from belay_cli.checkpoints.selection import Selection
from belay_cli.errors import SeriesError
from belay_cli.storage.files import AnyPath

_MOST_SHOWN = 4  # names in a note


def order_checkpoints(
    checkpoints: list[Checkpoint], selection: Selection, notes: list[str]
) -> tuple[list[Checkpoint], str]:
    """In order, with the unit of their ticks. Raises SeriesError if the order is not sure, or two are at one place."""
    places = places_of(checkpoints)
    refuse_parts_by_number(places)
    if selection.order == "given" or len(checkpoints) < 2:
        return checkpoints, _unit(checkpoints, selection)
    if _count_in_each_epoch(checkpoints):
        notes.append(f"every checkpoint records step {checkpoints[0].step}, which is no step of the run")
        checkpoints = [replace(checkpoint, step=None) for checkpoint in checkpoints]
        places = places_of(checkpoints)
    without = next((checkpoint for checkpoint in checkpoints if checkpoint.step is None), None)
    if without is None:
        return _by_step(checkpoints, places, selection, notes)
    if selection.unit == "step":
        raise SeriesError("states no step", file=without.path, hint="count in checkpoints: --unit checkpoint")
    order = in_order(places)
    ordered = [checkpoints[i] for i in order]
    notes += note_several_runs([places[i] for i in order], counted=True)
    if selection.unit == "auto":
        said = f"{without.name} states no step, as step_500 or checkpoint-500 do: checkpoints are counted"
        notes.append(f"{said}, in this order: {_shown(ordered)}")
    return ordered, "checkpoint"


def _count_in_each_epoch(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether steps that are recorded under a common name are the same for checkpoints that are not."""
    records = [checkpoint.weights.step for checkpoint in checkpoints]
    if not all(record and record.loosely for record in records) or len({c.step for c in checkpoints}) > 1:
        return False
    return not any(same_content(checkpoints[0], other) for other in checkpoints[1:])


def within(paths: Sequence[AnyPath], selection: Selection) -> list[AnyPath]:
    """Without those that state a step outside of what is selected, since what is left out need not be whole."""
    low, high = selection.from_step, selection.to_step
    if low is None and high is None:
        return list(paths)
    steps = {path: _named_step(path) for path in paths}
    known = sorted((step, place_of(path, is_file=not path.is_dir()).names) for path, step in steps.items() if step)
    if steps_restart([(levels, step) for step, levels in known]):
        return list(paths)
    outside = {
        p
        for p, step in steps.items()
        if step is not None and not (low or 0) <= step <= (step if high is None else high)
    }
    return [path for path in paths if path not in outside]


def _named_step(path: AnyPath) -> int | None:
    is_file = not path.is_dir()
    return names.step_in_name(names.naming(*place_of(path, is_file=is_file).names, is_file=is_file))


def _unit(checkpoints: list[Checkpoint], selection: Selection) -> str:
    if selection.unit == "checkpoint" or selection.order == "given":
        return "checkpoint"
    for checkpoint in checkpoints:
        if checkpoint.step is None and selection.unit == "step":
            raise SeriesError("states no step", file=checkpoint.path, hint="count in checkpoints: --unit checkpoint")
    return "step" if all(checkpoint.step is not None for checkpoint in checkpoints) else "checkpoint"


def _shown(ordered: Sequence[Checkpoint]) -> str:
    found = [checkpoint.name for checkpoint in ordered]
    return ", ".join(found) if len(found) <= _MOST_SHOWN else f"{', '.join(found[:3])} … {found[-1]}"


def _by_step(
    checkpoints: list[Checkpoint], places: Sequence[Place], selection: Selection, notes: list[str]
) -> tuple[list[Checkpoint], str]:
    _refuse_two_spellings(places)
    # Of twins at one step, the one that says the step in its name stays: last.ckpt goes.
    key = [(place.step or 0, names.step_in_name(place.names[0]) is None) for place in places]
    order = sorted(range(len(places)), key=key.__getitem__)
    ordered, levels = [checkpoints[i] for i in order], [places[i].names for i in order]
    if steps_restart([(path, checkpoint.step or 0) for path, checkpoint in zip(levels, ordered, strict=True)]):
        ordered = by_rounds(ordered, levels, selection.unit, notes)
        _refuse_other_runs(ordered, checkpoints, places)
        notes.append(f"steps start again in each epoch: checkpoints are counted, in this order: {_shown(ordered)}")
        return ordered, "checkpoint"
    ordered = merge_twins(ordered, notes)
    notes += note_several_runs(_refuse_other_runs(ordered, checkpoints, places))
    return ordered, "checkpoint" if selection.unit == "checkpoint" else "step"


def _refuse_other_runs(
    ordered: Sequence[Checkpoint], checkpoints: Sequence[Checkpoint], places: Sequence[Place]
) -> list[Place]:
    """The places of those in order. Raises SeriesError for one of another series by its name."""
    known = {checkpoint.path: place for checkpoint, place in zip(checkpoints, places, strict=True)}
    refuse_other_names([known[checkpoint.path] for checkpoint in ordered if not checkpoint.step_is_recorded])
    return [known[checkpoint.path] for checkpoint in ordered]


def _refuse_two_spellings(places: Sequence[Place]) -> None:
    """`iter_50_512` beside `iter_1000_512`: what looks like thousands is none, or there would be `1_000`.

    Nor is it where all have the same last three digits, which are not zeros: `step_100_512`, `step_200_512`.
    """
    ends = {names.last_thousands(place.names[0]) for place in places}
    if len(places) > 1 and len(ends) == 1 and not ends <= {None, "000"}:
        raise SeriesError(
            f"may state the step with a `_` between its digits or not, as all end in _{next(iter(ends))}",
            file=places[0].path,
            hint=GIVEN,
        )
    spelled = {names.groups_digits(place.names[0]): place for place in places}
    if True in spelled and False in spelled:
        raise SeriesError(
            f"may state the step with a `_` between its digits or not: {spelled[False].name} has none",
            file=spelled[True].path,
            hint=GIVEN,
        )


def in_order(places: Sequence[Place]) -> list[int]:
    """The indices of places in their order by names. Raises SeriesError if these do not prove one."""
    rows = _counters(places)
    order = sorted(range(len(places)), key=rows.__getitem__)
    for before, after in pairwise(order):
        if rows[before] == rows[after]:
            raise SeriesError(
                f"has the same number {rows[after][-1]} as {places[before].path}", file=places[after].path, hint=GIVEN
            )
        if _contradict(places[before], rows[before], places[after], rows[after]):
            raise SeriesError(
                f"comes after {places[before].name} by one number, and before it by another",
                file=places[after].path,
                hint=GIVEN,
            )
    _refuse_falling_steps([places[i] for i in order])
    return order


def _contradict(before: Place, row: Sequence[int], after: Place, next_row: Sequence[int]) -> bool:
    if any(a > b for a, b in zip(row, next_row, strict=True)):
        return True
    dates = [amounts(place.names[0], (Kind.DATE,)) for place in (before, after)]
    return any(a > b for a, b in zip(*dates, strict=False))


def _refuse_falling_steps(ordered: Sequence[Place]) -> None:
    known = [place for place in ordered if place.step is not None]
    for before, after in pairwise(known):
        if (before.step or 0) > (after.step or 0):
            raise SeriesError(
                f"comes after {before.name} by its name, and before it by its step, {after.step}",
                file=after.path,
                hint=GIVEN,
            )


def _counters(places: Sequence[Place]) -> list[tuple[int, ...]]:
    """Of each place the integers that are not the same everywhere, by the template that the names are of.

    Where their own names are the same, those of the directories above them tell the checkpoints apart.
    """
    rows: list[tuple[int, ...]] = [()] * len(places)
    kinds: set[str] = set()
    differ = False
    for level in zip(*(place.names for place in places), strict=True):
        if len(set(level)) == 1:
            continue
        if len(set(map(shape, level))) > 1:
            if not differ:
                raise _not_alike(places, level)
            if len(set(map(without_digits, level))) == 1:
                raise _other_setting(places, level)
            break
        columns = [column for column in zip(*map(pieces, level), strict=True) if len({c.text for c in column}) > 1]
        if differ and any(column[0].kind is Kind.SIZE for column in columns):
            raise _other_setting(places, level)
        differ = True
        kinds |= set(map(_kind, columns))
        rows = [row + tuple(_varying(columns, i)) for i, row in enumerate(rows)]
    if not any(rows):
        raise _nothing_counts(places, kinds)
    return rows


def _varying(columns: Sequence[Sequence[Piece]], i: int) -> Iterator[int]:
    for column in columns:
        if column[0].kind is Kind.NUMBER:
            yield column[i].value or 0


def _not_alike(places: Sequence[Place], level: Sequence[str]) -> SeriesError:
    """The error about a name that is not like the others, which are the most; one without a number first."""
    count = Counter(map(shape, level))
    odd = min(range(len(level)), key=lambda i: (count[shape(level[i])], has_number(level[i])))
    others = [i for i in range(len(level)) if shape(level[i]) != shape(level[odd])]
    usual = max(others, key=lambda i: (_differ_in_digits(level[i], level[odd]), count[shape(level[i])]))
    message = "has no step and no integer in its name"
    if _differ_in_digits(level[usual], level[odd]):
        what = "the number is a setting, a size or a version"
        message = f"differs from {level[usual]}: {what}" if has_number(level[odd]) else f"{message} that counts: {what}"
    elif has_number(level[odd]):
        message = f"is not named as {places[usual].name} is"
    return SeriesError(f"{message}, so its place in the series is unknown", file=places[odd].path, hint=GIVEN)


def _other_setting(places: Sequence[Place], level: Sequence[str]) -> SeriesError:
    """The error about a directory above that is one of another setting, size or version."""
    odd = next(i for i, name in enumerate(level) if name != level[0])
    what = f"lies in {level[odd]}, which differs from {level[0]} in a setting, a size or a version"
    return SeriesError(f"{what}, so its place in the series is unknown", file=places[odd].path, hint=GIVEN)


def _differ_in_digits(one: str, other: str) -> bool:
    return one != other and without_digits(one) == without_digits(other)


def _nothing_counts(places: Sequence[Place], kinds: set[str]) -> SeriesError:
    what = " and a ".join(sorted(kinds))
    told = f"differs from {places[0].name} in a {what} only, which does not count checkpoints"
    return SeriesError(
        told if what else f"is named as {places[0].name} is, and neither states a step",
        file=places[1].path,
        hint=GIVEN,
    )


def _kind(column: Sequence[Piece]) -> str:
    """What the pieces at one place of the names are, in words."""
    scores = column[0].kind is Kind.MEASURE and all(piece.text.isdigit() for piece in column)
    return "score" if scores else column[0].kind.value


def falling(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """A sentence about a series in the order that was given, where the numbers in the names or the steps fall.

    Each is compared with the last one before it that has a step too, or a name of the same template.
    """
    last: dict[object, Place] = {}
    for place in places_of(checkpoints):
        keys = [tuple(map(shape, place.names)), *([None] if place.step is not None else [])]
        for before in [last[key] for key in keys if key in last]:
            if _falls(before, place):
                sorted_so = ", as a shell sorts names" if before.name < place.name else ""
                more = "; without --order given, belay orders by number what it can" if sorted_so else ""
                yield f"the numbers fall: {before.name} is given before {place.name}{sorted_so}{more}"
                return
        last.update(dict.fromkeys(keys, place))


def _falls(before: Place, after: Place) -> bool:
    if before.step is not None and after.step is not None:
        return before.step > after.step and not steps_restart([(p.names, p.step or 0) for p in (after, before)])
    for one, other in zip(before.names, after.names, strict=True):
        if one != other:
            return _amounts_of(one, other) > _amounts_of(other, one)
    return False


def _amounts_of(name: str, other: str) -> list[Decimal]:
    """The integers of a name; where another has the same ones, its dates, decimals and sizes."""
    if amounts(name, (Kind.NUMBER,)) != amounts(other, (Kind.NUMBER,)):
        return amounts(name, (Kind.NUMBER,))
    return amounts(name, (Kind.DATE, Kind.MEASURE, Kind.SIZE))
