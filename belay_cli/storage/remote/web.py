"""Files of web servers, by ranged reads: every answer is checked before it is taken.

What a redirect leads to serves the reads that follow, until it is refused: signed URLs expire. Ours, because neither
the Hub's client nor fsspec's checks that an answer has the bytes that were asked for, of the file that was listed.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.http import ABSENT, HttpTarget, ask, marks_of, origin, refusal, refuse_transient
from belay_cli.storage.remote.source import Entry, Refusal, changed, retrying
from belay_cli.storage.retry import Trouble

_EXPIRED = (400, 401, 403, 404, 410)  # what storage says to a signed URL that is too old
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_DOWNLOAD = "download it, and give the file"


@dataclass(frozen=True)
class Located:
    """Where a file's bytes are, and what its server says of it.

    `moved`: not where the URL says; `apart`: in storage that has marks of its own.
    """

    target: HttpTarget
    entry: Entry
    moved: bool
    apart: bool = False


class WebFile:
    """One file: `locate` asks where it is. Threads share the place, and one of them asks when it is gone."""

    def __init__(self, shown: str, entry: Entry, locate: Callable[[], Located], found: Located | None = None) -> None:
        self._shown, self._entry, self._locate = shown, entry, locate
        self._lock = threading.Lock()
        self._found = found
        self._marks: dict[str, Mapping[str, str]] = {}  # of storage that has marks of its own, by URL

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset`. Raises CheckpointError."""
        filling = _Filling(buffer.cast("B"), offset)
        while filling.missing:
            retrying(lambda: self._read(filling), self._shown)

    def unchanged(self) -> None:
        """Raises CheckpointError if the file is no longer that of the listing.

        A URL that was signed for a while may be refused by now. Then what its answers were marked with is proof enough.
        """
        try:
            retrying(self._locate_again, self._shown)
        except Refusal as refusal:
            if refusal.absent or not self._entry.marks:
                raise

    def _locate_again(self) -> Located:
        found = self._locate()
        if not self._entry.is_still(found.entry):
            raise changed(self._shown)
        return found

    def _place(self, gone: Located | None = None) -> Located:
        with self._lock:
            if self._found is None or self._found is gone:
                self._found = self._locate_again()
            return self._found

    def _read(self, filling: _Filling) -> None:
        found = self._place()
        if not self._take(found, filling):
            again = self._place(gone=found)
            if not self._take(again, filling):
                raise Refusal("is refused by the storage that its server names", file=self._shown)

    def _take(self, found: Located, filling: _Filling) -> bool:
        """Ask once for what is missing. False if the place is gone."""
        headers = {"Range": f"bytes={filling.first}-{filling.last}"}
        with ask("GET", found.target, self._shown, headers) as (response, url):
            if found.moved and response.status_code in _EXPIRED:
                return False
            refuse_transient(response, url)
            size = self._checked_size(response, filling)
            self._check_marks(response, Entry(size, marks_of(response)), found, url)
            filling.take(response, self._shown)
        return True

    def _checked_size(self, response: Any, filling: _Filling) -> int:
        """The size of the file, by an answer that has the bytes asked for."""
        status, headers, size = response.status_code, response.headers, self._entry.size
        if status == 416:
            raise changed(self._shown)
        if status not in (200, 206):
            raise refusal(response, self._shown)
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise CheckpointError("is sent compressed, so no part of it can be read", file=self._shown, hint=_DOWNLOAD)
        whole = filling.first == 0 and filling.last == size - 1
        if status == 200 and not whole:
            raise CheckpointError(
                "cannot be read in parts: its server ignores ranges", file=self._shown, hint=_DOWNLOAD
            )
        length = headers.get("Content-Length", "")
        if status == 200:
            return int(length) if length.isdecimal() else size
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or int(match[1]) != filling.first or int(match[2]) != filling.last:
            raise Trouble("was answered with other bytes than those asked for")
        if length.isdecimal() and int(length) != filling.missing:
            raise Trouble("was answered with fewer bytes than those asked for")
        return size if match[3] == "*" else int(match[3])

    def _check_marks(self, response: Any, answered: Entry, found: Located, url: str) -> None:
        if found.entry.marks and not found.apart and origin(url) == origin(found.target.url):
            same = found.entry.is_still(answered)
        else:  # as its first answer was marked
            place = urlunsplit(urlsplit(url)._replace(query="", fragment=""))
            same = Entry(self._entry.size, self._marks.setdefault(place, answered.marks)).is_still(answered)
        if not same:
            raise changed(self._shown)


