"""`belay average` and `belay plan`: the same options, the same plan; one of them runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from belay_cli import api
from belay_cli.cli import options as o
from belay_cli.cli import summary as summaries
from belay_cli.cli.push import Publication
from belay_cli.console import Console
from belay_cli.errors import UsageError
from belay_cli.plan import Plan
from belay_cli.report import report
from belay_cli.rules import TITLES, RuleOptions


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
    subfolder: o.Subfolder = None,
    state_key: o.StateKey = None,
    source: o.Source = None,
    output: o.Output = None,
    dtype: o.Dtype = "same",
    average: o.Average = None,
    last: o.Last = None,
    drop: o.Drop = None,
    lora: o.Lora = None,
    lora_rank: o.LoraRank = None,
    max_shard_size: o.MaxShardSize = None,
    overwrite: o.Overwrite = False,
    device: o.Device = "auto",
    threads: o.Threads = None,
    max_memory: o.MaxMemory = None,
    no_sync: o.NoSync = False,
    allow_nonfinite: o.AllowNonfinite = False,
    push_to_hub: o.PushToHub = None,
    revision: o.Revision = None,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    commit_message: o.CommitMessage = None,
    commit_description: o.CommitDescription = None,
    token: o.Token = None,
    summary: o.Summary = None,
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


# What only a run that publishes takes; the names are those of Publication's parameters.
_OF_THE_HUB = ("revision", "private", "create_pr", "commit_message", "commit_description", "token")


def _with_options_of(
    other: Callable[..., None], *, without: Collection[str], plus: Mapping[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function that takes keywords the options of another command, less some, plus some that may be None."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(other, include_extras=True)
        parameters = inspect.signature(other).parameters.values()
        taken = [p.replace(annotation=hints[p.name]) for p in parameters if p.name not in without]
        taken += [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
            for name, annotation in plus.items()
        ]
        function.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in taken}
        return function

    return decorate


@_with_options_of(average, without=("dry_run", "push_to_hub", *_OF_THE_HUB, "summary"), plus={"plot": o.Plot})
def plan(plot: Path | None, **options: Any) -> None:
    """Show what `belay average` would do with the same options.

    Reads headers only, no weight. What is wrong with the series or the options is said here already.

    Examples:

        belay plan ckpts/*.safetensors
        belay plan run --method belay --half-life 3checkpoints --json
        belay plan run --half-life 10% --plot coefficients.png
    """
    console, plan = _prepare(**options)
    if plot is not None:
        _draw(console, plan, plot)  # first: if it fails, nothing has been printed as if all were well
    _show(console, "plan", plan, json=options["json"])


def _average(dry_run: bool, push_to_hub: str | None, summary: Path | None, **options: Any) -> None:
    of_the_hub = {name: options.pop(name) for name in _OF_THE_HUB}
    if push_to_hub is None and (given := [name for name, value in of_the_hub.items() if value]):
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --push-to-hub")
    console, plan = _prepare(**options)
    if dry_run:
        _show(console, "average", plan, json=options["json"])
        return
    publication = Publication(console, push_to_hub, **of_the_hub) if push_to_hub is not None else None
    if publication:
        publication.look()  # what is wrong there is said before the work
    if summary:
        summaries.ready(summary)
    console.show_plan(plan, result=False)
    with console.progress("Replaying", plan.data_read) as progress:
        (done,) = api.run(plan, warn=console.warn, note=console.note, progress=progress)
    if summary:
        summaries.append(summary, summaries.of_average(plan, done))
    published = None
    if publication:
        publication.look()  # a run may take hours, and the branch may have moved on
        published = publication.publish(plan.outputs[0].target.path)
    if summary and published:
        summaries.append(summary, summaries.of_push(published))
    console.finished(done, published)


def _show(console: Console, command: str, plan: Plan, *, json: bool) -> None:
    if json:
        console.json(report(command, plan, plan.outputs[0]).to_json())
    else:
        console.show_plan(plan, result=True)


def _draw(console: Console, plan: Plan, path: Path) -> None:
    """The weights as a picture; without matplotlib the table has said the same, and what to install is said."""
    from belay_cli.publish.pictures import draw_coefficients, have_matplotlib

    if not have_matplotlib():
        console.warn(f"{path} is not drawn: pictures take matplotlib; pip install 'belay-cli[plots]'")
        return
    (output,) = plan.outputs
    draw_coefficients(
        path,
        plan.series.ticks,
        output.coefficients.tolist(),
        unit=plan.series.unit,
        title=f"Weight of each checkpoint in the {TITLES[output.rule.method]}",
        mean_lag=output.summary.mean_lag,
    )


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
