"""What a person may ask of a sweep, beside the grid and what is asked of an average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from belay_cli.errors import UsageError
from belay_cli.options import Option, Options, flag
from belay_cli.sweeping.evaluation import check_command, seconds
from belay_cli.sweeping.metric import Judge, part_of

Keep = Literal["best", "all", "none"]
SEPARATOR = "\x1f"  # between the words of one --metric


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """How candidates are judged. Raises UsageError."""

    panel: ClassVar[str] = "The evaluation"

    eval: Annotated[
        str | None, Option("Run for each candidate; {model} is its path, {out} a directory.", "COMMAND")
    ] = None
    metric: Annotated[
        tuple[str, ...],
        Option("TASK METRIC [WEIGHT], or METRIC; more than once for a weighted mean.", "…", grouped=True),
    ] = ()
    maximize: Annotated[bool, Option("A high value is good, where the results do not say.")] = False
    minimize: Annotated[bool, Option("A low value is good.")] = False
    confirm: Annotated[str | None, Option("Run for the winner and the last checkpoint, on other data.", "COMMAND")] = (
        None
    )
    repeat: Annotated[int, Option("Evaluate each so often, for the evaluation's own noise.", "N")] = 1
    jobs: Annotated[int, Option("At once; GPUs are shared out among them.", "N")] = 1
    time_limit: Annotated[str | None, Option("Of one evaluation: 90s, 30m, 2h.", "TIME")] = None
    retry: Annotated[bool, Option("Evaluate again what failed.")] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        for name in ("repeat", "jobs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} must be 1 or more, not {getattr(self, name)}")
        if self.maximize and self.minimize:
            raise UsageError("--maximize and --minimize contradict each other", hint="give one of them")
        for name in ("eval", "confirm"):
            if (command := getattr(self, name)) is not None:
                check_command(command, flag(name))
        if self.eval is None:
            for name in ("metric", "maximize", "minimize", "confirm", "time_limit", "retry", "repeat", "jobs"):
                if getattr(self, name) not in (None, False, (), 1):
                    raise UsageError(f"{flag(name)} goes with --eval", hint="--eval 'python evaluate.py {model}'")
        self.judge()
        _ = self.limit

    @property
    def limit(self) -> float | None:
        """Seconds of one evaluation, None for no limit."""
        return None if self.time_limit is None else seconds(self.time_limit)

    def judge(self) -> Judge:
        """What makes scores of what is measured."""
        parts = tuple(part_of(said.split(SEPARATOR)) for said in self.metric)
        return Judge(parts, True if self.maximize else False if self.minimize else None)


@dataclass(frozen=True)
class SweepOptions(Options):
    """How a sweep is run, and what is left of it. Raises UsageError."""

    panel: ClassVar[str] = "The sweep"

    refine: Annotated[int, Option("Halve the grid around the best so often.", "N")] = 0
    keep: Annotated[Keep, Option("Of the averages.")] = "best"
    at_once: Annotated[int | None, Option("Averages made in one read. Default: as memory and disk allow.", "N")] = None
    most: Annotated[int, Option("Candidates that are not too many. Default 500.", "N")] = 500

    def __post_init__(self) -> None:
        """Refuse numbers that make no sweep."""
        super().__post_init__()
        if self.refine < 0:
            raise UsageError(f"--refine must be 0 or more, not {self.refine}")
        for name in ("at_once", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} must be 1 or more, not {value}")
