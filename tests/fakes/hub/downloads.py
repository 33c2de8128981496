"""Downloads from the fake Hub, and from the origin that it redirects to."""

from __future__ import annotations

import hashlib

from tests.fakes.hub.core import Core
from tests.fakes.hub.messages import Answer, Refusal, Request, ranged, route


class Downloads(Core):
    """Answers with the content of files."""

    @route("GET HEAD", "/{repo}/resolve/{revision}/{path}")
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
        return ranged(request, blob.data, headers)

    @route("GET HEAD", "/storage/{repo}/{oid}")
    def _stored(self, request: Request, repo: str, oid: str) -> Answer:
        data = self.repos[repo].objects.get(oid)
        if data is None:
            raise Refusal(403, "AccessDenied")
        return ranged(request, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
