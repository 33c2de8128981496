"""A revision of a repository of the Hugging Face Hub: every file at one commit, found with two requests.

What the Hub's client has in its cache at that commit is read there, and offline everything is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.http import HttpTarget, ask, marks_of, origin, plain_etag, refuse_transient
from belay_cli.storage.remote.source import (
    LARGEST_LISTING,
    Entry,
    Reader,
    Refusal,
    Unreachable,
    is_safe,
    retrying,
)
from belay_cli.storage.remote.web import Located, WebFile

_OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")
_SPECIAL_REVISION = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_ANSWER = 100_000_000  # bytes of JSON
# The page of a repository, or of what is in it at a revision.
_PAGE = re.compile(r"/([^/]+/[^/]+)(?:/|/(?:resolve|blob|raw|tree)/(refs/(?:convert/[\w.-]+|pr/\d+)|[^/]+)(/.*)?)?")


@dataclass(frozen=True)
class Address:
    """`hf://repo@revision/path`; no revision is main. `root` is what was typed without the path."""

    repo: str
    revision: str | None
    path: str
    root: str


def parse_hub(url: str) -> Address:
    """Raises CheckpointError for what names no repository of models."""
    rest = url.removeprefix("hf://").strip("/")
    first = rest.partition("/")[0]
    if first in _OTHER_KINDS:
        raise CheckpointError(f"is one of the Hub's {first}; checkpoints lie in repositories of models", file=url)
    repo, at, tail = rest.partition("@")
    if not at or repo.count("/") > 1:  # an @ further on belongs to a file's name
        *owner, tail = [*rest.split("/", 2), ""] if rest.count("/") < 2 else rest.split("/", 2)
        repo, at, typed, path = "/".join(owner), "", "", tail
    else:
        special = _SPECIAL_REVISION.match(tail)
        typed = special.group() if special else tail.partition("/")[0]
        path = tail[len(typed) :].strip("/")
    _check_repo(repo, url)
    if at and not typed:
        raise CheckpointError("names no revision after the @", file=url)
    if path and not is_safe(path):
        raise CheckpointError("names no folder of a repository", file=url)
    return Address(repo, unquote(typed) or None, path, f"hf://{repo}{at}{typed}")


def _check_repo(repo: str, url: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise CheckpointError(
            "names no repository of the Hub", file=url, hint="such as hf://ORG/NAME, or hf://ORG/NAME@REVISION/FOLDER"
        ) from None


def hub_url(url: str) -> str | None:
    """The hf:// form of a page or a download link of the Hub, or None if it is none."""
    parts = urlsplit(url)
    if f"{parts.scheme}://{parts.netloc}" != _endpoint() or not (match := _PAGE.fullmatch(parts.path)):
        return None
    return f"hf://{match[1]}" + (f"@{match[2]}{unquote(match[3] or '')}" if match[2] else "")


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


