"""Average a series: checkpoints and rules into a plan, the plan into outputs, or into tensors in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from belay_cli import words
from belay_cli.api.estimate import estimated
from belay_cli.api.keywords import PathLike, PlanKeywords, plan_options
from belay_cli.api.report import Done, report
from belay_cli.checkpoints import Selection, Series, find_series
from belay_cli.checkpoints.arguments import in_home, weighted
from belay_cli.checkpoints.differing import differing
from belay_cli.checkpoints.fingerprint import Fingerprints, fingerprints
from belay_cli.engine.arithmetic import chosen_engine
from belay_cli.engine.device import find_device
from belay_cli.engine.ranks import Alone, Ranks
from belay_cli.engine.spans import Line, Spans
from belay_cli.errors import UsageError
from belay_cli.planning import Plan, PlanOptions, make_plan
from belay_cli.planning.estimate import Estimate
from belay_cli.planning.options import SAME
from belay_cli.planning.target import default_output
from belay_cli.planning.warnings import differing_notes, identical_warnings
from belay_cli.rules import Rule, asked, with_weights
from belay_cli.show.listener import Listener, Nobody
from belay_cli.show.report import Report

if TYPE_CHECKING:
    from typing import Unpack

    import torch

    from belay_cli.engine.stream import Replayed

Checkpoints = PathLike | Sequence[PathLike]


@overload
def average(
    checkpoints: Checkpoints,
    output: PathLike | None = None,
    *,
    method: str | Rule | None = None,
    progress: bool = False,
    **options: Unpack[PlanKeywords],
) -> Report: ...


@overload
def average(
    checkpoints: Checkpoints,
    *,
    rules: Sequence[str | Rule],
    outputs: Sequence[PathLike],
    progress: bool = False,
    **options: Unpack[PlanKeywords],
) -> list[Report]: ...


def average(
    checkpoints: Checkpoints,
    output: PathLike | None = None,
    *,
    method: str | Rule | None = None,
    rules: Sequence[str | Rule] | None = None,
    outputs: Sequence[PathLike] | None = None,
    progress: bool = False,
    **options: Unpack[PlanKeywords],
) -> Report | list[Report]:
    """Average a series of checkpoints, write the result, and return the report of what was done.

    checkpoints: files, directories, URLs, or a run directory; output: NAME.safetensors or a directory, by default
    `belay-average` as the command names it. method: `ema` (the default), another, or a rule with options, such as
    `Belay(half_life="10%")`. With `rules` and as many `outputs`, several averages are written in one read of the
    series, and a report of each is returned. progress: show a bar. The other options are those of `belay average`:

    - of the series: unit, order, from_step, to_step, every, allow_averages, subfolder, state_key, source
    - of the output: dtype, format, without_optimizer, average, last, drop (globs of tensor names, one or several),
      lora, lora_rank, max_shard_size, overwrite
    - of the run: device, threads, max_memory, sync, drop_cache, allow_nonfinite

    Raises UsageError for options that cannot be, and another BelayError for what fails.
    """
    several = rules is not None
    if several != (outputs is not None) or (several and (output is not None or method is not None)):
        raise UsageError("give one method and output, or as many outputs as rules")
    if isinstance(outputs, str | os.PathLike):
        raise UsageError(f"outputs is a list of paths, one for each rule, not {os.fspath(outputs)!r}")
    selection, planned = plan_options(options)
    hears = listener(progress)
    wanted = _asked(rules) if rules is not None else [asked(method)]
    places = outputs if outputs is not None else [output]
    with Fingerprints() as marks:
        plan = prepare(checkpoints, wanted, places, selection, planned, hears, marks=marks)
        reports = run(plan, hears, marks)
    return reports if several else reports[0]


def plan(
    checkpoints: Checkpoints,
    output: PathLike | None = None,
    *,
    method: str | Rule | None = None,
    **options: Unpack[PlanKeywords],
) -> Report:
    """What `average` would do with the same options, from headers alone; the output may be there already.

    How long it would take here is told by a sample of at most 320 MB of a large series.

    Raises UsageError for options that cannot be, and another BelayError for what is wrong with the series.
    """
    selection, planned = plan_options(options)
    made = prepare(checkpoints, [asked(method)], [output], selection, planned, Nobody(), look_only=True)
    return report("plan", made, made.outputs[0], estimate=estimated(made))


def averages(
    checkpoints: Checkpoints,
    rules: Sequence[str | Rule],
    *,
    at_once: int = 1,
    progress: bool = False,
    **options: Unpack[PlanKeywords],
) -> Iterator[tuple[Rule, dict[str, torch.Tensor]]]:
    """Averages by several rules as tensors in memory, one after the other, for an evaluation; nothing is written.

    Yields each rule with every parameter a number, and its state dict on the CPU: tensors by name, in the output's
    dtype, names that share bytes in the checkpoints sharing a tensor. `at_once` averages are made in one read of the
    series, and held in memory together. The series is the one that is there at the call, whatever is saved later; what
    `plan` warns of is said if `progress` is. The options are those of `average`. Raises a BelayError.
    """
    if not isinstance(at_once, int) or at_once < 1:
        raise UsageError(f"at_once must be 1 or more, not {at_once!r}")
    selection, planned = plan_options(options)
    wanted, hears = _asked(rules), listener(progress)
    with hears.phase("Opening the checkpoints"):
        series = find_series(listed_paths(checkpoints), selection)
        plans = in_memory(series, wanted, planned, at_once)
    for warning in dict.fromkeys(warning for made in plans for warning in made.warnings):
        hears.warn(warning)
    return replayed(plans, hears)


def in_memory(series: Series, rules: Sequence[Rule], planned: PlanOptions, at_once: int) -> list[Plan]:
    """Plans for averages that stay in memory, so many of them in one read of the series."""
    groups = [rules[first : first + at_once] for first in range(0, len(rules), at_once)]
    return [make_plan(series, group, None, planned, engine=chosen_engine()) for group in groups]


def _asked(rules: Sequence[str | Rule]) -> list[Rule]:
    if isinstance(rules, str | Rule):
        raise UsageError(f"rules is a list of rules, not one: [{rules!r}]")
    return [asked(one) for one in rules]


def replayed(plans: Sequence[Plan], hears: Listener) -> Iterator[tuple[Rule, dict[str, torch.Tensor]]]:
    """The averages of such plans, one after the other, each with its rule."""
    from belay_cli.engine.stream import replay
    from belay_cli.output.memory import MemoryOutput

    for made in plans:
        sinks = [MemoryOutput(made) for _ in made.outputs]
        with hears.phase("Replaying", made.data_read) as progress:
            replay(made, sinks, progress)
        for planned in made.outputs:
            yield planned.rule, sinks.pop(0).state_dict()  # held by whoever takes it, and by nobody else


def prepare(
    checkpoints: Checkpoints,
    rules: Sequence[Rule],
    outputs: Sequence[PathLike | None] | None,
    selection: Selection,
    options: PlanOptions,
    hears: Listener,
    *,
    look_only: bool = False,
    marks: Fingerprints | None = None,
) -> Plan:
    """The plan for these checkpoints, from headers alone: an output a rule, or None for averages in memory.

    marks: what takes their fingerprints meanwhile. look_only: nothing will be written, so an output that is there
    already is a warning. Raises a BelayError.
    """
    given, weights = weighted(listed_paths(checkpoints))
    engine = chosen_engine()
    if weights:
        rules = [with_weights(rule, weights) for rule in rules]
    with hears.phase("Opening the checkpoints") as phase:
        series = find_series(given, selection, marks.take if marks else lambda checkpoint: None)
        if not look_only:
            _settle(series, outputs or (), options)
        phase.describe(f"Planning with {words.plural(len(series.checkpoints), 'checkpoint')}")
        return make_plan(series, rules, outputs, options, engine=engine, look_only=look_only)


def _settle(series: Series, outputs: Iterable[PathLike | None], options: PlanOptions) -> None:
    """Put right what runs that were killed while they put these outputs in place have left."""
    from belay_cli.output.placement import settle

    for path in outputs:
        settle(default_output(series, same=options.format == SAME) if path is None else in_home(Path(path)))


def listed_paths(checkpoints: Checkpoints) -> list[PathLike]:
    """One path or several as a list. Raises UsageError for what is neither."""
    several = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else checkpoints
    paths = list(several) if isinstance(several, Iterable) else [None]
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise UsageError(f"checkpoints are paths, one or several, not {checkpoints!r}")
    return [path for path in paths if path is not None]


def run(
    plan: Plan,
    hears: Listener,
    marks: Fingerprints | None = None,
    ranks: Ranks = Alone(),  # noqa: B008
    estimate: Estimate | None = None,
) -> list[Report]:
    """Run a plan; a report an output. The listener hears what only the content shows, before weights are read.

    marks: what took the fingerprints of the checkpoints while it was planned; ranks: who helps, see `assist`;
    estimate: what was said of its time.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        uneven = beside.submit(differing, plan.series.checkpoints, plan.not_averageable)
        found = marks.of(plan.series.checkpoints) if marks else fingerprints(plan.series.checkpoints)
        notes = tuple(differing_notes(uneven.result()))
    warnings = tuple(w for w in identical_warnings(plan.series, found) if w not in plan.warnings)
    for warning in warnings:
        hears.warn(warning)
    for text in notes:
        hears.note(text)
    plan, found = ranks.from_first((_for_all(plan), found))
    ran = _written(plan, found, hears, ranks)
    done = Done(ran.device, ran.engine, time.monotonic() - began, warnings, notes, ranks.count)
    return [
        report("average", plan, output, done, lost, estimate)
        for output, lost in zip(plan.outputs, ran.discarded, strict=True)
    ]


