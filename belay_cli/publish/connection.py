"""The Hub through its own client: what is there, in our words when it refuses, and never for ever.

The client retries uploads by itself, and neither look-ups nor commits. It waits without end unless it is told to.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from belay_cli.errors import PublishError, UsageError
from belay_cli.publish.bundle import Upload
from belay_cli.publish.hub_rules import is_repo_id
from belay_cli.storage.retry import LONGEST_WISH, Patience, Trouble, again, may_pass, wanted_wait

TIMEOUT_SECONDS = 30.0  # for the next byte of an answer, or for the server to take the next byte
# After a minute no look-up is tried again: the client has tried most of them already.
PATIENCE = Patience(tries=4, seconds=60.0, first_wait=2.0)
_SMALL_BYTES = 1 << 20
_AGAIN = "run the same command again"
_OFFICIAL = "https://huggingface.co"

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes, its name in git, the SHA-256 of its content if it is large, its bytes.

    `read` gets the bytes when it is called.
    """

    size: int
    blob_id: str
    sha256: str | None
    read: Callable[[], bytes]

    def holds(self, upload: Upload) -> bool:
        """Whether its content is that of the upload. A small file is read if its name in git is another one.

        Not every server that speaks the Hub's protocol keeps its files in git. Raises PublishError.
        """
        if self.size != upload.size:
            return False
        if self.sha256:
            return upload.sha256 == self.sha256
        small = self.size <= _SMALL_BYTES
        return upload.blob_id == self.blob_id or (small and hashlib.sha256(self.read()).hexdigest() == upload.sha256)


