"""An output to the Hub: one commit with all of it, or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from belay_cli.checkpoints.directory import INDEX_SUFFIX
from belay_cli.errors import PublishError
from belay_cli.formats import SUFFIX
from belay_cli.publish.bundle import Upload
from belay_cli.publish.connection import PATIENCE, Hub, PassingError, RemoteFile, RequestError, somebody_else
from belay_cli.publish.destination import MAIN, Destination


@dataclass(frozen=True)
class Remote:
    """The destination before anything is changed.

    `parent` is the commit to build on, None where there is no repository, or nothing in it; `files` are those in it. A
    branch that is not there begins at the head of main.
    """

    exists: bool
    parent: str | None
    files: Mapping[str, RemoteFile]
    has_revision: bool = True


NOWHERE = Remote(False, None, {})


@dataclass(frozen=True)
class Changes:
    """What a push changes: uploads that are not there yet, uploads that are, and files that have to go."""

    add: tuple[Upload, ...]
    unchanged: tuple[Upload, ...]
    delete: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether the destination holds all of it already."""
        return not (self.add or self.delete)


def look(hub: Hub, destination: Destination) -> Remote:
    """Ask the Hub what is there. Raises PublishError; a repository that is public although --private is one."""
    found = hub.head(destination.branch)
    if found is None:
        return NOWHERE
    head, private = found
    if destination.private and not private:
        raise PublishError(
            f"{hub.url} exists and is public, and --private makes new repositories private only",
            hint="change it in the settings of the repository, or leave --private out",
        )
    if head is None and destination.create_pr:
        raise PublishError(f"{hub.url} has no revision {destination.branch} to make a pull request to")
    has_revision = head is not None or destination.branch == MAIN
    if not has_revision:
        main = hub.head(MAIN)
        head = main[0] if main else None
    return Remote(True, head, hub.files(head) if head else {}, has_revision)


def changes(uploads: Sequence[Upload], remote: Mapping[str, RemoteFile]) -> Changes:
    """Compare by content. Weights of an older push that would be taken for part of this one have to go."""
    there = [upload for upload in uploads if upload.name in remote and remote[upload.name].holds(upload)]
    names = {upload.name for upload in uploads}
    stale = sorted(name for name in remote if name not in names and _same_weights(name, names))
    return Changes(tuple(upload for upload in uploads if upload not in there), tuple(there), tuple(stale))


def _same_weights(name: str, uploaded: set[str]) -> bool:
    """Whether a loader that looks for the uploaded weights could find this file in their place."""
    stem = _weights_stem(name)
    return stem is not None and any(_weights_stem(other) == stem for other in uploaded)


def _weights_stem(name: str) -> str | None:
    """Directory and stem of a weight file or an index, shard numbers left out."""
    path = PurePosixPath(name)
    for suffix in (INDEX_SUFFIX, SUFFIX):
        if path.name.endswith(suffix):
            return str(path.parent / re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(suffix)))
    return None


def push(
    hub: Hub,
    destination: Destination,
    remote: Remote,
    uploads: Sequence[Upload],
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Make the one commit, creating the repository or the branch first if there is none. Returns its URL.

    The commit names its parent, so of two pushes at once one is refused; and when an answer is lost, the Hub is
    asked what became of it before anything is tried again. Raises PublishError.
    """
    hub.need_token()
    parent = _prepare(hub, destination, remote)
    for attempt in range(1, PATIENCE.tries + 1):
        wanted = changes(uploads, hub.files(parent) if parent else {})
        try:
            done = hub.commit(_operations(wanted), **_options(destination, parent))
        except RequestError as failed:
            if failed.unclear and (url := landed(hub, destination, parent, uploads)):
                return url
            if not isinstance(failed, PassingError) or attempt == PATIENCE.tries:
                raise failed.error from failed
            say(f"{failed.error}; trying again")
            PATIENCE.wait(attempt, failed.wait)
            continue
        url = str(done.pr_url or done.commit_url)
        try:
            left = changes(uploads, hub.files(done.pr_revision or done.oid))
        except PublishError as error:
            say(f"{url} was made, and what it holds could not be looked at: {error}")
            return url
        if left.add:
            missing = ", ".join(upload.name for upload in left.add)
            hint = "is it in the repository's .gitignore?"
            raise PublishError(f"the commit was made, but {missing} did not arrive in {hub.url}", hint=hint)
        if parent is not None or not left.delete:
            return url
        parent = done.oid  # two first commits at once in an empty repository, which no parent keeps apart
    raise PublishError(f"{hub.url} holds weights of somebody else too", hint="run the same command again")


def _prepare(hub: Hub, destination: Destination, remote: Remote) -> str | None:
    """The commit to build on, in a repository and a branch that are made if there are none.

    Raises PublishError if somebody else filled the repository since it was looked at: the card does not know of that.
    """
    parent = remote.parent
    if not remote.exists:
        hub.create_repo(destination.private)
        found = hub.head(MAIN)
        parent = found[0] if found else None
        if len(hub.commits_since(None, MAIN)) > 1:  # one is the Hub's own
            raise somebody_else(hub.repo_id)
    if destination.branch != MAIN and not (remote.exists and remote.has_revision):
        hub.create_branch(destination.branch, parent)
    return parent


def landed(hub: Hub, destination: Destination, parent: str | None, uploads: Sequence[Upload]) -> str | None:
    """The URL of a commit after `parent`, or of a pull request, that holds all uploads; None if there is none."""
    if destination.create_pr:
        for ref in hub.pull_requests():
            if changes(uploads, hub.files(ref)).nothing:
                return f"{hub.url}/discussions/{ref.rpartition('/')[2]}"
        return None
    for commit in hub.commits_since(parent, destination.branch):
        if changes(uploads, hub.files(commit)).nothing:
            return f"{hub.url}/commit/{commit}"
    return None


def _operations(wanted: Changes) -> list[Any]:
    """New objects for every try: the client remembers in them what it has sent."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(name) for name in wanted.delete]
    for upload in wanted.add:
        operation = CommitOperationAdd(upload.name, upload.content)
        operation.upload_info.sha256 = bytes.fromhex(upload.sha256)  # else the client reads every file once more
        operations.append(operation)
    return operations


def _options(destination: Destination, parent: str | None) -> dict[str, Any]:
    return {
        "commit_message": destination.message,
        "commit_description": destination.commit_description,
        "revision": destination.branch,
        "create_pr": destination.create_pr,
        "parent_commit": parent,
    }
