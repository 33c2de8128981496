"""A local server that speaks the Hugging Face Hub's HTTP protocol to the real client, and fails on demand.

    with HubServer(tokens={"hf_w": "write", "hf_r": "read"}) as server, hub_client(server, tmp_path, "hf_w"):
        repo = server.make_repo("org/model", {"main": {"config.json": b"{}"}, "step1000": {...}})
        server.fail("POST .*/commit/", "cut after")
        HfApi().create_commit(...)
        assert repo.commits("main")[0].files["config.json"] == b"{}"

Only model repos, and no xet: the client asks no server whether it has xet but uses it wherever `hf_xet` is installed
and HF_HUB_DISABLE_XET is not set, so `hub_client` and `environment` set it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import random
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import pytest

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
BAD_TOKEN = "Invalid credentials in Authorization header"
NO_TOKEN = "Invalid username or password."
CUT = ("refused", "cut before", "cut during", "cut after", "stall", "short")
HOWS = (*CUT, "short range", "ignore ranges", "slow", "proxy")
MESSAGES = {429: "Rate limited", 500: "Internal Error - We're working hard to fix this as soon as possible!"}
FIRST_DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Blob:
    """The content of a file: known to git by its own sha1, or by that of an LFS pointer that holds its sha256."""

    def __init__(self, data: bytes, lfs: bool) -> None:
        self.data, self.lfs = data, lfs

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}")
        return "".join(line + "\n" for line in lines).encode()

    @cached_property
    def oid(self) -> str:
        data = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    message: str
    description: str
    number: int
    blobs: dict[str, Blob]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.blobs.items()}

    @property
    def date(self) -> str:
        return (FIRST_DAY + timedelta(seconds=self.number)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Repo:
    """Refs, commits and LFS objects. Like the Hub's, every repo begins with a commit of a .gitattributes."""

    def __init__(self, name: str, private: bool, server: HubServer) -> None:
        self.name, self.private, self.server = name, private, server
        self.refs: dict[str, str] = {}  # "refs/heads/main": the id of a commit
        self.history: dict[str, Commit] = {}
        self.objects: dict[str, bytes] = {}
        begin = {name: Blob(data, False) for name, data in server.first_files.items()} if server.initial_commit else {}
        self.first = self.add("refs/heads/main", None, "initial commit", "", begin)

    def blob(self, path: str, data: bytes) -> Blob:
        blob = Blob(data, self.server.is_lfs(path, len(data)))
        if blob.lfs:
            self.objects[blob.sha256] = data
        return blob

    def find(self, revision: str) -> Commit | None:
        commit = self.refs.get(self.ref(revision) or "", revision)
        return self.history.get(commit)

    def ref(self, revision: str) -> str | None:
        return next((ref for ref in (revision, f"refs/heads/{revision}") if ref in self.refs), None)

    def at(self, revision: str) -> Commit:
        commit = self.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commits(self, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.history[commits[-1].parent])
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.at(revision).files

    def write(
        self,
        files: Mapping[str, bytes],
        revision: str = "main",
        *,
        message: str = "written by another",
        delete: Iterable[str] = (),
        whole: bool = False,
    ) -> Commit:
        """Commit without HTTP: onto a branch, made from the first commit if need be; `whole` replaces every file."""
        with self.server.lock:
            parent = self.find(revision) or self.first
            blobs = {path: blob for path, blob in parent.blobs.items() if not whole and path not in set(delete)}
            blobs |= {path: self.blob(path, data) for path, data in files.items()}
            return self.add(self.ref(revision) or f"refs/heads/{revision}", parent, message, "", blobs)

    def add(self, ref: str, parent: Commit | None, message: str, text: str, blobs: dict[str, Blob]) -> Commit:
        number, parent_id = len(self.history), parent.id if parent else None
        identity = [self.name, parent_id, number, message, text, sorted((path, b.oid) for path, b in blobs.items())]
        commit_id = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        commit = self.history[commit_id] = Commit(commit_id, parent_id, message, text, number, blobs)
        self.refs[ref] = commit_id
        return commit