class _Filling:
    """A buffer that becomes full in one answer or several, from byte `offset` of a file."""

    def __init__(self, buffer: memoryview, offset: int) -> None:
        self._buffer, self._offset, self._done = buffer, offset, 0

    @property
    def first(self) -> int:
        return self._offset + self._done

    @property
    def last(self) -> int:
        return self._offset + len(self._buffer) - 1

    @property
    def missing(self) -> int:
        return len(self._buffer) - self._done

    def take(self, response: Any, shown: str) -> None:
        """Copy the body as it comes. What has come stays when the rest does not, and need not come again."""
        for part in response.iter_raw():
            if len(part) > self.missing:
                raise CheckpointError("was answered with more bytes than those asked for", file=shown)
            self._buffer[self._done : self._done + len(part)] = part
            self._done += len(part)
        if self.missing:
            raise Trouble("was cut short")


class WebSource:
    """One file of a web server. Directories cannot be listed there."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        self._target = HttpTarget(urlunsplit(parts._replace(netloc=host, fragment="")), _basic(userinfo))
        self._parts, self._userinfo = parts._replace(netloc=host, query="", fragment=""), userinfo
        self.shown = urlunsplit(self._parts).rstrip("/")
        self.key = url.partition("#")[0]
        self.names = (host, *(unquote(name) for name in parts.path.split("/") if name))
        self._found: Located | None = None

    def listing(self) -> dict[str, Entry]:
        """The file itself. Raises CheckpointError."""
        if self._parts.path.endswith("/") or not self._parts.path:
            raise Refusal(
                "is a directory of a web server, which cannot be listed",
                file=self.shown,
                hint="give its files, or download it; hf://, s3:// and gs:// can be listed",
            )
        self._found = retrying(self._locate, self.shown)
        return {"": self._found.entry}

    def reader(self, name: str, entry: Entry) -> WebFile:
        """Of the file; `name` is empty."""
        return WebFile(self.shown, entry, self._locate, self._found)

    def content_id(self, entry: Entry) -> None:
        """None: what an ETag stands for is each server's own choice."""

    def above(self) -> WebSource:
        """The directory, which has a name and nothing else."""
        path = self._parts.path.rstrip("/").rpartition("/")[0]
        return self._at(f"{path}/")

    def below(self, name: str) -> WebSource:
        """A file beside it."""
        return self._at(f"{self._parts.path.rstrip('/')}/{name}")

    def _at(self, path: str) -> WebSource:
        userinfo = f"{self._userinfo}@" if self._userinfo else ""
        return WebSource(urlunsplit(self._parts._replace(path=path, netloc=f"{userinfo}{self._parts.netloc}")))

    def _locate(self) -> Located:
        """By HEAD, or by the first byte where a server has no answer to that, such as one of signed URLs."""
        with ask("HEAD", self._target, self.shown) as (response, url):
            refuse_transient(response, url)
            length = response.headers.get("Content-Length", "")
            if response.status_code == 200 and length.isdecimal():
                return self._located(response, url, int(length))
            if response.status_code in ABSENT:
                raise refusal(response, self.shown)
        with ask("GET", self._target, self.shown, {"Range": "bytes=0-0"}) as (response, url):
            refuse_transient(response, url)
            return self._located(response, url, self._size(response))

    def _size(self, response: Any) -> int:
        match = re.fullmatch(r"bytes (?:0-0|\*)/(\d+)", response.headers.get("Content-Range", ""))
        length = response.headers.get("Content-Length", "")
        if response.status_code in (206, 416) and match:
            return int(match[1])
        if response.status_code == 200 and length.isdecimal():
            return int(length)
        if response.status_code in (200, 206, 416):
            raise CheckpointError("has a server that does not say how large it is", file=self.shown, hint=_DOWNLOAD)
        raise refusal(response, self.shown)

    def _located(self, response: Any, url: str, size: int) -> Located:
        secret = self._target.secret if origin(url) == origin(self._target.url) else {}
        return Located(HttpTarget(url, secret), Entry(size, marks_of(response)), moved=url != self._target.url)


def _basic(userinfo: str) -> dict[str, str]:
    if not userinfo:
        return {}
    user, _, password = userinfo.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
