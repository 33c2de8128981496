"""State of the fake Hub, and who may see and write what."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from tests.fakes.hub.failures import Failure
from tests.fakes.hub.messages import BAD_TOKEN, NO_TOKEN, Refusal, Request
from tests.fakes.hub.store import GITATTRIBUTES, LFS_SUFFIXES, Blob, Commit, Repo


class Core:
    """State of the fake Hub, and who may see and write what. `HubServer` says what the options mean."""

    endpoint: str
    _storage: str  # the origin that LFS files come from, and go to

    def __init__(
        self,
        tokens: Mapping[str, str] | None = None,
        *,
        namespaces: Collection[str] = ("user", "org"),
        lfs_above: int = 5_000_000,
        multipart: int | None = None,
        page_size: int | None = None,
        redirect: bool = False,
        git_names: bool = True,
        initial_commit: bool = True,
        ignored: Collection[str] = (),
    ) -> None:
        self.first_files: dict[str, bytes] = {".gitattributes": GITATTRIBUTES}
        self.git_names, self.initial_commit, self.ignored = git_names, initial_commit, ignored
        self.tokens, self.namespaces = dict(tokens or {}), tuple(namespaces)
        self.lfs_above, self.multipart, self.page_size, self.redirect = lfs_above, multipart, page_size, redirect
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.errors: list[str] = []
        self.failures: list[Failure] = []
        self.closing = threading.Event()
        self._swapped: dict[tuple[str, str], Blob] = {}
        self._offered: dict[tuple[str, str], dict[int, bytes]] = {}  # by repo and oid, the parts that have arrived

    def make_repo(
        self, name: str, revisions: Mapping[str, Mapping[str, bytes]] | None = None, *, private: bool = False
    ) -> Repo:
        """A repo that has exactly these files at these branches, each one commit after the first."""
        with self.lock:
            repo = self.repos[name] = Repo(name, private, self)
            for revision, files in (revisions or {}).items():
                repo.write(files, revision, message=f"files of {revision}", whole=True)
            return repo

    def is_lfs(self, path: str, size: int) -> bool:
        return path.endswith(LFS_SUFFIXES) or size > self.lfs_above

    def _visible(self, repo: Repo, commit: Commit) -> bool:
        """Whether clients may know of a commit: not of the first one where repos are said to begin without any."""
        return self.initial_commit or commit is not repo.first

    def _name(self, blob: Blob) -> str:
        """What git calls a file, or, of a server without git, something else that is as long."""
        return blob.oid if self.git_names else blob.sha256[:40]

    # Who may do what

    def _role(self, request: Request) -> str | None:
        authorization = request.headers.get("Authorization")
        if authorization is None:
            return None
        role = self.tokens.get(authorization.removeprefix("Bearer "))
        if role == "expired":
            raise Refusal(401, 'User Access Token "belay" is expired')
        if role not in ("read", "write"):
            raise Refusal(401, BAD_TOKEN)
        return role

    def _readable(self, request: Request, name: str) -> Repo:
        role, repo = self._role(request), self.repos.get(name)
        if repo is None or (repo.private and (role is None or name.partition("/")[0] not in self.namespaces)):
            raise Refusal(401, NO_TOKEN) if role is None else Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def _writable(self, request: Request, name: str, pull_request: bool = False) -> Repo:
        repo, role = self._readable(request, name), self._role(request)
        if role is None:
            raise Refusal(401, NO_TOKEN)
        if role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if name.partition("/")[0] not in self.namespaces and not pull_request:
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo
