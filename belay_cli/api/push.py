"""An output on the Hugging Face Hub, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from belay_cli.api.average import listener
from belay_cli.api.keywords import PathLike
from belay_cli.checkpoints.arguments import in_home
from belay_cli.publish.destination import Destination
from belay_cli.show.listener import Listener
from belay_cli.show.report import PushReport


def push(
    output: PathLike,
    repo_id: str,
    *,
    eval_results: PathLike | None = None,
    exclude: str | Sequence[str] = (),
    dry_run: bool = False,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | None = None,
    progress: bool = False,
) -> PushReport:
    """Check an output of belay and publish it with a model card: one commit holds all of it, or nothing is changed.

    eval_results: a JSON file of results for the card; exclude: globs of files to leave out; dry_run: say what would be
    uploaded and stop; the rest as `belay push` has it. Raises PublishError, CheckpointError or UsageError.
    """
    destination = Destination(
        revision=revision,
        private=private,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
    )
    globs = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    results = None if eval_results is None else Path(eval_results)
    return published(Path(output), repo_id, destination, results, globs, listener(progress), dry_run=dry_run)


def published(
    output: Path,
    repo_id: str,
    destination: Destination,
    eval_results: Path | None,
    exclude: Sequence[str],
    hears: Listener,
    *,
    dry_run: bool,
) -> PushReport:
    """The same, with a listener."""
    # The client of the Hub takes a fifth of a second to import, which no other command should wait for.
    from belay_cli.publish.publication import Publication, refuse_same

    output = in_home(output)
    refuse_same(output)
    publication = Publication(repo_id, destination, hears)
    publication.look(dry_run=dry_run)
    return publication.publish(output, eval_results, exclude, dry_run=dry_run)
