"""`belay push`: check an output, then publish it in one commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.checkpoints.weights import inside
from belay_cli.cli import options as o
from belay_cli.cli import summary as summaries
from belay_cli.console import Console
from belay_cli.errors import PublishError
from belay_cli.plan.buffers import available_cores
from belay_cli.provenance import DOCUMENT
from belay_cli.verify import HELD, check_alone, whole_record

if TYPE_CHECKING:
    from belay_cli.publish.bundle import Upload
    from belay_cli.publish.connection import RemoteFile
    from belay_cli.publish.push import Changes

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="What belay wrote: a file or a directory.")]
RepoId = Annotated[str, typer.Argument(metavar="REPO_ID", help="A repository of models: ORG/NAME.")]
EvalResults = Annotated[
    Path | None,
    typer.Option(
        "--eval-results",
        metavar="FILE",
        help='Results for the card: {"accuracy": 0.96}, or what lm-evaluation-harness writes.',
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Files of the output to leave out.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded and stop.", show_default=False)]


def push(
    output: Output,
    repo_id: RepoId,
    eval_results: EvalResults = None,
    exclude: Exclude = None,
    dry_run: DryRun = False,
    revision: o.Revision = None,
    private: o.Private = False,
    create_pr: o.CreatePr = False,
    commit_message: o.CommitMessage = None,
    commit_description: o.CommitDescription = None,
    token: o.Token = None,
    summary: o.Summary = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Publish an average on the Hugging Face Hub, with a model card that says what it is.

    The output is checked first: it must be whole and as it was written. Then one commit holds all of it, or nothing
    is changed. What is there already is not uploaded again.

    Examples:

        belay push belay-average ORG/NAME --private
        belay push belay-average ORG/NAME --eval-results results.json --dry-run
    """
    console = Console(json=json, quiet=quiet)
    publication = Publication(
        console,
        repo_id,
        token=token,
        revision=revision,
        private=private,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
    )
    publication.look(dry_run)
    done = publication.publish(Path(output), eval_results, exclude or (), dry_run)
    if summary:
        summaries.append(summary, summaries.of_push(done))
    console.published(done)


class Publication:
    """One destination on the Hub: looked at, then written to."""

    def __init__(
        self,
        console: Console,
        repo_id: str,
        *,
        token: str | None,
        revision: str | None,
        private: bool,
        create_pr: bool,
        commit_message: str | None,
        commit_description: str | None,
    ) -> None:
        # The client of the Hub takes a fifth of a second to import, which no other command should wait for.
        from belay_cli.publish.connection import Hub
        from belay_cli.publish.push import MAIN, MESSAGE, Destination

        self._console = console
        self._destination = Destination(
            revision=revision or MAIN,
            private=private,
            create_pr=create_pr,
            message=commit_message or MESSAGE,
            description=commit_description,
        )
        self._hub = Hub(repo_id, token, progress=console.animated)

    def look(self, dry_run: bool = False) -> None:
        """See what is there, so that a wrong name or token is known before any work. Raises PublishError."""
        from belay_cli.publish.push import NOWHERE, look

        if not dry_run:
            self._hub.need_token()
        try:
            self._remote = look(self._hub, self._destination)
        except PublishError as error:
            if not dry_run:
                raise
            self._console.note(f"the Hub could not be asked what is there: {error}")
            self._remote = NOWHERE

    def publish(
        self, output: Path, eval_results: Path | None = None, exclude: Sequence[str] = (), dry_run: bool = False
    ) -> dict[str, Any]:
        """Check the output and commit it. Returns what was done, or would be."""
        from belay_cli.publish import push as pushing
        from belay_cli.publish.card import README
        from belay_cli.publish.contents import contents
        from belay_cli.publish.results import read_eval_results

        results = read_eval_results(eval_results) if eval_results else None  # before the long part
        document, weights = self._checked(output)
        remote, hub = self._remote, self._hub
        card = remote.files.get(README)
        uploads, notes = contents(
            output,
            document,
            weights=weights,
            repo_id=hub.repo_id,
            published_card=_published(card) if card else None,
            eval_results=results,
            exclude=exclude,
        )
        for note in notes:
            self._console.note(note)
        changes = pushing.changes(uploads, remote.files)
        done: dict[str, Any] = {
            "command": "push",
            "output": str(output),
            "repo_id": hub.repo_id,
            "revision": self._destination.revision,
            "files": _files(changes, remote.files),
        }
        there = hub.url if changes.nothing else self._pull_request(uploads)
        if there:
            done["files"] = _files(pushing.Changes((), tuple(uploads), ()), {})
        if dry_run or there:
            done |= {"status": "unchanged" if there else "planned", "url": there or hub.url}
            return done
        url = pushing.push(hub, self._destination, remote, uploads, self._console.note)
        done |= {"status": "committed", "url": url}
        return done

    def _checked(self, output: Path) -> tuple[dict[str, Any], list[str]]:
        """The record of an output that is whole and as it was written, and the names of the files that make it up.

        Raises PublishError if it is not.
        """
        with self._console.share("Checking") as progress:
            average, records, checks = check_alone(output, available_cores(), progress)
        for check in checks:
            if check.status != HELD:
                raise PublishError(
                    f"is not published: {check.name} {check.status}: {check.detail}",
                    file=output,
                    tensor=check.tensor,
                    hint="make it again; belay verify shows more",
                )
        weights = [name for name, _ in average.weights.named_files()]
        if average.directory is not None:
            weights.append(DOCUMENT)
        for folder, part in average.weights.components.items():
            if len(part.files) > 1:
                weights.append(inside(folder, part.stem + INDEX_SUFFIX))
        return whole_record(average, records), weights

    def _pull_request(self, uploads: Sequence[Upload]) -> str | None:
        """The URL of a pull request that holds all of it already, if that is what is asked for."""
        from belay_cli.publish.push import landed

        if not (self._destination.create_pr and self._remote.exists):
            return None
        return landed(self._hub, self._destination, self._remote.parent, uploads)


def _published(card: RemoteFile) -> str:
    try:
        return card.read().decode()
    except UnicodeDecodeError as error:
        raise PublishError("the card on the Hub is not text in UTF-8", hint="mend it there, or delete it") from error


def _files(changes: Changes, there: Collection[str]) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = [
        {"path": u.name, "bytes": u.size, "action": "replace" if u.name in there else "add"} for u in changes.add
    ]
    files += [{"path": u.name, "bytes": u.size, "action": "keep"} for u in changes.unchanged]
    files += [{"path": name, "bytes": 0, "action": "delete"} for name in changes.delete]
    return sorted(files, key=lambda file: file["path"])
