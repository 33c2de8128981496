"""Uploads to the fake Hub: LFS objects and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

from tests.fakes.hub.core import Core
from tests.fakes.hub.messages import Answer, Refusal, Request, json_answer, route
from tests.fakes.hub.store import Blob, Repo


class Uploads(Core):
    """Answers to uploads and commits."""

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def _preupload(self, request: Request, repo: str, revision: str) -> Answer:
        blobs = self._writable(request, repo, request.asks("create_pr")).at(revision).blobs
        files = []
        for file in request.json["files"]:
            mode = "lfs" if self.is_lfs(file["path"], file["size"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in self.ignored})
            if (blob := blobs.get(file["path"])) is not None:
                files[-1]["oid"] = blob.sha256 if blob.lfs else self._name(blob)
        return json_answer({"files": files})

    @route("POST", r"/{repo}\.git/info/lfs/objects/batch")
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
        return json_answer({"transfer": parted, "objects": objects})

    def _store(self, repo: str, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "The content does not have the promised sha256")
        self.repos[repo].objects[oid] = data

    @route("PUT", "/storage/{repo}/{oid}(?:/{part})?")
    def _put(self, request: Request, repo: str, oid: str, part: str = "") -> Answer:
        if (repo, oid) not in self._offered:
            raise Refusal(403, "AccessDenied")  # the URL itself is the permission: there is no token
        if part:
            self._offered[repo, oid][int(part)] = request.body
        else:
            self._store(repo, oid, request.body)
        return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @route("POST", "/complete/{repo}/{oid}")
    def _complete(self, request: Request, repo: str, oid: str) -> Answer:
        parts = self._offered.get((repo, oid), {})
        etags = {number: f'"{hashlib.md5(data).hexdigest()}"' for number, data in parts.items()}
        if {part["partNumber"]: part["etag"] for part in request.json["parts"]} != etags:
            raise Refusal(400, "InvalidPart")
        self._store(repo, oid, b"".join(parts[number] for number in sorted(parts)))
        return json_answer({})

    @route("POST", r"/{repo}\.git/info/lfs/objects/verify")
    def _verify(self, request: Request, repo: str) -> Answer:
        data = self._writable(request, repo, pull_request=True).objects.get(request.json["oid"])
        if data is None or len(data) != request.json["size"]:
            raise Refusal(404, "The object is not there")
        return json_answer({})

    @route("POST", "/api/models/{repo}/commit/{revision}")
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
        return json_answer(done)

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
