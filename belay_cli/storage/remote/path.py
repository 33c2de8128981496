"""A URL as a path."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.hub import HubSource
from belay_cli.storage.remote.source import Entry
from belay_cli.storage.remote.tree import Tree

_LARGEST_TEXT = 100_000_000  # bytes that read_bytes takes into memory


class _Stat(NamedTuple):
    st_size: int  # bytes


class RemotePath:
    """A file or directory of a server, with as much of pathlib.Path as reading a checkpoint takes.

    `str()` is the URL as it was typed, without passwords and signatures. Paths are equal if their URLs are. Methods
    that need the listing raise CheckpointError if there is none to be had.
    """

    __slots__ = ("_parts", "tree")

    def __init__(self, tree: Tree, parts: tuple[str, ...]) -> None:
        self.tree, self._parts = tree, parts

    # Names, for which no server is asked

    @property
    def name(self) -> str:
        """The last part; of a whole repository the revision, or the repository's name if that is a commit or none."""
        return (self._parts or self.tree.source.names or ("",))[-1]

    @property
    def suffix(self) -> str:
        """With its dot, or empty."""
        stem, dot, ending = self.name.rpartition(".")
        return f".{ending}" if stem and dot and ending else ""

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return self.name.removesuffix(self.suffix) if self.suffix else self.name

    @property
    def parent(self) -> RemotePath:
        """What holds it; of a revision, the repository."""
        if self._parts:
            return RemotePath(self.tree, self._parts[:-1])
        above = self.tree.source.above()
        return self if above is self.tree.source else RemotePath(Tree(above, given=False), ())

    def __truediv__(self, name: str) -> RemotePath:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts or name.startswith("/") or "\\" in name:
            raise CheckpointError(f"does not hold {name!r}: the name leads out of it", file=self)
        if self.tree.given or self._parts or isinstance(self.tree.source, HubSource):
            return RemotePath(self.tree, (*self._parts, *parts))
        # Nobody gave what holds a checkpoint: it is not listed for the sake of one file.
        return RemotePath(Tree(self.tree.source.below("/".join(parts)), given=False), ()) if parts else self

    def joinpath(self, *names: str) -> RemotePath:
        """One name after another."""
        found = self
        for name in names:
            found = found / name
        return found

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def resolve(self) -> RemotePath:
        """Itself: there are no links."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Whether it lies below another path, or is the same."""
        if not isinstance(other, RemotePath):
            return False
        if self.tree.source.key == other.tree.source.key:
            return self._parts[: len(other._parts)] == other._parts
        return str(self).startswith(f"{other}/")

    def __str__(self) -> str:
        return "/".join((self.tree.source.shown, *self._parts))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        """The URL, for messages: nothing on this machine has that name."""
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> str:
        # The key may hold a query that is not shown, and tells files apart all the same.
        return "/".join((self.tree.source.key, *self._parts))

    # What the listing says

    def exists(self) -> bool:
        """Whether there is a file or a directory."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.inner in self.tree.files

    def is_dir(self) -> bool:
        """Whether files lie below it."""
        return self.tree.directory(self.inner) is not None

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """What it holds, in the order of the names. Raises CheckpointError if it is not a directory."""
        names = self.tree.directory(self.inner)
        if names is None:
            raise CheckpointError("is not a directory", file=self)
        for name in sorted(names):
            yield RemotePath(self.tree, (*self._parts, name))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What it holds whose name fits; nothing deeper."""
        return (path for path in (self.iterdir() if self.is_dir() else ()) if fnmatchcase(path.name, pattern))

    def stat(self) -> _Stat:
        """`st_size`, in bytes. Raises CheckpointError if it is not a file."""
        return _Stat(self.entry.size)

    def read_bytes(self) -> bytes:
        """A small file whole; twice the same bytes. Raises CheckpointError, also for one of more than 100 MB."""
        if self.entry.size > _LARGEST_TEXT:
            raise CheckpointError("is over 100 MB, too large to be read whole", file=self)
        return self.tree.read(self.inner)

    # What the Hub says

    @property
    def repo(self) -> str | None:
        """Of the Hub: the repository, or None for other URLs."""
        source = self.tree.source
        return source.repo if isinstance(source, HubSource) else None

    @property
    def commit(self) -> str | None:
        """Of the Hub: the commit that the revision was when it was listed, which it now is; None for other URLs."""
        source = self.tree.source
        return source.commit if isinstance(source, HubSource) and self.tree.files is not None else None

    @property
    def inner(self) -> str:
        """The name below the URL that was listed."""
        return "/".join(self._parts)

    @property
    def entry(self) -> Entry:
        """What the listing says of the file. Raises CheckpointError if it is none."""
        found = self.tree.files.get(self.inner)
        if found is None:
            raise CheckpointError("is a directory" if self.is_dir() else "does not exist", file=self)
        return found
