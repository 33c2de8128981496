"""`belay average` and `belay plan`: the same options, the same plan; one of them runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from belay_cli import api
from belay_cli.cli import options as o
from belay_cli.console import Console
from belay_cli.plan import Plan
from belay_cli.report import report
from belay_cli.rules import RuleOptions


def average(
    checkpoints: o.Checkpoints,
    method: o.Method = "ema",
    half_life: o.HalfLife = None,
    decay: o.Decay = None,
    feedback: o.Feedback = None,
    curvature: o.Curvature = None,
    damping_ratio: o.DampingRatio = None,
    inertia: o.Inertia = None,
    debias: o.Debias = False,
    unit: o.Unit = "auto",
    order: o.Order = "step",
    from_step: o.FromStep = None,
    to_step: o.ToStep = None,
    every: o.Every = 1,
    allow_averages: o.AllowAverages = False,
    output: o.Output = None,
    dtype: o.Dtype = "same",
    average: o.Average = None,
    last: o.Last = None,
    drop: o.Drop = None,
    max_shard_size: o.MaxShardSize = None,
    overwrite: o.Overwrite = False,
    device: o.Device = "auto",
    threads: o.Threads = None,
    max_memory: o.MaxMemory = None,
    no_sync: o.NoSync = False,
    allow_nonfinite: o.AllowNonfinite = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Average the checkpoints of a training run.

    Reads the series once, in bounded memory, and writes the averaged weights as safetensors. A run
    directory stands for the checkpoints in it.

    Examples:

        belay average ckpts/*.safetensors
        belay average run/checkpoint-* -o run-ema --half-life 10%
        belay average run -m belay --half-life 2000steps --dtype bfloat16
    """
    _average(**locals())


def _with_options_of(other: Callable[..., None], without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes keywords the options of another command, less one."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(other, include_extras=True)
        parameters = inspect.signature(other).parameters.values()
        taken = [p.replace(annotation=hints[p.name]) for p in parameters if p.name != without]
        function.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in taken}
        return function

    return decorate


@_with_options_of(average, without="dry_run")
def plan(**options: Any) -> None:
    """Show what `belay average` would do with the same options.

    Reads headers only, no weight. What is wrong with the series or the options is said here already.

    Examples:

        belay plan ckpts/*.safetensors
        belay plan run --method belay --half-life 3checkpoints --json
    """
    _show("plan", **options)


def _average(dry_run: bool, **options: Any) -> None:
    if dry_run:
        _show("average", **options)
        return
    console, plan = _prepare(**options)
    console.show_plan(plan, result=False)
    with console.progress("Replaying", plan.data_read) as progress:
        (done,) = api.run(plan, warn=console.warn, progress=progress)
    console.finished(done)


def _show(command: str, **options: Any) -> None:
    console, plan = _prepare(**options)
    if options["json"]:
        console.json(report(command, plan, plan.outputs[0]).to_json())
    else:
        console.show_plan(plan, result=True)


def _prepare(
    json: bool,
    quiet: bool,
    debug: bool,
    checkpoints: list[str],
    output: str | None,
    no_sync: bool,
    **options: Any,
) -> tuple[Console, Plan]:
    rule = {name: options.pop(name) for name in list(options) if name in RuleOptions.__dataclass_fields__}
    globs = {name: options.pop(name) or () for name in ("average", "last", "drop")}
    plan = api.prepare(checkpoints, [RuleOptions(**rule)], [output], {**options, **globs, "sync": not no_sync})
    return Console(json=json, quiet=quiet), plan
