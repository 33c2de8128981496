"""Who does which part of a replay: ranges for which about as much is read of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from belay_cli.engine.chunks import Run, elements_of, runs
from belay_cli.engine.spans import Line, Span, Spans
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan

_NEAR = 0.1  # of a share: a tensor is not cut for so little
_GRAIN = 64  # elements


class _Stretch(NamedTuple):
    """Elements of a run that are left to do, from one to another; `base`: where its file begins on the line."""

    run: Run
    base: int
    begin: int
    end: int

    @property
    def each(self) -> float:
        """Bytes to read for one element."""
        return len(self.run.sources) * DTYPES[self.run.tensors[0].source_dtype].bits / 8

    @property
    def cost(self) -> float:
        """Bytes to read for all of them."""
        return (self.end - self.begin) * self.each

    def span(self, begin: int, end: int) -> Span:
        """Elements of the run as a range of the line."""
        first = self.run.tensors[0]
        bits, at = DTYPES[first.dtype].bits, self.base + first.offset
        return at + begin * bits // 8, at + end * bits // 8


def to_read(plan: Plan, todo: Spans) -> int:
    """Bytes of tensor data that are read to do these ranges, but for updates."""
    return round(sum(stretch.cost for stretch in _stretches(plan, todo)))


def divide(plan: Plan, todo: Spans, parts: int) -> list[Spans]:
    """Ranges in as many parts, in order, for which about as much is read of each.

    A part ends at a multiple of 64 elements, or where a tensor does if that is near.
    """
    stretches = list(_stretches(plan, todo))
    share = sum(stretch.cost for stretch in stretches) / parts
    found: list[list[Span]] = [[]]
    room = share
    for stretch in stretches:
        at, each = stretch.begin, stretch.each
        while len(found) < parts and (stretch.end - at) * each > room:
            cut = _cut(stretch, at, at + max(0, int(room / each)), int(share * _NEAR / each))
            found[-1].append(stretch.span(at, cut))
            room += share - (cut - at) * each
            at = cut
            found.append([])
        found[-1].append(stretch.span(at, stretch.end))
        room -= (stretch.end - at) * each
    return [Spans.of(one) for one in found] + [Spans()] * (parts - len(found))


def _cut(stretch: _Stretch, begin: int, wanted: int, near: int) -> int:
    """Where to end a part that should end before the element `wanted`, and does not end before `begin`."""
    ends = (*stretch.run.starts, stretch.run.elements)
    after = bisect_right(ends, wanted)
    for end in ends[max(0, after - 1) : after + 1]:
        if abs(end - wanted) <= near and begin <= end <= stretch.end:
            return end
    return max(begin, wanted // _GRAIN * _GRAIN)


def _stretches(plan: Plan, todo: Spans) -> Iterator[_Stretch]:
    begins = Line(plan).begins
    for run in runs(plan):
        base = begins[run.tensors[0].shard]
        for begin, end in elements_of(run, base, todo):
            yield _Stretch(run, base, begin, end)
