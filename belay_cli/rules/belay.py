"""BELAY: the spring that pulls both ends, the average to the model and the model to the average (arXiv 2310.13854)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from belay_cli.errors import UsageError
from belay_cli.options import Option
from belay_cli.rules.spring import Spring
from belay_cli.rules.spring_options import SpringOptions

_EQUAL_PARTNERS = 1.0  # the default of feedback and of curvature


@dataclass(frozen=True)
class Belay(SpringOptions):
    """The spring with feedback. Without options its two ends are equal partners."""

    feedback: Annotated[float | None, Option("belay: the pull on the model's end. Default 1.")] = None
    curvature: Annotated[float | None, Option("belay: the pull back to the recorded path. Default 1.")] = None

    method = "belay"
    title = "BELAY"
    phrase = "the spring that pulls both ends, average and model"

    def __post_init__(self) -> None:
        """Refuse what would do nothing."""
        super().__post_init__()
        if self.feedback == 0 and self.curvature:
            raise UsageError(
                f"--curvature {self.curvature:g} has no meaning without feedback: nothing leaves the recorded path",
                hint="leave --curvature out, or take a --feedback above 0",
            )

    def resolve(self, ticks: Sequence[int], unit: str) -> Spring:
        """The spring with feedback."""
        feedback = _EQUAL_PARTNERS if self.feedback is None else self.feedback
        curvature = _EQUAL_PARTNERS if self.curvature is None else self.curvature
        return self.spring(ticks, unit, feedback=feedback, curvature=curvature if feedback else 0.0)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Spring:
        """The spring that has these parameters."""
        return Spring.of(cls.method, cls.title, parameters)
