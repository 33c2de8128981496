"""Account, repos, branches and listings of the fake Hub."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, quote

from tests.fakes.hub.core import Core
from tests.fakes.hub.messages import NO_TOKEN, Answer, Refusal, Request, json_answer, route
from tests.fakes.hub.store import Commit, Repo


class Repos(Core):
    """Answers about the account, repos, branches and what they hold."""

    # Account and repos

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        role = self._role(request)
        if role is None:
            raise Refusal(401, NO_TOKEN)
        user, *orgs = self.namespaces
        return json_answer(
            {
                "type": "user",
                "id": hashlib.sha1(user.encode()).hexdigest()[:24],
                "name": user,
                "fullname": user,
                "orgs": [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "belay", "role": role}},
            }
        )

    @route("GET", "/api/agent-harnesses")
    def _harnesses(self, request: Request) -> Answer:
        return json_answer({"standardEnvVars": [], "harnesses": {}})  # the client asks with its first request

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Answer:
        return json_answer({"errors": [], "warnings": []})  # asked before every commit of a README.md

    @route("POST", "/api/repos/create")
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
            return json_answer({"error": message, **place}, 409, {"X-Error-Message": message})
        self.make_repo(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return json_answer(place)

    @route("GET", "/api/models/{repo}/auth-check(?P<write>/write)?")
    def _auth_check(self, request: Request, repo: str, write: str = "") -> Answer:
        (self._writable if write else self._readable)(request, repo)
        return json_answer({})

    @route("GET", "/api/models/{repo}(?:/revision/{revision})?")
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
        return json_answer(info | {"downloads": 0, "likes": 0, "siblings": siblings})

    @route("GET", "/api/models/{repo}/refs")
    def _refs(self, request: Request, repo: str) -> Answer:
        found: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for ref, commit in self._readable(request, repo).refs.items():
            kind = "pullRequests" if ref.startswith("refs/pr/") else "branches"
            found[kind].append({"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": commit})
        if not request.asks("include_prs"):
            del found["pullRequests"]
        return json_answer(found)

    @route("POST DELETE", "/api/models/{repo}/branch/{revision}")
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
        return json_answer({})

    # Listings

    def _paged(self, request: Request, entries: list[dict[str, Any]]) -> Answer:
        start = int(request.query.get("cursor", 0))
        stop = start + (self.page_size or len(entries))
        rest = "&".join(f"{name}={quote(value)}" for name, value in request.query.items() if name != "cursor")
        more = f'<{self.endpoint}{request.path}?{rest}&cursor={stop}>; rel="next"'
        return json_answer(entries[start:stop], headers={"Link": more} if stop < len(entries) else {})

    @route("GET", "/api/models/{repo}/commits/{revision}")
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

    @route("GET", "/api/models/{repo}/tree/{revision}(?:/{path})?")
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

    @route("POST", "/api/models/{repo}/paths-info/{revision}")
    def _paths_info(self, request: Request, repo: str, revision: str) -> Answer:
        stored, form = self._readable(request, repo), parse_qs(request.body.decode())
        commit, expand = stored.at(revision), form.get("expand", [""])[0].lower() == "true"
        paths = [path.strip("/") for path in form.get("paths", [])]
        there = [p for p in paths if p in commit.blobs or any(name.startswith(p + "/") for name in commit.blobs)]
        return json_answer([self._entry(stored, commit, path, expand) for path in there])
