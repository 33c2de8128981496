"""What the fake Hub keeps: repos with their refs, commits, and the content of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from tests.fakes.hub.messages import Refusal

if TYPE_CHECKING:
    from tests.fakes.hub.core import Core


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


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

    def __init__(self, name: str, private: bool, server: Core) -> None:
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
