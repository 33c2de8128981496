"""An output in the files of its last checkpoint: whole or absent whatever breaks, gone on with, and never a mixture."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from belay_cli import average, verify
from belay_cli.errors import InTheWayError, OutputError
from belay_cli.output.journal import Journal, Range
from tests.output.same import saved
from tests.output.test_crashes import Break
from tests.output.test_same_directories import saved as saved_directories

FULL = OSError(errno.ENOSPC, "No space left on device")
PAIR = ["out.pt", "out.pt.belay.json"]


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return saved(tmp_path)


@pytest.fixture
def clean(series: list[Path]) -> dict[str, bytes]:
    average(series, "out.pt", chunk=64)
    found = {name: Path(name).read_bytes() for name in PAIR}
    for name in PAIR:
        os.remove(name)
    return found


def there() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in PAIR if Path(name).exists()}


def broken_off(series: list[Path], end: int, error: Any = FULL, output: str = "out.pt") -> None:
    """A run of which the disk has no more room after some chunks."""
    add, count = Journal.add, 0

    def counted(self: Journal, done: Range) -> None:
        nonlocal count
        add(self, done)
        count += 1
        if count == end:
            raise error

    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error) if error is not FULL else OutputError):
        patch.setattr(Journal, "add", counted)
        average(series, output, format="same", threads=1, chunk=64)


@pytest.mark.parametrize("end", [1, 30, 80])
def test_the_same_command_goes_on(series: list[Path], clean: dict[str, bytes], end: int) -> None:
    broken_off(series, end)
    assert os.listdir() == [".out.pt.belay"]
    average(series, "out.pt", chunk=128)
    assert there() == clean
    assert sorted(os.listdir()) == PAIR


def test_a_run_that_ended_after_the_checksums(
    series: list[Path], clean: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from belay_cli.output.writer import OutputWriter

    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr(OutputWriter, "put_in_place", lambda self: (_ for _ in ()).throw(OutputError("no")))
        average(series, "out.pt", chunk=64)
    assert os.listdir() == [".out.pt.belay"]
    chunks = []
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", lambda self, done: chunks.append(done))
        average(series, "out.pt", chunk=64)
    assert len(chunks) < 40  # those with checksums, which are written once more as the last checkpoint has them
    assert there() == clean
    assert sorted(os.listdir()) == PAIR


def test_a_directory_goes_on(tmp_path: Path) -> None:
    series = saved_directories(tmp_path / "run")
    average(series, "whole", format="same")
    broken_off(series, 100, output="out")
    assert sorted(os.listdir()) == [".out.belay", "whole"]
    average(series, "out", format="same")
    assert {p.name: p.read_bytes() for p in Path("out").rglob("*.*") if p.is_file()} == {
        p.name: p.read_bytes() for p in Path("whole").rglob("*.*") if p.is_file()
    }
    assert verify("out").ok


def test_with_another_rule_it_starts_over(series: list[Path], clean: dict[str, bytes]) -> None:
    broken_off(series, 60)
    average(series, "out.pt", method="uniform")
    assert there() != clean
    assert verify("out.pt", checkpoints=series, sample="all").ok


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_whatever_step_breaks_it_is_whole_or_absent(
    series: list[Path], clean: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    at, finished = 0, False
    while not finished:
        at += 1
        with pytest.MonkeyPatch.context() as patch:
            broken = Break(patch, at, error)
            with contextlib.suppress(OutputError, KeyboardInterrupt):
                average(series, "out.pt", threads=1)
            finished = broken.calls < at
        assert there() in ({}, clean), f"step {at}"
        with contextlib.suppress(InTheWayError):
            average(series, "out.pt")
        assert there() == clean, f"step {at}"
        assert sorted(os.listdir()) == PAIR
        for name in PAIR:
            os.remove(name)
    assert at > 30


def test_overwriting_never_leaves_a_mixture(series: list[Path], clean: dict[str, bytes], tmp_path: Path) -> None:
    average(series, tmp_path / "old.pt", method="uniform")
    old = {"out.pt": (tmp_path / "old.pt").read_bytes()}
    average(series, "out.pt", method="uniform")
    old = there()
    at, finished = 0, False
    while not finished:
        at += 1
        for name, data in old.items():
            Path(name).write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            broken = Break(patch, at, OSError(errno.EIO, "Input/output error"))
            with contextlib.suppress(OutputError):
                average(series, "out.pt", threads=1, overwrite=True)
            finished = broken.calls < at
        assert there() in (old, clean), f"step {at}"
        average(series, "out.pt", overwrite=True)
        assert there() == clean, f"step {at}"
        assert sorted(os.listdir()) == PAIR


_KILLED = """
import os, sys
from belay_cli import average
from belay_cli.output import placement
from pathlib import Path
left = int(sys.argv[1])
def step(function):
    def stepped(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments)
    return stepped
placement.rename_new = step(placement.rename_new)
placement.rename = step(placement.rename)
Path.rename = step(Path.rename)
average(sys.argv[2:], "out.pt", method="uniform", overwrite=True)
"""


@pytest.mark.parametrize("steps", range(7))
def test_a_process_that_is_killed_while_it_puts_it_in_place(
    series: list[Path], clean: dict[str, bytes], steps: int
) -> None:
    average(series, "out.pt")
    ran = subprocess.run([sys.executable, "-c", _KILLED, str(steps), *map(str, series)], timeout=60)
    assert ran.returncode == (9 if steps < 6 else 0)
    assert Path(".out.pt.belay").is_dir() == (steps < 6)
    assert (there() == clean) == (steps < 2)
    assert ("out.pt" in there()) == (steps not in (2, 3, 4))  # never without its own record
    average(series, "out.pt", overwrite=True)
    assert there() == clean
    assert sorted(os.listdir()) == PAIR
