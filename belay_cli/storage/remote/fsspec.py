"""Files of every file system that fsspec has a driver for: gs://, memory:// and the rest; s3:// with more care.

Credentials are whatever the driver finds in the environment and its own configuration.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.source import (
    LARGEST_LISTING,
    TIMEOUT,
    Entry,
    Reader,
    Refusal,
    changed,
    is_safe,
    retrying,
)
from belay_cli.storage.retry import Trouble, may_pass

T = TypeVar("T")

# Copies on disk, archives and local paths under other names.
_WRAPPERS = (
    "simplecache",
    "filecache",
    "blockcache",
    "cached",
    "reference",
    "dir",
    "local",
    "zip",
    "tar",
    "libarchive",
)
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
# What file systems say of a file, each in its own words, that is another when the content is.
_MARKS = ("ETag", "etag", "VersionId", "generation", "md5Hash", "content_md5")
_DATES = ("LastModified", "mtime", "updated", "last_modified", "modified", "created")
_TRANSIENT_ERRNO = (5, 16, 110, 121)  # EIO, EBUSY, ETIMEDOUT, EREMOTEIO: how drivers report what their server suffers
_LIBRARIES = ("aiohttp", "aiobotocore", "botocore", "urllib3", "requests", "gcsfs", "http")
_LOST = re.compile("Timeout|Connection|HTTPClient|Incomplete|Streaming|Payload|Transport|Disconnected|ClientOSError")
_UNKNOWN_TO_IT = re.compile("Credential|Profile|Auth|Token")


class StoreSource:
    """What one URL of fsspec names."""

    def __init__(self, url: str) -> None:
        self.protocol = url.partition("://")[0].lower()
        if self.protocol in _WRAPPERS or "::" in url:
            raise CheckpointError("is a file system inside another, which belay does not read", file=_shown(url))
        self._url, self.shown, self.key = url.rstrip("/"), _shown(url), url.rstrip("/")
        self.names = tuple(name for name in re.split("[/?]", self.shown.partition("?")[0])[1:] if name)
        self.store: Any = None
        self.root = ""

    def listing(self) -> dict[str, Entry]:
        """Every file below the URL, or the file itself. Raises CheckpointError."""
        return retrying(lambda: self.in_words(self._list, self.shown), self.shown)

    def _list(self) -> dict[str, Entry]:
        self._open()
        if self.names and "." in self.names[-1]:  # a file, as a rule
            info = self.store.info(self.root)
            if info.get("type") != "directory":
                return {"": _entry(info)}
        found = self._find()
        if len(found) > LARGEST_LISTING:
            raise CheckpointError(f"holds more than {LARGEST_LISTING} files", file=self.shown)
        if not found or list(found) == [self.root]:  # nothing below it: a file, or an error that says what
            info = self.store.info(self.root)
            return {} if info.get("type") == "directory" else {"": _entry(info)}
        names = {path: path.removeprefix(self.root).lstrip("/") for path in found if not path.endswith("/")}
        return {name: _entry(found[path]) for path, name in names.items() if is_safe(name)}

    def _find(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.store.find(self.root, detail=True)
        return found

    def reader(self, name: str, entry: Entry) -> Reader:
        """Of a file in the listing."""
        return StoreFile(self, *self._place(name), entry)

    def _place(self, name: str) -> tuple[str, str]:
        """A file's path for the driver, and its URL for people."""
        return (f"{self.root}/{name}", f"{self.shown}/{name}") if name else (self.root, self.shown)

    def content_id(self, entry: Entry) -> str | None:
        """By the digest that some stores give."""
        md5 = entry.marks.get("md5Hash")
        return f"md5:{md5}" if md5 else None

    def above(self) -> StoreSource:
        """The directory that holds it; a bucket is held by nothing."""
        scheme, _, path = self._url.partition("://")
        held, slash, _ = path.partition("?")[0].rpartition("/")
        return type(self)(f"{scheme}://{held}") if slash and held else self

    def below(self, name: str) -> StoreSource:
        """A name in it."""
        return type(self)(f"{self._url}/{name}")

    def _open(self) -> None:
        if self.store is not None:
            return
        try:
            fsspec = importlib.import_module("fsspec")
            self.store, self.root = fsspec.core.url_to_fs(self._url, **self._options(fsspec.config.conf))
        except ImportError:
            raise self._missing() from None
        except ValueError as error:
            unknown = "rotocol" in str(error)
            what = f"is of no kind that fsspec knows: {self.protocol}://" if unknown else "is no URL that fsspec reads"
            raise CheckpointError(what, file=self.shown) from None

    def _options(self, configured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """For the driver, beside what a person has configured."""
        return {}

    def _missing(self) -> CheckpointError:
        package = _PACKAGES.get(self.protocol)
        hint = f"pip install {package}" if package else None
        what = f"needs {package or 'a package'} to be read"
        return CheckpointError(what, file=self.shown, hint=hint or f"install what fsspec needs for {self.protocol}://")

    def in_words(self, act: Callable[[], T], shown: str) -> T:
        """Do it. Raises Trouble and CheckpointError for whatever a library raises."""
        try:
            return act()
        except (Trouble, CheckpointError):
            raise
        except Exception as error:
            # The cause is dropped: libraries put URLs and keys into it.
            raise self._failure(error, shown) from None

    def _failure(self, error: Exception, shown: str) -> Exception:
        status = _status(error)
        if isinstance(error, FileNotFoundError) or status == 404:
            return Refusal("is not there", file=shown, absent=True)
        if status in (412, 416):
            return changed(shown)
        if isinstance(error, PermissionError) or status in (401, 403) or _UNKNOWN_TO_IT.search(type(error).__name__):
            what = "is not given to us: the credentials are missing or not enough"
            return Refusal(what, file=shown, hint=self._way_in())
        if _is_transient(error, status):
            what = _lost(error) if status is None else f"its server failed with status {status}"
            return Trouble(f"cannot be read: {what}", reached=status is not None)
        return CheckpointError(f"cannot be read: {_said(error)}", file=shown)

    def _way_in(self) -> str:
        if self.protocol in ("gs", "gcs"):
            return "gcloud auth application-default login; a public bucket: FSSPEC_GS_TOKEN=anon"
        return "see how its driver for fsspec finds credentials"


class StoreFile:
    """One file, for several threads at once."""

    def __init__(self, source: StoreSource, path: str, shown: str, entry: Entry) -> None:
        self.source, self.path, self.shown, self.entry = source, path, shown, entry

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset`. Raises CheckpointError."""
        view = buffer.cast("B")
        if len(view):
            retrying(lambda: self.source.in_words(lambda: self._read(view, offset), self.shown), self.shown)

    def unchanged(self) -> None:
        """Raises CheckpointError if the file is no longer that of the listing."""
        if not self.entry.is_still(retrying(lambda: self.source.in_words(self._look, self.shown), self.shown)):
            raise changed(self.shown)

    def _look(self) -> Entry:
        self.source.store.invalidate_cache()
        return _entry(self.source.store.info(self.path))

    def _read(self, view: memoryview, offset: int) -> None:
        found = self.source.store.cat_file(self.path, start=offset, end=offset + len(view))
        if len(found) > len(view):
            raise CheckpointError("cannot be read in parts: its server ignores ranges", file=self.shown)
        if len(found) < len(view):
            raise Trouble("was cut short")
        view[:] = found


def _entry(info: Mapping[str, Any]) -> Entry:
    size = info.get("size")
    return Entry(int(size) if size is not None else 0, marks_in(info))


def marks_in(info: Mapping[str, Any]) -> dict[str, str]:
    """Dates count where there is nothing better: listings round them, and answers do otherwise."""
    for names in (_MARKS, _DATES):
        found = {name: _text(info[name]) for name in names if info.get(name) not in (None, "", "null")}
        if found:
            return found
    return {}


def _text(mark: Any) -> str:
    """Without quotes; a date in seconds, since some file systems give it in two forms."""
    return str(mark.timestamp() if hasattr(mark, "timestamp") else mark).strip('"')


def _status(error: BaseException) -> int | None:
    """The status of the server's answer that an error was made from, if it says so."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and (found := response.get("ResponseMetadata", {}).get("HTTPStatusCode")):
            return int(found)
    found = getattr(error, "status", None) or getattr(error, "code", None)
    return int(str(found)) if str(found).isdecimal() else None


def _is_transient(error: Exception, status: int | None) -> bool:
    if status is not None:
        return may_pass(status)
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _LIBRARIES]
    return any(_LOST.search(kind.__name__) for kind in kinds)


def _lost(error: Exception) -> str:
    """What became of a request that nobody answered whole."""
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    if "Timeout" in kinds:
        return f"its server was silent for {TIMEOUT:.0f} s"
    return "no connection to its server" if "Connection" in kinds else _said(error)


def _said(error: Exception) -> str:
    """What a library says, on one line, without anything that may be a URL with secrets in it."""
    line = re.sub(r"\S+://\S+", "…", " ".join(str(error).split()))[:160]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _shown(url: str) -> str:
    """The URL without a password, and without a query but for the version of an object."""
    scheme, _, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    userinfo, at, host = netloc.rpartition("@")
    netloc = host if ":" in userinfo else f"{userinfo}{at}{host}"
    path, _, query = path.partition("?")
    kept = f"?{query}" if re.fullmatch(r"versionId=[\w.-]+", query) else ""
    return f"{scheme}://{netloc}{slash}{path}".rstrip("/") + kept
