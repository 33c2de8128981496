"""Which checkpoints are taken of what is given, in which order, and what of each one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from belay_cli.checkpoints.components import canonical
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import UsageError
from belay_cli.options import Option, Options

Unit = Literal["auto", "step", "checkpoint"]
Order = Literal["step", "given"]
RawOrEma = Literal["raw", "ema"]

_UNITS = {"steps": "step", "checkpoints": "checkpoint", "ckpt": "checkpoint", "ckpts": "checkpoint"}


@dataclass(frozen=True)
class SeriesOptions(Options):
    """How the arguments of any command become checkpoints: order, unit of ticks, and what is taken of each one.

    `subfolder`, `state_key` and `source` are those of `Opening`. Raises UsageError.
    """

    panel: ClassVar[str] = "The series"

    unit: Annotated[Unit, Option("Of ticks: auto takes steps if all have one.", also=_UNITS)] = "auto"
    order: Annotated[
        Order, Option("By step, or given: as the arguments come.", also={"steps": "step", "as-given": "given"})
    ] = "step"
    subfolder: Annotated[
        str | None,
        Option("Of several models in a checkpoint: one, such as unet; some, as unet,text_encoder; or all.", "NAME"),
    ] = None
    state_key: Annotated[str | None, Option("Where a torch file has its weights: model.state_dict.", "KEY")] = None
    source: Annotated[RawOrEma | None, Option("Which weights, where a checkpoint holds both.")] = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        super().__post_init__()
        if self.order == "given" and self.unit == "step":
            raise UsageError("--order given counts checkpoints, so --unit step has no meaning with it")

    @property
    def allows_averages(self) -> bool:
        """Whether an average is taken like any other checkpoint."""
        return False

    @property
    def opening(self) -> Opening:
        """How each checkpoint is opened."""
        return Opening(canonical(self.subfolder), self.state_key, self.source, self.allows_averages)


@dataclass(frozen=True)
class Selection(SeriesOptions):
    """The same with the part of the series that is taken. Raises UsageError."""

    from_step: Annotated[int | None, Option("Leave out what is before.")] = None
    to_step: Annotated[int | None, Option("Leave out what is after.")] = None
    every: Annotated[int, Option("Take every N-th, counted back from the last.", "N")] = 1
    allow_averages: Annotated[bool, Option("Take an average like any other checkpoint.")] = False

    def __post_init__(self) -> None:
        """Refuse a number that takes nothing."""
        super().__post_init__()
        if self.every < 1:
            raise UsageError(f"--every must be 1 or more, not {self.every}")

    @property
    def allows_averages(self) -> bool:
        """Whether an average is taken like any other checkpoint."""
        return self.allow_averages
