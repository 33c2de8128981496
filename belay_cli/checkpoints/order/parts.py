"""Parts of one checkpoint among those given: a rank's number in their names tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from belay_cli.checkpoints.order.pieces import Kind, Piece, pieces, shape
from belay_cli.checkpoints.order.places import Place
from belay_cli.errors import SeriesError


def refuse_parts_by_number(places: Sequence[Place]) -> None:
    """Raise SeriesError where a rank's number tells two apart: each is a part of a checkpoint, and none is one."""
    seen: dict[object, tuple[list[int], Place]] = {}
    for place in places:
        for key, ranks in _ranked(place):
            first, other = seen.setdefault(key, (ranks, place))
            if first != ranks:
                raise SeriesError(
                    f"is a part of a checkpoint, as {other.name} is: a rank's number tells them apart",
                    file=place.path,
                    hint="put the parts together first, with the converter of the training code",
                )


def _ranked(place: Place) -> Iterator[tuple[object, list[int]]]:
    """The ranks in a place's own name by its template, and those on its path by all that is no rank in it."""
    found = [pieces(name) for name in place.names]
    own, path = _numbers(found[:1]), _numbers(found)
    if own:
        yield shape(place.names[0]), own
    if path:
        yield tuple(tuple("" if piece.kind is Kind.RANK else piece.text for piece in name) for name in found), path


def _numbers(found: Sequence[Sequence[Piece]]) -> list[int]:
    return [piece.value for name in found for piece in name if piece.kind is Kind.RANK and piece.value is not None]