class HubSource:
    """A revision; `commit` is known once it has been listed, and `from_cache`: the Hub had no part in it."""

    def __init__(self, repo: str, revision: str | None, shown: str) -> None:
        self.repo, self.revision, self.shown, self.key = repo, revision, shown, shown
        # A commit's hash orders nothing, and its digits are not to be taken for a number.
        named = revision is not None and not _COMMIT.fullmatch(revision)
        self.names = (*repo.split("/"), *([revision] if named and revision else []))
        self.commit: str | None = None
        self.from_cache = False

    def listing(self) -> dict[str, Entry]:
        """Every file at the commit. Raises CheckpointError."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return self._cached_listing("HF_HUB_OFFLINE is set")
        try:
            self.commit = retrying(self._ask_commit, self.shown)
            return dict(self._entries(self.commit))
        except Unreachable as error:
            try:
                return self._cached_listing("the Hub cannot be reached")
            except CheckpointError:
                raise error from None

    def reader(self, name: str, entry: Entry) -> Reader | Path:
        """Of a file in the listing; a path where the client's cache has it."""
        cached = self._cached(name, entry)
        if cached is not None:
            return cached
        shown = f"{self.shown}/{name}"
        if self.from_cache:
            hint = f"hf download {self.repo} --revision {self.commit}"
            raise CheckpointError("is not in the cache, and the Hub cannot be asked", file=shown, hint=hint)
        large = (self.content_id(entry) or "").startswith("sha256:")
        # A small file needs no place of its own: the Hub answers by itself.
        found = None if large else Located(self._file(name), entry, moved=False)
        return WebFile(shown, entry, lambda: self._locate(name, entry, shown), found)

    def content_id(self, entry: Entry) -> str | None:
        """By the SHA-256 of a large file, or the name that git gives a small one."""
        etag = entry.marks.get("etag", "")
        return f"sha256:{etag}" if len(etag) == 64 else f"git:{etag}" if len(etag) == 40 else None

    def above(self) -> HubSource:
        """The repository of a revision."""
        return self if self.revision is None else HubSource(self.repo, None, f"hf://{self.repo}")

    def below(self, name: str) -> HubSource:
        """Never asked for: what is in a repository is in its listing."""
        raise NotImplementedError

    # The Hub

    def _target(self, url: str) -> HttpTarget:
        """Our token goes to the Hub, and nowhere else."""
        from huggingface_hub import constants, get_token

        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        at_home = token and origin(url) == origin(_endpoint())
        return HttpTarget(url, {"Authorization": f"Bearer {token}"} if at_home else {})

    def _file(self, name: str) -> HttpTarget:
        return self._target(f"{_endpoint()}/{self.repo}/resolve/{self.commit}/{quote(name)}")

    def _ask_commit(self) -> str:
        revision = quote(self.revision or "main", safe="")
        found, _ = self._json(f"{_endpoint()}/api/models/{self.repo}/revision/{revision}?expand=sha")
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise CheckpointError("has no commit, by the answer of the Hub", file=self.shown)
        return commit

    def _entries(self, commit: str) -> Iterator[tuple[str, Entry]]:
        url: str | None = f"{_endpoint()}/api/models/{self.repo}/tree/{commit}?recursive=true"
        count = 0
        while url:
            page, url = retrying(lambda url=url: self._json(url), self.shown)  # type: ignore[misc]
            for item in page if isinstance(page, list) else []:
                count += 1
                if count > LARGEST_LISTING:
                    raise CheckpointError(f"holds more than {LARGEST_LISTING} files", file=self.shown)
                if isinstance(item, dict) and item.get("type") == "file" and is_safe(str(item.get("path"))):
                    yield str(item["path"]), _entry(item)

    def _json(self, url: str) -> tuple[Any, str | None]:
        """The answer to a request, and the URL of its next page. Raises Trouble and CheckpointError."""
        with ask("GET", self._target(url), self.shown) as (response, answered_by):
            refuse_transient(response, answered_by)
            if response.status_code != 200:
                raise self._refusal(response)
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > _LARGEST_ANSWER:
                    raise CheckpointError("is described by the Hub in over 100 MB", file=self.shown)
            following = response.links.get("next", {}).get("url")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise CheckpointError("is described by the Hub in what is not JSON", file=self.shown) from None
        return found, following if following and origin(following) == origin(_endpoint()) else None

    def _refusal(self, response: Any) -> Refusal:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        said, home = response.headers.get("X-Error-Message", ""), f"{_endpoint()}/{self.repo}"
        if code == "RevisionNotFound":
            what, hint = f"has no revision {self.revision or 'main'}", f"its branches and tags: {home}/tree/main"
        elif code == "GatedRepo" or (status == 403 and self._has_token()):
            what, hint = "is gated, and the token is not let in", f"ask for access at {home}"
        elif status == 401 and self._has_token() and code != "RepoNotFound":
            place = f"{_endpoint()}/settings/tokens"
            what, hint = "is not shown: the token is not valid, or has expired", f"make a new one at {place}"
        elif status in (401, 403, 404):
            what = "is not there, or not for everybody to see"
            hint = "is its name right, and may the token see it?" if self._has_token() else _LOG_IN
        else:
            what, hint = f"cannot be read: the Hub says {status}", "see whether the Hub is well, and try again"
        return Refusal(what, file=self.shown, hint=hint, absent="EntryNotFound" in (code, said))

    def _has_token(self) -> bool:
        return bool(self._target(_endpoint()).secret)

    def _locate(self, name: str, entry: Entry, shown: str) -> Located:
        target = self._file(name)
        with ask("HEAD", target, shown, stay=True) as (response, url):
            refuse_transient(response, url)
            if response.status_code not in (200, 301, 302, 303, 307, 308):
                raise self._refusal(response)
            headers = response.headers
            etag = plain_etag(headers.get("X-Linked-Etag", "")) or marks_of(response).get("etag")
            length = headers.get("Content-Length", "") if response.status_code == 200 else ""
            size = headers.get("X-Linked-Size", length)
        found = Entry(int(size) if size.isdecimal() else entry.size, {"etag": etag} if etag else {})
        away = origin(url) != origin(target.url)
        return Located(HttpTarget(url, {} if away else target.secret), found, moved=url != target.url, apart=away)

    # The cache of the Hub's client

    def _cached(self, name: str, entry: Entry) -> Path | None:
        """The file in the cache, if it is that of the listing as far as can be told without reading it."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, revision=self.commit)
        path = Path(found) if isinstance(found, str) else None
        if path is None or path.stat().st_size != entry.size:
            return None
        return path if Entry(entry.size, _marks_in_cache(path)).is_still(entry) else None

    def _cached_listing(self, why: str) -> dict[str, Entry]:
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        commit = _cached_commit(folder, self.revision or "main")
        snapshot = folder / "snapshots" / (commit or "-")
        if commit is None or not snapshot.is_dir():
            hint = f"hf download {self.repo} --revision {self.revision or 'main'}, while there is a connection"
            raise CheckpointError(f"is not in the cache, and {why}", file=self.shown, hint=hint)
        self.commit, self.from_cache = commit, True
        there = {
            path.relative_to(snapshot).as_posix(): Entry(path.stat().st_size, _marks_in_cache(path))
            for path in snapshot.rglob("*")
            if path.is_file()
        }
        return {**_recorded(folder / "trees" / f"{commit}.json"), **there}


_LOG_IN = "is its name right? if it is private or gated: hf auth login, or set HF_TOKEN"


def _entry(item: dict[str, Any]) -> Entry:
    lfs = item.get("lfs")
    large = lfs if isinstance(lfs, dict) else {}
    size, etag = large.get("size", item.get("size")), large.get("oid", item.get("oid"))
    return Entry(size if type(size) is int and size >= 0 else 0, {"etag": etag} if isinstance(etag, str) else {})


def _marks_in_cache(path: Path) -> dict[str, str]:
    """The cache keeps files under their ETags, and links to them; where it cannot, nothing is known."""
    name = path.resolve().name if path.is_symlink() else ""
    return {"etag": name} if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else {}


def _cached_commit(folder: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    if not is_safe(revision) or not (folder / "refs" / revision).is_file():
        return None
    found = (folder / "refs" / revision).read_text().strip()
    return found if _COMMIT.fullmatch(found) else None


def _recorded(path: Path) -> dict[str, Entry]:
    """The whole listing as newer clients keep it beside what they downloaded, so that a missing file is missed."""
    try:
        files = json.loads(path.read_bytes())["files"]
        return {
            name: Entry(int(info["size"]), {"etag": info.get("lfs_sha256") or info["blob_id"]})
            for name, info in files.items()
            if is_safe(name)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
