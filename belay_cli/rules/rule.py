"""What the rest of the program knows of a rule, whichever it is.

A rule maps the ticks of a series to coefficients. It is defined twice: `coefficients` in closed form, and `replay` as
the recursion on the weights themselves, which is the witness in tests and in `belay verify`. Everything else that
plan, command line, JSON, record, card and help need is a method here, with a default that fits a rule whose parameters
are its options.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from belay_cli import words
from belay_cli.options import Options, flag, given

Float64Array = NDArray[np.float64]

# What a record and `--json` say of a rule: JSON values by the names of its parameters; a list has one a checkpoint.
Parameters = dict[str, str | int | float | bool | list[float] | None]


class Facts(Protocol):
    """What a rule may ask about the checkpoints of a series, in their order, [T]."""

    @property
    def names(self) -> Sequence[str]:
        """Their names."""

    @property
    def steps(self) -> Sequence[int | None]:
        """Their training steps, where they state one, whatever the unit of the ticks is."""

    def numbers(self, flag: str, given: Any, *, whole: bool) -> list[float]:
        """A number for each, from what was given with an option: numbers in order, by name, or a file of them.

        whole: nothing may be left over. Raises UsageError if there is not one for each.
        """

    def recorded(self, metric: str) -> tuple[list[float], str | None]:
        """A metric as the run recorded it at each checkpoint, and its good end, `min` or `max`, if the run says it.

        Raises UsageError if it did not at some.
        """


class Rule(Options, ABC):
    """A rule. A subclass is a frozen dataclass, and each of its fields that has an Option is an option of its method.

    `method` is its name for --method; `title` what people call it; `phrase` says in a sentence what it is;
    `tags` are those of the Hub for its averages; `any_sum`: its coefficients need not sum to 1;
    `chosen_by_name`: its weights are on checkpoints that were chosen one by one, so that they may lean on any;
    `ordered`: the order of the checkpoints matters to it.
    """

    method: str
    title: str
    phrase: str
    tags: tuple[str, ...] = ()
    any_sum: ClassVar[bool] = False
    chosen_by_name: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    panel: ClassVar[str] = "The rule"

    def told(self, facts: Facts) -> Rule:
        """The rule with what it has to know of each checkpoint by name. Raises UsageError if that is not known."""
        return self

    def resolve(self, ticks: Sequence[int], unit: str) -> Rule:
        """The rule with every parameter a number, for the ticks [T] of one series; unit: `step` or `checkpoint`.

        Raises UsageError if what was asked for cannot be, for these ticks.
        """
        return self

    @abstractmethod
    def coefficients(self, ticks: Sequence[int]) -> Float64Array:
        """The float64 factor of each checkpoint in the average. ticks: [T] rising -> [T], sum 1."""

    @abstractmethod
    def replay(self, ticks: Sequence[int], weights: Iterable[Float64Array]) -> Float64Array:
        """The average by the rule's recursion, the checkpoints given one after the other. [T], T × [n] -> [n].

        It must not be computed by way of `coefficients`: it is what they are checked against.
        """

    def parameters(self) -> Parameters:
        """Every parameter, for `--json` and the record; `from_parameters` makes the same rule of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Rule:
        """The rule that has these parameters. Raises KeyError, TypeError, ValueError or UsageError if none has."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    def arguments(self) -> list[str]:
        """The command-line words that give exactly this rule again, after --method and --unit."""
        found: list[str] = []
        for name in given(self):
            value = getattr(self, name)
            found += [flag(name)] if value is True else [flag(name), str(value)]
        return found

    def sentence(self, ticks: Sequence[int], unit: str) -> str:
        """Its parameters as people read them; empty if it has none."""
        return ", ".join(f"{name.replace('_', ' ')} {_shown(getattr(self, name))}" for name in given(self))

    def warnings(self, ticks: Sequence[int], unit: str, coefficients: Float64Array) -> Iterator[str]:
        """What a person should know of this rule on these ticks [T], each with the option that mends it."""
        yield from ()

    def leans_on_last(self, ticks: Sequence[int], unit: str, coefficients: Float64Array) -> str | None:
        """Why so much of the weight is on the last checkpoint, which has most of it, if this rule can say; with a mend.

        It is said in place of the general words about an average that is nearly one checkpoint. [T], [T].
        """
        return None

    def mend(self, unit: str, *, leans_on_first: bool) -> str:
        """What to do about an average that is nearly one checkpoint, or leans on the first one."""
        return "look at the weights, and take another --method or other checkpoints"

    def reference(self) -> tuple[str, Rule] | None:
        """A rule whose mean lag is worth saying beside this one's, and how it is called."""
        return None

    def remark(self, ticks: Sequence[int], coefficients: Float64Array) -> str:
        """What explains these coefficients [T], under the table of them; empty if they need no explanation."""
        return ""

    def credit(self) -> str:
        """Where the rule comes from, in Markdown, for the model card; empty if it needs no telling."""
        return ""


def _shown(value: Any) -> str:
    return words.number(value) if isinstance(value, int | float) and value is not True else shlex.quote(str(value))
