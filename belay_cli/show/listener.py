"""Who hears what goes on while a command works: the console, or nobody."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """A part of the work that takes its time; threads may tell it how far they are."""

    def __call__(self, done: float, /) -> None:
        """Hear what is done so far: bytes, or a share from 0 to 1."""

    def describe(self, description: str, /) -> None:
        """Hear it in other words, once more is known."""


class Listener(Protocol):
    """What work tells of itself, as it goes on."""

    @property
    def animated(self) -> bool:
        """Whether there is a terminal to draw progress on."""

    def warn(self, warning: str) -> None:
        """Something a person should know before trusting the result."""

    def note(self, note: str) -> None:
        """Something that was decided for the person."""

    def phase(
        self, description: str, total_bytes: int | None = None, *, keep: bool = False
    ) -> AbstractContextManager[Progress]:
        """A part of the work that is told the bytes done so far; with `keep` its bar stays on the screen."""

    def share(self, description: str) -> AbstractContextManager[Progress]:
        """A part of the work that is told the share that is done, from 0 to 1."""


class Nobody:
    """A listener for programs that ask for no progress. What they should know is in the report."""

    animated = False

    def warn(self, warning: str) -> None:
        """Not heard; it is in the report."""

    def note(self, note: str) -> None:
        """Not heard; it is in the report."""

    def phase(
        self, description: str, total_bytes: int | None = None, *, keep: bool = False
    ) -> AbstractContextManager[Progress]:
        """Not heard."""
        return contextlib.nullcontext(_Unheard())

    def share(self, description: str) -> AbstractContextManager[Progress]:
        """Not heard."""
        return contextlib.nullcontext(_Unheard())


class _Unheard:
    def __call__(self, done: float, /) -> None:
        pass

    def describe(self, description: str, /) -> None:
        pass
