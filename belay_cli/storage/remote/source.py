"""What every kind of server has in common: what a listing says of a file, and how often a request is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.waiting import say
from belay_cli.storage.retry import LONGEST_WISH, Patience, Trouble, again

TIMEOUT = 30.0  # seconds for the next byte of an answer
CONNECT_TIMEOUT = 5.0  # seconds for a connection
TRIES = 9  # of ten thousand reads, a fifth of which fail, each is done in the end
LARGEST_LISTING = 1_000_000  # files below one URL

T = TypeVar("T")


class Refusal(CheckpointError):  # noqa: N818 - it reads as what it is
    """The server answers, and gives nothing. `absent`: because nothing is there."""

    def __init__(self, message: str, *, file: str, hint: str | None = None, absent: bool = False) -> None:
        super().__init__(message, file=file, hint=hint)
        self.absent = absent


class Unreachable(CheckpointError):  # noqa: N818
    """No server answered, however often it was asked."""


@dataclass(frozen=True)
class Entry:
    """A file as a listing has it: its size in bytes, and marks that change when its content does, by their kind."""

    size: int
    marks: Mapping[str, str] = field(default_factory=dict)

    def is_still(self, other: Entry) -> bool:
        """Whether another look at the file, which may know fewer marks, shows the same content."""
        return self.size == other.size and all(other.marks.get(kind, mark) == mark for kind, mark in self.marks.items())


class Reader(Protocol):
    """One file of a server, for several threads at once."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file, which is long enough. Raises CheckpointError."""

    def unchanged(self) -> None:
        """Ask once more. Raises CheckpointError if the file is no longer that of the listing."""


class RemoteSource(Protocol):
    """What one URL names. `shown` is the URL without secrets, `key` tells it from others, `names` are its parts."""

    shown: str
    key: str
    names: tuple[str, ...]

    def listing(self) -> dict[str, Entry]:
        """Every file below it by its name relative to it, or `""` alone if it is a file. Raises CheckpointError."""

    def reader(self, name: str, entry: Entry) -> Reader | Path:
        """Of a file in the listing; a path if it lies on this machine."""

    def content_id(self, entry: Entry) -> str | None:
        """A text that two files share only if their content is the same, or None where the server knows none."""

    def above(self) -> RemoteSource:
        """What holds it; itself if nothing does."""

    def below(self, name: str) -> RemoteSource:
        """A name in it, looked up by itself."""


def retrying(ask: Callable[[], T], shown: str) -> T:
    """Ask again while that may help. Raises CheckpointError when it did not."""
    try:
        return again(_told(ask, shown), Patience(TRIES))
    except Trouble as trouble:
        if trouble.wait > LONGEST_WISH:
            raise CheckpointError(trouble.what, file=shown, hint=f"try again in {trouble.wait:.0f} s") from None
        kind = CheckpointError if trouble.reached else Unreachable
        raise kind(f"{trouble.what}, {TRIES} times in a row", file=shown, hint="run the same command again") from None


def _told(ask: Callable[[], T], shown: str) -> Callable[[], T]:
    """A request that says, each time but the last, that no server was reached."""
    left = iter(range(2, TRIES + 1))

    def asked() -> T:
        try:
            return ask()
        except Trouble as trouble:
            attempt = next(left, None)
            if attempt and not trouble.reached:
                what = trouble.what.removeprefix("cannot be read: ")
                say(f"{shown}: {what}; trying again ({attempt} of {TRIES})")
            raise

    return asked


def changed(shown: str) -> CheckpointError:
    """The error for a file that is no longer the one that was listed."""
    return CheckpointError(
        "changed on its server while it was read",
        file=shown,
        hint="run the same command again when nothing writes to it",
    )


def is_safe(name: str) -> bool:
    """Whether a name from a listing, with `/` between its parts, stays inside, on any system, and is fit to print."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not any(
        c in '\\:"' or not c.isprintable() for c in name
    )
