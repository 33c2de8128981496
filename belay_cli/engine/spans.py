"""Ranges of an output's bytes: what is done of it, and what is left.

All tensors of a plan in their order are one line of bytes, whatever files they lie in; a span is a range of that line.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import TypeAlias

from belay_cli.planning import Plan

Span: TypeAlias = tuple[int, int]  # from one byte of the line up to another


class Spans(tuple[Span, ...]):
    """Ranges in order, none of which touch."""

    __slots__ = ()

    @classmethod
    def of(cls, several: Iterable[Span]) -> Spans:
        """Any ranges together."""
        joined: list[Span] = []
        for begin, end in sorted(several):
            if begin >= end:
                continue
            if joined and begin <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((begin, end))
        return cls(joined)

    @property
    def nbytes(self) -> int:
        """How long they are together."""
        return sum(end - begin for begin, end in self)

    def within(self, begin: int, end: int) -> Iterator[Span]:
        """What of them lies in a range."""
        first = max(0, bisect_right(self, (begin, begin)) - 1)
        for at in range(first, len(self)):
            low, high = max(begin, self[at][0]), min(end, self[at][1])
            if low < high:
                yield low, high
            if self[at][1] >= end:
                return

    def without(self, others: Spans) -> Spans:
        """What of them does not lie in others."""
        left: list[Span] = []
        for begin, end in self:
            at = begin
            for low, high in others.within(begin, end):
                left.append((at, low))
                at = high
            left.append((at, end))
        return Spans.of(left)

    def both(self, others: Spans) -> Spans:
        """What lies in both."""
        return Spans.of(found for begin, end in self for found in others.within(begin, end))


class Line:
    """The line of bytes of a plan: where each file's data and each tensor begins on it."""

    def __init__(self, plan: Plan) -> None:
        self.begins = list(accumulate((shard.nbytes for shard in plan.shards), initial=0))
        self._plan = plan

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.begins[-1]

    @property
    def whole(self) -> Spans:
        """All of it."""
        return Spans.of([(0, self.nbytes)])

    def split(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """A range by files: the number of each, and from where to where in its data."""
        for shard, (low, high) in enumerate(pairwise(self.begins)):
            if begin < high and end > low:
                yield shard, max(begin, low) - low, min(end, high) - low

    def of_tensors(self) -> Iterator[tuple[str, int, int]]:
        """Every tensor's name and range."""
        for tensor in self._plan.pieces:
            begin = self.begins[tensor.shard] + tensor.offset
            yield tensor.name, begin, begin + tensor.nbytes
