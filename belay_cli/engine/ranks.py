"""Processes that run one plan together, and the one that runs it alone."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """A process among those that run a plan: they are counted from 0, and the first leads.

    Every call but `check` waits for the others, and raises LostRank when one of them is gone or has failed.
    """

    @property
    def number(self) -> int:
        """Which of them this process is."""

    @property
    def count(self) -> int:
        """How many there are."""

    def from_first(self, value: T | None) -> T:
        """What the first has for all; the others give None."""

    def to_first(self, value: T) -> list[T]:
        """What all have, in order, in the first; nothing in the others."""

    def check(self) -> None:
        """Raise LostRank if one of the others is gone, or has failed."""


class Alone:
    """A process that runs a plan alone."""

    number, count = 0, 1

    def from_first(self, value: T | None) -> T:
        """Its own value."""
        assert value is not None  # noqa: S101
        return value

    def to_first(self, value: T) -> list[T]:
        """Its own value."""
        return [value]

    def check(self) -> None:
        """Nobody is missing."""
