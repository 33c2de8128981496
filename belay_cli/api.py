"""The small Python API, and the one place where the stages meet: checkpoints, rules, plan, engine, report.

The command line calls these functions too, with hooks that show what goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from belay_cli.checkpoints import Selection, find_series
from belay_cli.checkpoints.differing import differing
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.plan import Plan, PlanOptions, Policies, make_plan
from belay_cli.plan.warnings import differing_notes, identical_warnings
from belay_cli.report import Report, report
from belay_cli.rules import RuleOptions

Path = str | os.PathLike[str]


def average(
    checkpoints: Path | Sequence[Path],
    output: Path | None = None,
    *,
    rules: Sequence[RuleOptions | Mapping[str, Any]] | None = None,
    outputs: Sequence[Path] | None = None,
    **options: Any,
) -> Any:
    """Average a series of checkpoints and return the report of what was done.

    The options are those of the command line, under the names of the fields of
    `RuleOptions` (method, half_life, decay, feedback, curvature, inertia, damping_ratio, debias),
    `Selection` (order, unit, from_step, to_step, every, allow_averages, subfolder, state_key, source),
    `PlanOptions` (dtype, device, max_shard_size, threads, max_memory, sync, overwrite, allow_nonfinite, lora,
    lora_rank), and
    `average`, `last`, `drop`: globs, or lists of globs, of tensor names.

    With `rules`, each a RuleOptions or a mapping of its fields, and as many `outputs`, writes several
    averages in one read, and returns a list of reports. Raises a BelayError.
    """
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = [checkpoints]
    if (rules is None) != (outputs is None) or (rules is not None and output is not None):
        raise TypeError("give one output, or as many outputs as rules")
    if rules is None:
        plan = prepare(checkpoints, [_take(RuleOptions, options)], [output], options)
        return run(plan)[0]
    wanted = [rule if isinstance(rule, RuleOptions) else RuleOptions(**rule) for rule in rules]
    return run(prepare(checkpoints, wanted, list(outputs or []), options))


def prepare(
    checkpoints: Sequence[Path],
    rules: Sequence[RuleOptions],
    outputs: Sequence[Path | None],
    options: dict[str, Any],
) -> Plan:
    """The plan for these checkpoints, from headers alone. `options` as in `average`, but for the rule's."""
    policies = Policies(**{name: _globs(options.pop(name, ())) for name in ("average", "last", "drop")})
    selection = _take(Selection, options)
    plan_options = _take(PlanOptions, options, policies=policies)
    if options:
        raise TypeError(f"unknown options: {', '.join(sorted(options))}")
    return make_plan(find_series(checkpoints, selection), rules, outputs, plan_options)


def run(
    plan: Plan,
    *,
    warn: Callable[[str], None] = lambda warning: None,
    note: Callable[[str], None] = lambda note: None,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[Report]:
    """Run a plan; a report an output. `warn` and `note` hear what only the content shows, before weights are read."""
    began = time.monotonic()
    with ThreadPoolExecutor(2) as beside:
        marks = beside.submit(fingerprints, plan.series.checkpoints)
        uneven = beside.submit(differing, plan.series.checkpoints, plan.not_averageable)
        # torch takes a second to import; what identifies the inputs is read meanwhile.
        from belay_cli.engine.stream import replay

        found = marks.result()
        notes = tuple(differing_notes(uneven.result()))
    warnings = tuple(w for w in identical_warnings(plan.series, found) if w not in plan.warnings)
    for warning in warnings:
        warn(warning)
    for text in notes:
        note(text)
    device, discarded = replay(plan, found, progress)
    seconds = time.monotonic() - began
    return [
        report(
            "average",
            plan,
            output,
            device=str(device),
            seconds=seconds,
            warnings=warnings,
            notes=notes,
            discarded=lost,
        )
        for output, lost in zip(plan.outputs, discarded, strict=True)
    ]


def _take(kind: Any, options: dict[str, Any], **more: Any) -> Any:
    """An instance of a dataclass from those options that are its fields, which leave `options`."""
    names = [field.name for field in fields(kind) if field.name in options]
    return kind(**{name: options.pop(name) for name in names}, **more)


def _globs(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