def assist(ranks: Ranks) -> None:
    """Do a part of what the first of these processes runs, which plans and puts in place. Raises a BelayError."""
    given: tuple[Plan, list[str]] = ranks.from_first(None)
    _written(*given, Nobody(), ranks)


def _for_all(plan: Plan) -> Plan:
    """The plan with the kind of device that the first has found, which is that of all."""
    if plan.options.device not in ("auto", "cuda"):
        return plan
    kind = find_device(plan).partition(":")[0]
    return replace(plan, options=replace(plan.options, device=kind))


def _written(plan: Plan, found: Sequence[str], hears: Listener, ranks: Ranks) -> Replayed:
    """Replay a plan into its outputs, or this process's part of it; found: the fingerprints [T]."""
    from belay_cli.engine.stream import replay
    from belay_cli.output.staged import staged_outputs

    kind = plan.options.device
    with ExitStack() as last, staged_outputs(plan, found, device=kind, ranks=ranks, note=hears.note) as staged:
        with hears.phase("Replaying", _left(plan, staged.todo), keep=True) as progress:

            def told(done: float) -> None:
                staged.heard()
                progress(done)

            ran = replay(plan, staged.writers, told, staged.todo, ranks)
        last.enter_context(hears.phase("Syncing to disk"))  # which the outputs do when they are left
    return ran


def _left(plan: Plan, todo: Spans) -> int:
    """Bytes of tensor data that are still to be read."""
    from belay_cli.engine.shares import to_read

    return plan.data_read if todo == Line(plan).whole else to_read(plan, todo)


def listener(progress: bool) -> Listener:
    """A console that draws bars, also in a notebook, or nobody."""
    if not progress:
        return Nobody()
    from belay_cli.show.console import Console

    return Console()
