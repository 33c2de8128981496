"""The options of the Python API, as types: the fields of the groups of options that the command line is made from.

A test holds them to those fields, by name and type.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict

from belay_cli.checkpoints.selection import Order, RawOrEma, Selection, SeriesOptions, Unit
from belay_cli.errors import UsageError
from belay_cli.options import declared_in, nearest
from belay_cli.planning import PlanOptions, Policies
from belay_cli.planning.options import Dtype, Format, Lora
from belay_cli.rules import METHODS

PathLike = str | os.PathLike[str]
Globs = str | Sequence[str]


class SeriesKeywords(TypedDict, total=False):
    """How arguments become checkpoints: the options of `SeriesOptions`."""

    unit: Unit
    order: Order
    subfolder: str | None
    state_key: str | None
    source: RawOrEma | None


class SelectionKeywords(SeriesKeywords, total=False):
    """The part of the series that is taken: the options of `Selection`."""

    from_step: int | None
    to_step: int | None
    every: int
    allow_averages: bool


class PlanKeywords(SelectionKeywords, total=False):
    """What is made of the series, and how: the options of `PlanOptions` and `Policies`."""

    average: Globs
    last: Globs
    drop: Globs
    dtype: Dtype
    format: Format | None
    without_optimizer: bool
    lora: Lora | None
    lora_rank: int | None
    max_shard_size: str | None
    overwrite: bool
    device: str
    threads: int | None
    max_memory: str | None
    sync: bool
    resume: bool
    drop_cache: bool
    allow_nonfinite: bool
    chunk: int | None


def series_options(options: Mapping[str, Any]) -> Selection:
    """The selection that these keywords are. Raises UsageError for a keyword that is none."""
    _refuse_unknown(options, {field.name for field in fields(SeriesOptions)})
    return Selection(**options)


def plan_options(options: Mapping[str, Any]) -> tuple[Selection, PlanOptions]:
    """The selection and the options of the plan that these keywords are. Raises UsageError for one that is none."""
    selecting = {field.name for field in fields(Selection)}
    planning = {field.name for field in fields(PlanOptions)} - {"policies"}
    by_name = {field.name for field in fields(Policies)}
    _refuse_unknown(options, selecting | planning | by_name)
    policies = Policies(**{name: _globs(value) for name, value in options.items() if name in by_name})
    plan = PlanOptions(**{name: value for name, value in options.items() if name in planning}, policies=policies)
    return Selection(**{name: value for name, value in options.items() if name in selecting}), plan


def _globs(value: Globs) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise UsageError(f"a glob of tensor names is a text, or several are a list, not {value!r}")
    return tuple(value)


def _refuse_unknown(options: Mapping[str, Any], known: set[str]) -> None:
    for name in options:
        if name in known:
            continue
        for method, rule in METHODS.items():
            if name in {option.name for option in declared_in(rule)}:
                raise UsageError(
                    f"{name} is an option of the rule", hint=f"method={rule.__name__}({name}=…), for method '{method}'"
                )
        near = nearest(name, sorted(known))
        raise UsageError(f"{name} is no option", hint=f"did you mean {near}?" if near else None)
