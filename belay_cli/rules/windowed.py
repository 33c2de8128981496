"""Rules over the last N checkpoints of a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from belay_cli import words
from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.rule import Rule


@dataclass(frozen=True)
class Windowed(Rule):
    """A rule with a window. window: how many checkpoints, counted back from the last; None for all of them."""

    window: Annotated[int | None, Option("Only the last N checkpoints. Default: all.", "N")] = None

    def __post_init__(self) -> None:
        """Refuse a window of nothing."""
        super().__post_init__()
        if self.window is not None and self.window < 1:
            raise UsageError(f"--window must be 1 or more, not {self.window}")

    def resolve(self, ticks: Sequence[int], unit: str) -> Rule:
        """The rule itself. Raises UsageError if the series is shorter than the window."""
        if self.window is not None and self.window > len(ticks):
            raise UsageError(
                f"--window {self.window} is more than the {words.plural(len(ticks), 'checkpoint')} of the series",
                hint="leave it out, for all of them",
            )
        return self

    def taken(self, ticks: Sequence[int]) -> int:
        """How many of the checkpoints at ticks [T] the window has."""
        return min(self.window or len(ticks), len(ticks))

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """Another window."""
        return "take another --window" if leans_on_first else "take a longer --window"
