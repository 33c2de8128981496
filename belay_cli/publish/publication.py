"""One publication: the destination looked at, the output checked, one commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.checkpoints.weights import inside
from belay_cli.errors import PublishError
from belay_cli.publish import push as pushing
from belay_cli.publish.bundle import Upload
from belay_cli.publish.card import README
from belay_cli.publish.connection import Hub, RemoteFile
from belay_cli.publish.contents import contents
from belay_cli.publish.destination import Destination
from belay_cli.publish.push import NOWHERE, Changes, landed, look
from belay_cli.publish.results import read_eval_results
from belay_cli.record import DOCUMENT, Record, read_beside
from belay_cli.show.listener import Listener
from belay_cli.show.report import FileAction, PushReport
from belay_cli.storage.files import available_cores
from belay_cli.verification import FAILED, check_alone, whole_record


class Publication:
    """One destination on the Hub: looked at, then written to. The listener hears notes and how far it is."""

    def __init__(self, repo_id: str, destination: Destination, listener: Listener) -> None:
        self._destination = destination
        self._listener = listener
        self._hub = Hub(repo_id, destination.token, progress=listener.animated)

    def look(self, *, dry_run: bool = False) -> None:
        """See what is there, so that a wrong name or token is known before any work. Raises PublishError."""
        if not dry_run:
            self._hub.need_token()
        try:
            self._remote = look(self._hub, self._destination)
        except PublishError as error:
            if not dry_run:
                raise
            self._listener.note(f"the Hub could not be asked what is there: {error}")
            self._remote = NOWHERE

    def publish(
        self, output: Path, eval_results: Path | None = None, exclude: Sequence[str] = (), *, dry_run: bool = False
    ) -> PushReport:
        """Check the output and commit it. Raises PublishError or CheckpointError."""
        results = read_eval_results(eval_results) if eval_results else None  # before the long part
        record, weights = self._checked(output)
        remote, hub = self._remote, self._hub
        card = remote.files.get(README)
        uploads, notes = contents(
            output,
            record,
            weights=weights,
            repo_id=hub.repo_id,
            published_card=_published(card) if card else None,
            eval_results=results,
            exclude=exclude,
        )
        for note in notes:
            self._listener.note(note)
        changes = pushing.changes(uploads, remote.files)
        there = hub.url if changes.nothing else self._pull_request(uploads)
        if there:
            files = _files(pushing.Changes((), tuple(uploads), ()), {})
            return self._report(output, files, "unchanged", there)
        files = _files(changes, remote.files)
        if dry_run:
            return self._report(output, files, "planned", hub.url)
        url = pushing.push(hub, self._destination, remote, uploads, self._listener.note)
        return self._report(output, files, "committed", url)

    def _report(self, output: Path, files: list[FileAction], status: str, url: str) -> PushReport:
        return PushReport(
            command="push",
            output=str(output),
            repo_id=self._hub.repo_id,
            revision=self._destination.branch,
            files=files,
            status=status,
            url=url,
        )

    def _checked(self, output: Path) -> tuple[Record, list[str]]:
        """The record of an output that is whole and as it was written, and the names of the files that make it up.

        Whoever publishes it may have changed a configuration or a tokenizer on purpose, which is said. Raises
        PublishError for anything else.
        """
        with self._listener.share("Checking") as progress:
            average, records, checks = check_alone(output, available_cores(), progress)
        for check in checks:
            if check.status == FAILED and check.name == "files":
                self._listener.note(f"{check.detail}; belay verify will say so of what is published")
            elif check.status == FAILED:
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
        return whole_record(records), weights

    def _pull_request(self, uploads: Sequence[Upload]) -> str | None:
        """The URL of a pull request that holds all of it already, if that is what is asked for."""
        if not (self._destination.create_pr and self._remote.exists):
            return None
        return landed(self._hub, self._destination, self._remote.parent, uploads)


def refuse_same(output: Path) -> None:
    """Raise PublishError for an output in the files of its last checkpoint: with its optimizer, and no safetensors."""
    if read_beside(output) is not None:
        raise PublishError(
            "has the files of its last checkpoint, to train on from; what is published is safetensors",
            file=output,
            hint="make the average once more without --format same, and publish that",
        )


def _published(card: RemoteFile) -> str:
    try:
        return card.read().decode()
    except UnicodeDecodeError as error:
        raise PublishError("the card on the Hub is not text in UTF-8", hint="mend it there, or delete it") from error


def _files(changes: Changes, there: Collection[str]) -> list[FileAction]:
    files = [FileAction(u.name, u.size, "replace" if u.name in there else "add") for u in changes.add]
    files += [FileAction(u.name, u.size, "keep") for u in changes.unchanged]
    files += [FileAction(name, 0, "delete") for name in changes.delete]
    return sorted(files, key=lambda file: file.path)