class RequestError(Exception):
    """A request that failed, and the error for people.

    `unclear` says that a commit may have been made all the same, by this request or by an earlier one.
    """

    def __init__(self, error: PublishError, *, unclear: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.unclear = error, unclear


class PassingError(RequestError, Trouble):
    """One that another try may mend, after the seconds that the server asked for."""

    def __init__(self, error: PublishError, wait: float = 0.0) -> None:
        Trouble.__init__(self, str(error), wait=wait)
        self.error, self.unclear = error, True


class Hub:
    """One repository of models, as one token sees it."""

    def __init__(self, repo_id: str, token: str | None, *, progress: bool = False) -> None:
        """`progress` lets the client draw its bars. Raises UsageError if the name cannot be one."""
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars

        _never_wait_for_ever(huggingface_hub)
        huggingface_hub.logging.set_verbosity(logging.ERROR)  # what it retries is no news
        if not progress:
            disable_progress_bars()
        self.token = token or huggingface_hub.get_token()
        if self.token and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise _bad_token(huggingface_hub.constants.ENDPOINT)
        self.repo_id = repo_id
        self.api = huggingface_hub.HfApi(token=self.token or False, library_name="belay")
        self.url = f"{self.api.endpoint}/{repo_id}"
        if not is_repo_id(repo_id):
            raise UsageError(f"{repo_id!r} is no name of a repository", hint="such as ORG/NAME")

    def need_token(self) -> None:
        """Raise PublishError if there is no token at all."""
        if not self.token:
            raise PublishError("there is no Hugging Face token", hint="hf auth login, or set HF_TOKEN, or give --token")

    def head(self, revision: str) -> tuple[str | None, bool] | None:
        """The commit of a revision and whether the repository is private; None if there is no such repository.

        The commit is None if the repository is there and the revision is not.
        """
        errors = _hub_errors()

        def ask() -> tuple[str | None, bool] | None:
            try:
                try:
                    info = self.api.repo_info(self.repo_id, revision=revision, timeout=TIMEOUT_SECONDS)
                    return info.sha, bool(info.private)
                except errors.RevisionNotFoundError:
                    info = self.api.repo_info(self.repo_id, timeout=TIMEOUT_SECONDS)
                    return None, bool(info.private)
            except errors.RepositoryNotFoundError as error:
                if getattr(error.response, "status_code", 404) == 401 and self.token:
                    raise _bad_token(self.api.endpoint) from error
                return None

        return self.retrying(ask)

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """Every file of a revision by its path."""
        from huggingface_hub.hf_api import RepoFile

        def ask() -> dict[str, RemoteFile]:
            return {
                entry.path: RemoteFile(
                    entry.size,
                    entry.blob_id,
                    entry.lfs.sha256 if entry.lfs else None,
                    partial(self._read, entry.path, revision),
                )
                for entry in self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
                if isinstance(entry, RepoFile)
            }

        return self.retrying(ask)

    def _read(self, path: str, revision: str) -> bytes:
        def ask() -> bytes:
            with tempfile.TemporaryDirectory() as directory:
                found = self.api.hf_hub_download(self.repo_id, path, revision=revision, local_dir=directory)
                return Path(found).read_bytes()

        return self.retrying(ask)

    def pull_requests(self) -> list[str]:
        """The refs of all pull requests, newest first."""

        def ask() -> list[str]:
            refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True).pull_requests or []
            numbers = [int(ref.ref.rpartition("/")[2]) for ref in refs if ref.ref.rpartition("/")[2].isdecimal()]
            return [f"refs/pr/{number}" for number in sorted(numbers, reverse=True)]

        return self.retrying(ask)

    def commits_since(self, parent: str | None, revision: str) -> list[str]:
        """The ids of the commits of a revision that came after `parent`, newest first."""

        def ask() -> list[str]:
            ids: list[str] = []
            with contextlib.suppress(_hub_errors().RevisionNotFoundError):  # an empty repository
                for commit in self.api.list_repo_commits(self.repo_id, revision=revision):
                    if commit.commit_id == parent:
                        break
                    ids.append(commit.commit_id)
            return ids

        return self.retrying(ask)

    def create_repo(self, private: bool) -> None:
        """Create the repository, unless somebody did meanwhile."""
        self.retrying(lambda: self.api.create_repo(self.repo_id, private=private or None, exist_ok=True))

    def create_branch(self, name: str, commit: str | None) -> None:
        """Create a branch at a commit (None: at the head of main), unless somebody did meanwhile."""
        self.retrying(lambda: self.api.create_branch(self.repo_id, branch=name, revision=commit, exist_ok=True))

    def commit(self, operations: list[Any], **options: Any) -> Any:
        """The uploads, then one request for one commit. Raises RequestError; it may be made all the same."""
        with _xet_at_home_only(self.api.endpoint):
            return self._in_words(lambda: self.api.create_commit(self.repo_id, operations, **options))

    def retrying(self, ask: Callable[[], T]) -> T:
        """Ask again while that may help. Raises PublishError. Only for what may be asked twice."""
        try:
            return again(lambda: self._in_words(ask), PATIENCE)
        except RequestError as failed:
            raise failed.error from failed

    def _in_words(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except PublishError as error:
            raise RequestError(error) from error
        except (_hub_errors().HfHubHTTPError, _transport_error(), OSError, RuntimeError, ValueError) as error:
            raise self._failure(error) or error from error

    def _failure(self, error: BaseException) -> RequestError | None:
        errors, where = _hub_errors(), self.api.endpoint
        while isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__  # how the client wraps a failed upload
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return RequestError(PublishError("HF_HUB_OFFLINE is set, so the Hub is not asked"))
        if isinstance(error, errors.HfHubHTTPError) or status is not None:
            return self._refused(error, status or 0, response)
        if isinstance(error, (_transport_error(), ConnectionError, TimeoutError)):
            timed_out = "timeout" in type(error).__name__.lower()
            what = f"did not answer for {TIMEOUT_SECONDS:.0f} s" if timed_out else "cannot be reached"
            return PassingError(PublishError(f"{where} {what}", hint=_AGAIN))
        if isinstance(error, json.JSONDecodeError):  # something between here and the Hub answers in its place
            return PassingError(PublishError(f"{where} did not answer in JSON", hint=_AGAIN))
        return None

    def _refused(self, error: BaseException, status: int, response: Any) -> RequestError:
        said = self._redacted(getattr(error, "server_message", None) or f"status {status}")
        if status == 401:
            return RequestError(_bad_token(self.api.endpoint))
        if status == 403:
            hint = f"it needs write access: a token of that kind is made at {self.api.endpoint}/settings/tokens"
            return RequestError(PublishError(f"the token may not write to {self.repo_id}", hint=hint))
        if status == 404:
            hint = "is its name right, and may the token see it?"
            return RequestError(PublishError(f"{self.url} is not there: {said}", hint=hint))
        if status in (409, 412):
            return RequestError(somebody_else(self.repo_id), unclear=True)
        what = f"{self.api.endpoint} " + ("has had too many requests" if status == 429 else f"failed with {said}")
        if not may_pass(status):
            return RequestError(PublishError(what, hint="see what the server says; --debug shows more"))
        wait = wanted_wait(response.headers)
        if wait > LONGEST_WISH:
            return RequestError(PublishError(what, hint=f"try again in {wait:.0f} s"))
        return PassingError(PublishError(what, hint=_AGAIN), wait)

    def _redacted(self, text: str) -> str:
        line = " ".join(text.split())[:200]
        return line.replace(self.token, "…") if self.token else line


def somebody_else(repo_id: str) -> PublishError:
    """The error that what was looked at is no longer what is there."""
    return PublishError(
        f"somebody else changed {repo_id} meanwhile; nothing was committed",
        hint="look at what is there now, and run the command again",
    )


def _bad_token(endpoint: str) -> PublishError:
    return PublishError(
        "the token is not valid, or has expired",
        hint=f"make a new one at {endpoint}/settings/tokens, then hf auth login, HF_TOKEN or --token",
    )


def _hub_errors() -> Any:
    return importlib.import_module("huggingface_hub.errors")


def _transport_error() -> type[BaseException]:
    """The class of all errors of the connection, in the HTTP library that the client is built on."""
    from huggingface_hub.utils._http import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    found: type[BaseException] = library.TransportError
    return found


def _bound(request: Any) -> None:
    """Give a request that would wait for ever a limit."""
    timeout = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: TIMEOUT_SECONDS if timeout.get(name) is None else timeout[name]
        for name in ("connect", "read", "write", "pool")
    }


def _never_wait_for_ever(huggingface_hub: Any) -> None:
    before = huggingface_hub.get_session()
    hooks = {name: list(functions) for name, functions in before.event_hooks.items()}
    if _bound in hooks["request"]:
        return
    hooks["request"].append(_bound)
    kind = type(before)
    huggingface_hub.set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=None))


@contextmanager
def _xet_at_home_only(endpoint: str) -> Iterator[None]:
    """The client takes every server for one that speaks Xet; others than the Hub itself get plain LFS uploads."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = before or not endpoint.startswith(_OFFICIAL)
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