@dataclass
class Request:
    number: int
    method: str
    target: str  # path and query, as sent
    headers: Any
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.target.partition("?")[2]).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def asks(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def answer(self, request: Request) -> Answer:
        # Over https the client takes a 401 of a repo's URL for a repo that is missing, whatever its message, except for
        # BAD_TOKEN. This server has no https: with the code, the client raises over http what it raises on the Hub.
        of_a_repo = re.match(r"/api/models/.+|/.+/resolve/.+", request.path)
        if self.status == 401 and self.message != BAD_TOKEN and of_a_repo:
            self.code = "RepoNotFound"
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
        return _json({"error": self.message}, self.status, headers)


@dataclass
class Failure:
    """A failure that waits for its requests; `hits` are those that it struck."""

    which: Callable[[Request], bool]
    how: str | int | Callable[[Request], object]
    times: float
    skip: int
    seconds: float
    headers: dict[str, str]
    hits: list[Request] = field(default_factory=list)

    def strikes(self, request: Request) -> bool:
        if len(self.hits) >= self.times or not self.which(request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits.append(request)
        return True


def _chooser(which: int | str | Callable[[Request], bool], seen: int) -> Callable[[Request], bool]:
    if isinstance(which, int):
        return lambda request: request.number >= seen + which
    if isinstance(which, str):
        pattern = re.compile(which)
        return lambda request: pattern.search(f"{request.method} {request.target}") is not None
    return which


PARTS = {"repo": "[^/]+/[^/]+", "revision": "[^/]+", "path": ".+", "oid": "[0-9a-f]{64}", "part": r"\d+"}
ROUTES: list[tuple[list[str], re.Pattern[str], Callable[..., Answer]]] = []


def _route(methods: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    regex = re.compile(re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{PARTS[name[1]]})", pattern))

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((methods.split(), regex, function))
        return function

    return register


def _ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    same = request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
    if match is None or not any(match.groups()) or not same:
        return Answer(200, data, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


class HubServer:
    """The Hub, on an ephemeral port of 127.0.0.1.

    tokens: a role for each token: "read", "write" or "expired"; a token that is not there is unknown.
    namespaces: those that a write token may write to and see the private repos of; the first is the user's own.
    multipart: LFS files larger than this many bytes are uploaded in parts of this many bytes; by default, none is.
    page_size: the entries of a page of a tree or of commits; by default, everything is on one page.
    redirect: whether LFS files are downloaded from another origin, which the Hub redirects to, as on the real one:
    there is no X-Repo-Commit there and its ETag is not the sha256.
    """

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
        self._listeners: list[_Listener] = []

    def __enter__(self) -> HubServer:
        self._listeners = [_Listener(self, 0), _Listener(self, 0)]
        self.endpoint, self._storage = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.closing.set()
        for listener in self._listeners:
            listener.stop()
        if kind is None and self.errors:
            raise AssertionError("the server itself failed:\n" + "\n".join(self.errors))

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens: a connection is refused by the system, where how="refused" resets an accepted one."""
        ports = [listener.server_port for listener in self._listeners]
        for listener in self._listeners:
            listener.stop()
        try:
            yield
        finally:
            self._listeners = [_Listener(self, port) for port in ports]

    # What tests arrange and look at

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path and query) of every request, in the order of arrival."""
        with self.lock:
            return [(request.method, request.target) for request in self.log]

    def repo(self, name: str) -> Repo:
        return self.repos[name]

    def make_repo(
        self, name: str, revisions: Mapping[str, Mapping[str, bytes]] | None = None, *, private: bool = False
    ) -> Repo:
        """A repo that has exactly these files at these branches, each one commit after the first."""
        with self.lock:
            repo = self.repos[name] = Repo(name, private, self)
            for revision, files in (revisions or {}).items():
                repo.write(files, revision, message=f"files of {revision}", whole=True)
            return repo

    def swap(self, name: str, path: str, data: bytes) -> None:
        """From now on, downloads of this path give this content and its ETag, with no commit made."""
        with self.lock:
            self._swapped[name, path] = self.repos[name].blob(path, data)

    def fail(
        self,
        which: int | str | Callable[[Request], bool],
        how: str | int | Callable[[Request], object],
        *,
        times: float = 1,
        skip: int = 0,
        seconds: float = 1.0,
        retry_after: int | None = None,
        ratelimit: int | None = None,
    ) -> Failure:
        """Let requests fail: the `which`-th from now on, those a pattern finds in "METHOD target", or those picked.

        The first `skip` of them are spared and the next `times` fail (math.inf: all). `how` is:

        a status, with Retry-After: `retry_after` or RateLimit: "api";r=0;t=`ratelimit` if given
        "refused"        reset before the body is read
        "cut before"     closed when the request has been read, with nothing done
        "cut during"     closed when half the request's body has been read; without one, when half the answer is sent
        "cut after"      done whole, and closed without an answer
        "stall"          nothing for `seconds`, then closed, with nothing done
        "short"          half of the body that Content-Length promises, then closed
        "short range"    a sound answer with half of the bytes that Content-Range promises
        "ignore ranges"  200 and the whole file
        "slow"           the body in ten pieces over `seconds`
        "proxy"          502 with a page in HTML, as something in between answers
        a function       called with the request before it is answered as always: for a swap, or a commit by another
        """
        known = how in HOWS if isinstance(how, str) else callable(how) or 400 <= how < 600
        if not known:
            raise ValueError(f"no such failure: {how!r}")
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if ratelimit is not None:
            headers["RateLimit"] = f'"api";r=0;t={ratelimit}'
            headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
        failure = Failure(_chooser(which, len(self.log)), how, times, skip, seconds, headers)
        with self.lock:
            self.failures.append(failure)
        return failure

    def fail_share(self, share: float, how: str | int, *, seed: int = 0, which: str = "", **options: Any) -> Failure:
        """Let a random share of the requests that `which` finds fail, drawn by a generator of its own."""
        draw, found = random.Random(seed).random, _chooser(which, 0)
        return self.fail(lambda request: found(request) and draw() < share, how, **{"times": math.inf, **options})

    # What the handlers call

    def arrived(self, method: str, target: str, headers: Any) -> tuple[Request, Failure | None]:
        with self.lock:
            request = Request(len(self.log) + 1, method, target, headers)
            self.log.append(request)
            return request, next((failure for failure in self.failures if failure.strikes(request)), None)

    def answer(self, request: Request) -> Answer:
        try:
            for methods, regex, function in ROUTES:
                match = regex.fullmatch(request.path)
                if match and request.method in methods:
                    parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    with self.lock:  # a commit is there whole or not at all, and no two happen at once
                        return function(self, request, **parts)
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            return refusal.answer(request)
        except Exception:
            self.errors.append(f"{request.method} {request.target}\n{traceback.format_exc()}")
            return _json({"error": "the test's server failed"}, 500)

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

    # Account and repos

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        role = self._role(request)
        if role is None:
            raise Refusal(401, NO_TOKEN)
        user, *orgs = self.namespaces
        return _json(
            {
                "type": "user",
                "id": hashlib.sha1(user.encode()).hexdigest()[:24],
                "name": user,
                "fullname": user,
                "orgs": [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "belay", "role": role}},
            }
        )

    @_route("GET", "/api/agent-harnesses")
    def _harnesses(self, request: Request) -> Answer:
        return _json({"standardEnvVars": [], "harnesses": {}})  # the client asks with its first request

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Answer:
        return _json({"errors": [], "warnings": []})  # asked before every commit of a README.md

    @_route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        role, wanted = self._role(request), request.json
        if role is None:
            raise Refusal(401, NO_TOKEN)
        namespace = wanted.get("organization") or self.namespaces[0]
        if role != "write" or namespace not in self.namespaces:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        name = f"{namespace}/{wanted['name']}"
        place = {"url": f"{self.endpoint}/{name}", "name": name}
        if name in self.repos:
            message = "You already created this model repo"
            return _json({"error": message, **place}, 409, {"X-Error-Message": message})
        self.make_repo(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json(place)

    @_route("GET", "/api/models/{repo}/auth-check(?P<write>/write)?")
    def _auth_check(self, request: Request, repo: str, write: str = "") -> Answer:
        (self._writable if write else self._readable)(request, repo)
        return _json({})

    @_route("GET", "/api/models/{repo}(?:/revision/{revision})?")
    def _info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        stored = self._readable(request, repo)
        commit, blobs = stored.at(revision), request.asks("blobs")
        siblings: list[dict[str, Any]] = []
        for path, blob in sorted(commit.blobs.items()):
            siblings.append({"rfilename": path})
            if blobs:
                siblings[-1] |= {"size": len(blob.data), "blobId": blob.oid}
            if blobs and blob.lfs:
                lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
                siblings[-1] |= {"lfs": lfs}
        info: dict[str, Any] = {"_id": hashlib.sha1(repo.encode()).hexdigest()[:24], "id": repo, "modelId": repo}
        info |= {"author": repo.partition("/")[0], "sha": commit.id, "lastModified": commit.date, "tags": []}
        info |= {"createdAt": stored.first.date, "private": stored.private, "gated": False, "disabled": False}
        if not self._visible(stored, commit):
            del info["sha"]
        return _json(info | {"downloads": 0, "likes": 0, "siblings": siblings})

    @_route("GET", "/api/models/{repo}/refs")
    def _refs(self, request: Request, repo: str) -> Answer:
        found: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for ref, commit in self._readable(request, repo).refs.items():
            kind = "pullRequests" if ref.startswith("refs/pr/") else "branches"
            found[kind].append({"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": commit})
        if not request.asks("include_prs"):
            del found["pullRequests"]
        return _json(found)

    @_route("POST DELETE", "/api/models/{repo}/branch/{revision}")
    def _branch(self, request: Request, repo: str, revision: str) -> Answer:
        stored, ref = self._writable(request, repo), f"refs/heads/{revision}"
        if revision.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {revision}")
        if request.method == "DELETE":
            if revision == "main":
                raise Refusal(403, "The main branch cannot be deleted")
            stored.at(ref)
            del stored.refs[ref]
        elif ref in stored.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        else:
            stored.refs[ref] = stored.at(request.json.get("startingPoint", "main")).id
        return _json({})

    # Listings

    def _paged(self, request: Request, entries: list[dict[str, Any]]) -> Answer:
        start = int(request.query.get("cursor", 0))
        stop = start + (self.page_size or len(entries))
        rest = "&".join(f"{name}={quote(value)}" for name, value in request.query.items() if name != "cursor")
        more = f'<{self.endpoint}{request.path}?{rest}&cursor={stop}>; rel="next"'
        return _json(entries[start:stop], headers={"Link": more} if stop < len(entries) else {})

    @_route("GET", "/api/models/{repo}/commits/{revision}")
    def _commits(self, request: Request, repo: str, revision: str) -> Answer:
        entries: list[dict[str, Any]] = []
        stored = self._readable(request, repo)
        for commit in [commit for commit in stored.commits(revision) if self._visible(stored, commit)]:
            entries.append({"id": commit.id, "title": commit.message, "message": commit.description})
            entries[-1] |= {"authors": [{"user": self.namespaces[0]}], "date": commit.date}
        return self._paged(request, entries)

    def _entry(self, repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
        blob = commit.blobs.get(path)
        inside = {name: b.oid for name, b in commit.blobs.items() if name == path or name.startswith(path + "/")}
        entry: dict[str, Any] = {"type": "directory", "path": path, "size": 0}
        entry["oid"] = hashlib.sha1(json.dumps(sorted(inside.items())).encode()).hexdigest()
        if blob is not None:
            entry |= {"type": "file", "size": len(blob.data), "oid": self._name(blob)}
        if blob is not None and blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        if expand:
            last = commit
            while last.parent and all(
                (b := repo.history[last.parent].blobs.get(name)) and b.oid == oid for name, oid in inside.items()
            ):
                last = repo.history[last.parent]
            entry["lastCommit"] = {"id": last.id, "title": last.message, "date": last.date}
        return entry

    @_route("GET", "/api/models/{repo}/tree/{revision}(?:/{path})?")
    def _tree(self, request: Request, repo: str, revision: str, path: str = "") -> Answer:
        stored = self._readable(request, repo)
        commit, prefix = stored.at(revision), path.strip("/") + "/" if path else ""
        below = [name.removeprefix(prefix) for name in commit.blobs if name.startswith(prefix)]
        if path and not below:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        names = {"/".join(name.split("/")[: depth + 1]) for name in below for depth in range(name.count("/") + 1)}
        names = {name for name in names if request.asks("recursive") or "/" not in name}
        expand = request.asks("expand")
        return self._paged(request, [self._entry(stored, commit, prefix + name, expand) for name in sorted(names)])

    @_route("POST", "/api/models/{repo}/paths-info/{revision}")
    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        stored, form = self._readable(request, repo), parse_qs(request.body.decode())
        commit, expand = stored.at(revision), form.get("expand", [""])[0].lower() == "true"
        paths = [path.strip("/") for path in form.get("paths", [])]
        there = [p for p in paths if p in commit.blobs or any(name.startswith(p + "/") for name in commit.blobs)]
        return _json([self._entry(stored, commit, path, expand) for path in there])

    # Uploads

    @_route("POST", "/api/models/{repo}/preupload/{revision}")
    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        blobs = self._writable(request, repo, request.asks("create_pr")).at(revision).blobs
        files = []
        for file in request.json["files"]:
            mode = "lfs" if self.is_lfs(file["path"], file["size"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in self.ignored})
            if (blob := blobs.get(file["path"])) is not None:
                files[-1]["oid"] = blob.sha256 if blob.lfs else self._name(blob)
        return _json({"files": files})

    @_route("POST", r"/{repo}\.git/info/lfs/objects/batch")
    def _batch(self, request: Request, repo: str) -> Answer:
        wanted = request.json
        stored = self._writable(request, repo, pull_request="ref" not in wanted)
        objects, parted = [], "basic"
        for item in wanted["objects"]:
            oid, size = item["oid"], item["size"]
            objects.append({"oid": oid, "size": size})
            if oid in stored.objects:
                continue  # no actions: it is there already
            href = f"{self._storage}/storage/{repo}/{oid}"
            upload: dict[str, Any] = {"href": href}
            self._offered.setdefault((repo, oid), {})
            if self.multipart and size > self.multipart and "multipart" in wanted["transfers"]:
                parted, count = "multipart", math.ceil(size / self.multipart)
                urls = {str(part): f"{href}/{part}" for part in range(1, count + 1)}
                upload = {"href": f"{self.endpoint}/complete/{repo}/{oid}"}
                upload["header"] = {"chunk_size": str(self.multipart), **urls}
            verify = {"href": f"{self.endpoint}/{repo}.git/info/lfs/objects/verify"}
            objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return _json({"transfer": parted, "objects": objects})

    def _store(self, repo: str, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content does not have the promised sha256")
        self.repos[repo].objects[oid] = data

    @_route("PUT", "/storage/{repo}/{oid}(?:/{part})?")
    def _put(self, request: Request, repo: str, oid: str, part: str = "") -> Answer:
        if (repo, oid) not in self._offered:
            raise Refusal(403, "AccessDenied")  # the URL itself is the permission: there is no token
        if part:
            self._offered[repo, oid][int(part)] = request.body
        else:
            self._store(repo, oid, request.body)
        return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @_route("POST", "/complete/{repo}/{oid}")
    def _complete(self, request: Request, repo: str, oid: str) -> Answer:
        parts = self._offered.get((repo, oid), {})
        etags = {number: f'"{hashlib.md5(data).hexdigest()}"' for number, data in parts.items()}
        if {part["partNumber"]: part["etag"] for part in request.json["parts"]} != etags:
            raise Refusal(400, "InvalidPart")
        self._store(repo, oid, b"".join(parts[number] for number in sorted(parts)))
        return _json({})

    @_route("POST", r"/{repo}\.git/info/lfs/objects/verify")
    def _verify(self, request: Request, repo: str) -> Answer:
        data = self._writable(request, repo, pull_request=True).objects.get(request.json["oid"])
        if data is None or len(data) != request.json["size"]:
            raise Refusal(404, "The object is not there")
        return _json({})

    @_route("POST", "/api/models/{repo}/commit/{revision}")
    def _commit(self, request: Request, repo: str, revision: str) -> Answer:
        proposed = request.asks("create_pr")
        stored = self._writable(request, repo, proposed)
        base, ref = stored.at(revision), stored.ref(revision)
        lines = [json.loads(line) for line in request.body.split(b"\n") if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit", base.id)
        if proposed:
            base = next((commit for commit in stored.history.values() if commit.id.startswith(parent)), base)
            ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in stored.refs)}"
        elif not base.id.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if ref is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        blobs = dict(base.blobs)
        for line in lines:
            self._apply(stored, blobs, line["key"], line["value"])
        commit = stored.add(ref, base, header["summary"], header.get("description", ""), blobs)
        url = f"{self.endpoint}/{repo}"
        done = {"success": True, "commitOid": commit.id, "commitUrl": f"{url}/commit/{commit.id}", "hookOutput": ""}
        if proposed:
            done["pullRequestUrl"] = f"{url}/discussions/{ref.rpartition('/')[2]}"
        return _json(done)

    def _apply(self, repo: Repo, blobs: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        if key == "file":
            blobs[path] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in repo.objects:
                raise Refusal(400, f"The LFS pointer of {path} points to a file that does not exist")
            blobs[path] = Blob(repo.objects[value["oid"]], True)
        elif key in ("deletedFile", "deletedFolder"):
            folder = path.rstrip("/") + "/" if key == "deletedFolder" else path
            gone = [name for name in blobs if name == path or (key == "deletedFolder" and name.startswith(folder))]
            if not gone:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del blobs[name]

    # Downloads

    @_route("GET HEAD", "/{repo}/resolve/{revision}/{path}")
    def _resolve(self, request: Request, repo: str, revision: str, path: str) -> Answer:
        commit = self._readable(request, repo).at(revision)
        blob = self._swapped.get((repo, path)) or commit.blobs.get(path)
        headers = {"X-Repo-Commit": commit.id}
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        if blob.lfs and self.redirect:
            return Answer(302, headers=headers | {"Location": f"{self._storage}/storage/{repo}/{blob.sha256}"})
        return _ranged(request, blob.data, headers)

    @_route("GET HEAD", "/storage/{repo}/{oid}")
    def _stored(self, request: Request, repo: str, oid: str) -> Answer:
        data = self.repos[repo].objects.get(oid)
        if data is None:
            raise Refusal(403, "AccessDenied")
        return _ranged(request, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


class _Listener(ThreadingHTTPServer):
    """Listens from the start, and ends with every connection closed and every thread joined."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without the shutdown of the base class, which would send a FIN ahead of the RST of "refused".
        self.connections.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.hub.errors.append(traceback.format_exc())

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the next request
            except OSError:
                continue  # closed by the other side, or by its own thread meanwhile
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client left

    def _serve(self) -> None:
        hub = self.server.hub
        request, failure = hub.arrived(self.command, self.path, self.headers)
        how = failure.how if failure else ""
        if callable(how):
            how(request)
            how = ""
        self.close_connection = self.close_connection or how in CUT
        if how == "refused":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        body = self._body(half=how == "cut during")
        if how == "stall" and failure:
            hub.closing.wait(failure.seconds)
        if body is None or how in ("cut before", "stall") or (how == "cut during" and body):
            self.close_connection = True
            return
        if how == "ignore ranges":
            del request.headers["Range"]
        request.body = body
        if isinstance(how, int) and failure:
            answer = _json({"error": MESSAGES.get(how, "no luck")}, how, failure.headers)
        elif how == "proxy":
            answer = Answer(502, b"<html><h1>502 Bad Gateway</h1></html>", {"Content-Type": "text/html"})
        else:
            answer = hub.answer(request)
        if how != "cut after":
            self._send(answer, request.number, str(how), failure.seconds if failure else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self, half: bool) -> bytes | None:
        """The body of the request, or None if the client left before its end."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    return data
            return data if self.rfile.readline() else None
        length = int(self.headers.get("Content-Length", 0))
        if half and length:
            return self.rfile.read(max(length // 2, 1))
        data = self.rfile.read(length)
        return data if len(data) == length else None

    def _send(self, answer: Answer, number: int, how: str, seconds: float) -> None:
        body = answer.body
        if how == "short range":
            body = body[: len(body) // 2]
        self.send_response(answer.status)
        self.send_header("X-Request-Id", f"Root=1-{number:08x}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if how in ("short", "cut during"):
            body = body[: len(body) // 2]
        pieces = 10 if how == "slow" else 1
        size = max(math.ceil(len(body) / pieces), 1)
        for start in range(0, len(body), size):
            if how == "slow":
                self.server.hub.closing.wait(seconds / pieces)
            self.wfile.write(body[start : start + size])


def environment(server: HubServer, home: Path, token: str | None = None) -> dict[str, str]:
    """The environment of a process that talks to this server and to no other, with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    kept |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept if token is None else {**kept, "HF_TOKEN": token}


@contextmanager
def hub_client(server: HubServer, home: Path, token: str | None = None) -> Iterator[list[float]]:
    """Let the client of this process talk to this server and to no other; gives its waits, which are not waited for.

    The client reads its environment when it is imported, and so its constants are replaced.
    """
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api
    from huggingface_hub.utils import _http, close_session

    waits: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            patch.delenv(name)
        for name, value in environment(server, home, token).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", server.endpoint)
        patch.setattr(hf_api.api, "_whoami_cache", {})
        for name, value in {"HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "tokens"}.items():
            patch.setattr(constants, name, str(home / value))
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setattr(constants, name, True)
        for module in (_http, file_download):
            patch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
        close_session()  # it and the file systems would keep to the server that they first met
        HfFileSystem.clear_instance_cache()
        try:
            yield waits
        finally:
            close_session()
            HfFileSystem.clear_instance_cache()
