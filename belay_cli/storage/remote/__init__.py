"""Checkpoints that lie elsewhere: every URL as a path, and its files by positioned reads.

    hf://org/repo@revision/subfolder    hub      a revision of the Hub
    https://host/file, http://          web      one file of a web server
    s3://bucket/run                     s3       objects of S3 and its like
    gs:// memory:// …                   fsspec   whatever fsspec has a driver for
    file://                             this machine

A path answers from one listing, taken when it is first asked for: what a run sees of a server is one moment. Nothing
is written to this machine, and memory is that of the buffers and the listing.

path      a URL as a path
tree      the listing that a path answers from
source    what every kind of store can do
hub       revisions of the Hub
web       files of a web server
s3        objects of S3 and its like
fsspec    whatever fsspec has a driver for
http      requests, and their troubles in words
waiting   what a person hears while a server is not reached
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from belay_cli.errors import CheckpointError
from belay_cli.storage.local import LocalFile
from belay_cli.storage.remote.fsspec import StoreSource
from belay_cli.storage.remote.hub import HubSource, hub_url, parse_hub
from belay_cli.storage.remote.path import RemotePath
from belay_cli.storage.remote.s3 import PROTOCOLS, S3Source
from belay_cli.storage.remote.source import changed
from belay_cli.storage.remote.tree import Tree
from belay_cli.storage.remote.web import WebSource

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Whether an argument names something by URL, rather than a path of this machine."""
    return "://" in text


def parse(url: str, listings: dict[str, Tree] | None = None) -> RemotePath | Path:
    """The path that a URL names; a Path for file://. Asks no server. Raises CheckpointError for what is no URL.

    `listings` is filled, and shared by URLs that name parts of one revision of the Hub: one listing serves them all.
    """
    if not _SCHEME.match(url) or not url.isprintable():
        raise CheckpointError("is not a URL that belay reads", file=_cut(url), hint="such as hf://ORG/NAME@REVISION")
    scheme = url.partition("://")[0].lower()
    if scheme == "file":
        return _local(url)
    if scheme in ("http", "https"):
        return _web(url, listings)
    if scheme == "hf":
        address = parse_hub(url)
        tree = Tree(HubSource(address.repo, address.revision, address.root))
        tree = tree if listings is None else listings.setdefault(address.root, tree)
        return RemotePath(tree, tuple(address.path.split("/")) if address.path else ())
    return RemotePath(Tree(S3Source(url) if scheme in PROTOCOLS else StoreSource(url)), ())


def _cut(url: str) -> str:
    """A URL that is none, without what may be a password or a signature in it."""
    return re.sub(r"\?.*", "?…", re.sub(r"//[^/]*@", "//", ascii(url)[1:-1]))


def _local(url: str) -> Path:
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise CheckpointError("names a file of another machine", file=url, hint="file:///path, with three slashes")
    return Path(url2pathname(parts.path))


def _web(url: str, listings: dict[str, Tree] | None) -> RemotePath | Path:
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise CheckpointError("names no web server", file=_cut(url))
    of_the_hub = hub_url(url)
    return parse(of_the_hub, listings) if of_the_hub else RemotePath(Tree(WebSource(url)), ())


class RemoteFile:
    """A file open for positioned reads, used as local.LocalFile is.

    Any number of threads may share one, or each have its own: what they know of the server is shared either way.
    """

    def __init__(self, path: RemotePath) -> None:
        """Asks for nothing but the listing. Raises CheckpointError if the path is not a file."""
        self.path, self.size, self.modified = path, path.entry.size, None
        self._reader = path.tree.reader(path.inner)
        self._cached = LocalFile(self._reader) if isinstance(self._reader, Path) else None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file. Raises CheckpointError if it cannot be filled whole."""
        if offset < 0 or offset + buffer.nbytes > self.size:
            raise CheckpointError(
                f"ends at byte {self.size}, though its header promises more",
                file=self.path,
                hint="the file is cut short; copy it to its server again",
            )
        if self._cached is not None:
            self._cached.read_into(buffer, offset)
        elif not isinstance(self._reader, Path):
            self._reader.read_into(buffer, offset)

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from byte `offset`. The caller has checked that the file is that long."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def unchanged(self) -> None:
        """Ask the server once more. Raises CheckpointError if the file is no longer that of the listing."""
        if not isinstance(self._reader, Path):
            self._reader.unchanged()
        elif not self._reader.is_file() or self._reader.stat().st_size != self.size:
            raise changed(str(self._reader))

    def close(self) -> None:
        """Connections belong to the process; only a file of the cache is closed."""
        if self._cached is not None:
            self._cached.close()

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_remote(path: RemotePath) -> RemoteFile:
    """The file for reading. Raises CheckpointError."""
    return RemoteFile(path)


def content_id(path: RemotePath) -> str | None:
    """What tells a file's content unread: equal texts mean equal bytes. None where the server knows none."""
    return path.tree.source.content_id(path.entry)
