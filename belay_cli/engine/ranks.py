"""Processes that run one plan together, and the one that runs it alone."""

from __future__ import annotations

from typing import Protocol, TypeVar

from belay_cli.errors import LostRank

T = TypeVar("T")


class Ranks(Protocol):
    """A process among those that run a plan: they are counted from 0, and the first leads.

    `local` counts those of one machine. Whatever waits for the others raises LostRank when one of them is gone, or has
    failed.
    """

    @property
    def number(self) -> int:
        """Which of them this process is."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def local(self) -> int:
        """Which of those of this machine it is."""

    @property
    def threads(self) -> int | None:
        """How many threads each should have, where nobody says; None: as many as one alone."""

    def from_first(self, value: T | None) -> T:
        """What the first has for all; the others give None, and wait for it."""

    def to_first(self, value: T) -> list[T]:
        """What all have, in order, in the first, which waits for them; nothing in the others."""

    def check(self, *, look: bool = False) -> None:
        """Raise LostRank if one of the others is gone, or has failed. look: not by what was heard last, but now."""


class Alone:
    """A process that runs a plan alone."""

    number, count, local, threads = 0, 1, 0, None

    def from_first(self, value: T | None) -> T:
        """Its own value."""
        assert value is not None  # noqa: S101
        return value

    def to_first(self, value: T) -> list[T]:
        """Its own value."""
        return [value]

    def check(self, *, look: bool = False) -> None:
        """Nobody is missing."""


def check_terminated(ranks: Ranks) -> None:
    """Raise LostRank if this process was terminated because another one has ended; it may be terminated as all are."""
    try:
        ranks.check(look=True)
    except LostRank as error:
        if not error.terminated:
            raise
