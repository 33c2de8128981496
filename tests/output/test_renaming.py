"""A call that has done its work and says that it failed, as over a network that lost the reply; and one that failed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belay_cli.output import renaming
from belay_cli.output.renaming import exchange, identity, rename, rename_new

BROKEN = OSError(errno.EIO, "Input/output error")


def replies_lost(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: OSError = BROKEN) -> None:
    """What it does is done, and it raises."""
    real = getattr(module, name)

    def lost(*arguments: Any) -> None:
        real(*arguments)
        raise error

    monkeypatch.setattr(module, name, lost)


def fails(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    def failing(*arguments: Any) -> None:
        raise BROKEN

    monkeypatch.setattr(module, name, failing)


@pytest.fixture
def source() -> Path:
    Path("source").write_text("new")
    return Path("source")


@pytest.fixture
def without_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renaming, "_renamed", lambda source, target, how: False)


def there() -> dict[str, str]:
    return {name: Path(name).read_text() for name in sorted(os.listdir())}


def test_what_has_moved_has_moved(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("target").write_text("old")
    replies_lost(monkeypatch, os, "replace")
    rename(source, Path("target"))
    assert there() == {"target": "new"}


@pytest.mark.parametrize("move", [rename, rename_new])
def test_what_has_not_moved_is_an_error(
    source: Path, monkeypatch: pytest.MonkeyPatch, move: Callable[[Path, Path], None]
) -> None:
    fails(monkeypatch, os, "replace")
    fails(monkeypatch, renaming, "_renamed")
    with pytest.raises(OSError, match="Input/output error"):
        move(source, Path("target"))
    assert there() == {"source": "new"}


def test_two_that_have_changed_places(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path("target")
    other.write_text("old")
    if not exchange(source, other):
        pytest.skip("this system knows no such rename")
    assert there() == {"source": "old", "target": "new"}
    replies_lost(monkeypatch, renaming, "_renamed")
    assert exchange(source, other)
    assert there() == {"source": "new", "target": "old"}
    fails(monkeypatch, renaming, "_renamed")
    with pytest.raises(OSError, match="Input/output error"):
        exchange(source, other)
    assert there() == {"source": "new", "target": "old"}


def test_a_new_name_is_never_that_of_something_else(source: Path) -> None:
    Path("target").write_text("theirs")
    with pytest.raises(FileExistsError):
        rename_new(source, Path("target"))
    assert there() == {"source": "new", "target": "theirs"}


def test_a_new_name_whose_reply_is_lost(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies_lost(monkeypatch, renaming, "_renamed")
    rename_new(source, Path("target"))
    assert there() == {"target": "new"}


@pytest.mark.usefixtures("without_renames")
@pytest.mark.parametrize("error", [BROKEN, FileExistsError(errno.EEXIST, "File exists")])
def test_a_link_whose_reply_is_lost(source: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Asked once more, a server says that it exists."""
    replies_lost(monkeypatch, os, "link", error)
    rename_new(source, Path("target"))
    assert there() == {"target": "new"}


@pytest.mark.usefixtures("without_renames")
def test_a_link_whose_old_name_stays(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was = identity(source)
    fails(monkeypatch, Path, "unlink")
    rename_new(source, Path("target"))
    assert identity(Path("target")) == was


@pytest.mark.usefixtures("without_renames")
@pytest.mark.parametrize("there_is", [False, True])
def test_without_links(source: Path, monkeypatch: pytest.MonkeyPatch, there_is: bool) -> None:
    fails(monkeypatch, os, "link")
    if not there_is:
        rename_new(source, Path("target"))
        assert there() == {"target": "new"}
        return
    Path("target").write_text("theirs")
    with pytest.raises(FileExistsError):
        rename_new(source, Path("target"))
    assert there() == {"source": "new", "target": "theirs"}


def test_what_is_not_there_has_no_identity() -> None:
    assert identity(Path("nothing")) is None
