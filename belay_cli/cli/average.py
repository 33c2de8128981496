"""`belay average` and `belay plan`: the same options, the same plan; one of them runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from belay_cli.api import average as averaging
from belay_cli.api.estimate import estimated
from belay_cli.api.report import report
from belay_cli.checkpoints import Selection
from belay_cli.checkpoints.fingerprint import Fingerprints
from belay_cli.cli.screen import Checkpoints, Screen, SummedUp
from belay_cli.cli.together import together
from belay_cli.engine.ranks import Ranks
from belay_cli.errors import UsageError
from belay_cli.options import Option, flag, given
from belay_cli.planning import Plan, PlanOptions
from belay_cli.publish.destination import Destination
from belay_cli.rules import Rule
from belay_cli.show import pictures
from belay_cli.show import summary as summaries
from belay_cli.show.console import Console

if TYPE_CHECKING:
    from belay_cli.publish.publication import Publication

Output = Annotated[
    str | None,
    Option(
        "NAME.safetensors, a directory, or NAME.pt for --format same. Default: belay-average, with .safetensors if the "
        "inputs are files.",
        metavar="PATH",
        short="-o",
        panel="The output",
    ),
]
DryRun = Annotated[bool, Option("Show the plan and stop.", panel="The run")]
Plot = Annotated[Path | None, Option("Draw the weights into this .png or .svg.", panel="What is shown")]


@dataclass(frozen=True)
class Publishing(Destination):
    """A destination, if the average is published right away."""

    push_to_hub: Annotated[str | None, Option("Publish the average, as belay push does.", "ORG/NAME")] = None

    def __post_init__(self) -> None:
        """Refuse what says how to publish where nothing is published."""
        super().__post_init__()
        if self.push_to_hub is None and (without := next(given(self), None)):
            raise UsageError(f"{flag(without)} goes with --push-to-hub")


def average(
    checkpoints: Checkpoints,
    rule: Rule,
    selection: Selection,
    options: PlanOptions,
    publishing: Publishing,
    screen: SummedUp,
    output: Output = None,
    dry_run: DryRun = False,
) -> None:
    """Average the checkpoints of a training run.

    Reads the series once, in bounded memory, and writes the averaged weights as safetensors. A run
    directory stands for the checkpoints in it.

    Examples:

        belay average ckpts/*.safetensors
        belay average run/checkpoint-* -o run-ema --half-life 10%
        belay average run -m belay --half-life 2000steps --dtype bfloat16
    """
    with together(screen) as ranks:
        if ranks.number == 0:
            if options.threads is None:
                options = replace(options, threads=ranks.threads)
            _average(checkpoints, rule, selection, options, publishing, screen, Way(output, dry_run, ranks))
        elif not dry_run:
            averaging.assist(ranks)


class Way(NamedTuple):
    """Where an average goes, whether only to look, and in which processes."""

    output: str | None
    dry_run: bool
    ranks: Ranks


def _average(
    checkpoints: list[str],
    rule: Rule,
    selection: Selection,
    options: PlanOptions,
    publishing: Publishing,
    screen: SummedUp,
    way: Way,
) -> None:
    output, dry_run, ranks = way
    console, summary = screen.console(), screen.summary
    if summary:
        summaries.ready(summary)
    if dry_run:
        plan = averaging.prepare(checkpoints, [rule], [output], selection, options, console, look_only=True)
        _show(console, "average", plan, screen)
        return
    with Fingerprints() as marks:
        plan = averaging.prepare(checkpoints, [rule], [output], selection, options, console, marks=marks)
        _keep_apart(plan, screen)
        if plan.is_same and publishing.push_to_hub is not None:
            raise UsageError(
                "--push-to-hub does not go with --format same: what is published is safetensors",
                hint="leave one of them out",
            )
        publication = _publication(publishing, console)
        if publication:
            publication.look()  # what is wrong there is said before the work
        estimate = None if screen.quiet or ranks.count > 1 else estimated(plan)
        console.show_plan(plan, estimate, result=False)
        (done,) = averaging.run(plan, console, marks, ranks, estimate)
    if summary:
        console.note(summaries.append(summary, summaries.of_average(plan, done)))
    published = None
    if publication:
        publication.look()  # a run may take hours, and the branch may have moved on
        published = publication.publish(Path(done.output))
    if summary and published:
        console.note(summaries.append(summary, summaries.of_push(published)))
    console.finished(done, published)


def plan(
    checkpoints: Checkpoints,
    rule: Rule,
    selection: Selection,
    options: PlanOptions,
    screen: Screen,
    output: Output = None,
    plot: Plot = None,
) -> None:
    """Show what `belay average` would do with the same options.

    Decided from headers alone. What is wrong with the series or the options is said here already. How
    long it takes here is told by a sample: of a large series at most 320 MB are read.

    Examples:

        belay plan ckpts/*.safetensors
        belay plan run --method belay --half-life 3checkpoints --json
        belay plan run --half-life 10% --plot coefficients.png
    """
    console = screen.console()
    if plot is not None:
        pictures.ready(plot, overwrite=options.overwrite)
    made = averaging.prepare(checkpoints, [rule], [output], selection, options, console, look_only=True)
    if plot is not None:
        _draw(console, made, plot)  # first: if it fails, nothing has been printed as if all were well
    _show(console, "plan", made, screen)


def _keep_apart(plan: Plan, screen: SummedUp) -> None:
    """Raises UsageError if what is written about the output would be written into it."""
    (target,) = (output.target for output in plan.outputs)
    for name in ("log_file", "summary"):
        path: Path | None = getattr(screen, name)
        if path and target and path.resolve().is_relative_to(target.path.resolve()):
            raise UsageError(f"{flag(name)} {path} is in the output", hint=f"give another file: {flag(name)}")


def _publication(publishing: Publishing, console: Console) -> Publication | None:
    if publishing.push_to_hub is None:
        return None
    # The client of the Hub takes a fifth of a second to import, which no other command should wait for.
    from belay_cli.publish.publication import Publication

    return Publication(publishing.push_to_hub, publishing, console)


def _show(console: Console, command: str, plan: Plan, screen: Screen) -> None:
    estimate = None if screen.quiet else estimated(plan)
    if screen.json:
        console.json(report(command, plan, plan.outputs[0], estimate=estimate).to_json())
    else:
        console.show_plan(plan, estimate, result=True)


def _draw(console: Console, plan: Plan, path: Path) -> None:
    """The weights as a picture; without matplotlib the table has said the same, and what to install is said."""
    if not pictures.have_matplotlib():
        console.warn(f"{path} is not drawn: pictures take matplotlib; pip install matplotlib")
        return
    (output,) = plan.outputs
    pictures.draw_coefficients(
        path,
        plan.series.ticks,
        output.coefficients.tolist(),
        unit=plan.series.unit,
        title=f"Weight of each checkpoint in the {output.rule.title}",
        mean_lag=output.summary.mean_lag,
    )
    console.note(f"wrote {path}")
