"""`belay push`: check an output, then publish it in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from belay_cli.api.push import published
from belay_cli.cli.screen import SummedUp
from belay_cli.options import Option
from belay_cli.publish.destination import Destination
from belay_cli.show import summary as summaries

Output = Annotated[Path, Option("What belay wrote: a file or a directory.", metavar="OUTPUT", argument=True)]
RepoId = Annotated[str, Option("A repository of models: ORG/NAME.", metavar="REPO_ID", argument=True)]
EvalResults = Annotated[
    Path | None, Option('Results for the card: {"accuracy": 0.96}, or what lm-evaluation-harness writes.')
]
Exclude = Annotated[tuple[str, ...], Option("Files of the output to leave out.", metavar="GLOB")]
DryRun = Annotated[bool, Option("List what would be uploaded and stop.")]


def push(
    output: Output,
    repo_id: RepoId,
    destination: Destination,
    screen: SummedUp,
    eval_results: EvalResults = None,
    exclude: Exclude = (),
    dry_run: DryRun = False,
) -> None:
    """Publish an average on the Hugging Face Hub, with a model card that says what it is.

    The output is checked first: it must be whole and as it was written. Then one commit holds all of it, or nothing
    is changed. What is there already is not uploaded again.

    Examples:

        belay push belay-average ORG/NAME --private
        belay push belay-average ORG/NAME --eval-results results.json --dry-run
    """
    console = screen.console()
    if screen.summary:
        summaries.ready(screen.summary)
    done = published(output, repo_id, destination, eval_results, exclude, console, dry_run=dry_run)
    if screen.summary:
        console.note(summaries.append(screen.summary, summaries.of_push(done)))
    console.published(done)
