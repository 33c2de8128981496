"""A run that ends too early is gone on with, exactly, and only where that is right."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belay_cli import average
from belay_cli.errors import OutputError, Terminated
from belay_cli.output.journal import Journal, Range
from tests.conftest import Ran, everything_in

NAME = "out.safetensors"
WORK = Path(f".{NAME}.belay")
CHUNKS = 104  # of 64 elements, in five tensors of 40·33
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    paths = []
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        paths.append(tmp_path / f"step-{step}.safetensors")
        save_file({f"w{i}": torch.randn(40, 33, generator=g) for i in range(5)}, paths[-1])
    return paths


@pytest.fixture
def clean(series: list[Path]) -> bytes:
    average(series, "clean.safetensors")
    data = Path("clean.safetensors").read_bytes()
    Path("clean.safetensors").unlink()
    return data


def chunks_of(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], end: int = 0, error: Any = None) -> int:
    """How many chunks a run writes; after `end` of them it fails with this error."""
    add, count = Journal.add, 0

    def counted(self: Journal, done: Range) -> None:
        nonlocal count
        add(self, done)
        count += 1
        if count == end:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", counted)
        run()
    return count


def broken_off(series: list[Path], monkeypatch: pytest.MonkeyPatch, end: int = 40, **options: Any) -> None:
    with pytest.raises(OutputError) as caught:
        chunks_of(monkeypatch, lambda: average(series, NAME, threads=1, chunk=64, **options), end, FULL)
    assert caught.value.hint == "make room, or write somewhere else: -o; the same command goes on where it stopped"
    assert os.listdir(".") == [WORK.name]


@pytest.mark.parametrize("end", [1, 40, CHUNKS])
@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"max_memory": "1MB"}])
def test_the_same_command_does_what_is_left(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch, end: int, options: dict[str, Any]
) -> None:
    broken_off(series, monkeypatch, end)
    left = chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64, **options))
    assert left == CHUNKS - end
    assert Path(NAME).read_bytes() == clean
    assert os.listdir(".") == [NAME]


@pytest.mark.parametrize("chunk", [None, 128, 192, 6400])
def test_in_chunks_of_another_size(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch, chunk: int | None
) -> None:
    broken_off(series, monkeypatch)
    average(series, NAME, chunk=chunk)
    assert Path(NAME).read_bytes() == clean


def test_it_may_end_more_than_once(series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        broken_off(series, monkeypatch, end=20)
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64)) == CHUNKS - 100
    assert Path(NAME).read_bytes() == clean


def test_bytes_that_never_reached_the_disk_are_made_again(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(series, monkeypatch)
    file = WORK / "new/model.safetensors"
    data = bytearray(file.read_bytes())
    begin = len(data) - 5 * 40 * 33 * 4
    data[begin + 3 * 256 : begin + 5 * 256] = bytes(2 * 256)  # two chunks are zeros
    file.write_bytes(data)
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64)) == CHUNKS - 40 + 2
    assert Path(NAME).read_bytes() == clean


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-3],  # the last line breaks off
        lambda text: text + b"999999999 1000000000 00000000\n5 3 00000000\nnonsense\n\xff\n",
        lambda text: text.replace(b"\n0 256 ", b"\n1 255 "),
    ],
)
def test_a_damaged_journal_is_believed_where_it_is_right(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    broken_off(series, monkeypatch)
    journal = WORK / "journal-0"
    journal.write_bytes(damage(journal.read_bytes()))
    left = chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64))
    assert CHUNKS - 40 <= left <= CHUNKS - 39
    assert Path(NAME).read_bytes() == clean


def test_other_options_start_over_and_say_so(
    series: list[Path], monkeypatch: pytest.MonkeyPatch, belay: Callable[..., Ran]
) -> None:
    broken_off(series, monkeypatch)
    ran = belay("average", *series, "-o", NAME, "--dtype", "float64", "-q")
    assert ran.code == 0
    ran = belay("average", *series, "-o", "other.safetensors", "--dtype", "float64", "-q")
    assert Path(NAME).read_bytes() == Path("other.safetensors").read_bytes()
    assert not WORK.exists()


def test_what_is_said(series: list[Path], monkeypatch: pytest.MonkeyPatch, belay: Callable[..., Ran]) -> None:
    broken_off(series, monkeypatch)
    ran = belay("average", *series, "-o", NAME, "-m", "uniform")
    assert f"note: {NAME}: an earlier run had other options or checkpoints; it starts over\n" in ran.err
    os.unlink(NAME)
    broken_off(series, monkeypatch)
    ran = belay("average", *series, "-o", NAME)
    assert "goes on with an earlier run, of which 39% is done; --no-resume starts over" in ran.err


@pytest.mark.parametrize("change", ["touch", "write"])
def test_checkpoints_that_have_changed_start_over(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    broken_off(series, monkeypatch)
    if change == "touch":
        os.utime(series[1], ns=(5, 5))
    else:
        save_file({f"w{i}": torch.ones(40, 33) for i in range(5)}, series[1])
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64)) == CHUNKS
    assert (Path(NAME).read_bytes() == clean) == (change == "touch")


def test_no_resume_starts_over_and_notes_nothing(
    series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(series, monkeypatch)
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64, resume=False)) == 0
    assert Path(NAME).read_bytes() == clean
    assert os.listdir(".") == [NAME]


def test_several_outputs_go_on_together(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rules, outputs = ["ema", "uniform", "belay"], ["a", "b", "c"]
    options: dict[str, Any] = {"max_shard_size": "6kB", "threads": 1, "chunk": 64}
    average(series, rules=rules, outputs=["x", "y", "z"], **options)
    with pytest.raises(OutputError):
        chunks_of(monkeypatch, lambda: average(series, rules=rules, outputs=outputs, **options), 100, FULL)
    left = chunks_of(monkeypatch, lambda: average(series, rules=rules, outputs=outputs, **options))
    assert left == 3 * 105 - 99  # the chunk of which two outputs were missing is made for all
    for made, expected in zip(outputs, "xyz", strict=True):
        names = everything_in(Path(expected))
        assert everything_in(Path(made)) == names
        for name in names:
            if (Path(made) / name).is_file():
                assert (Path(made) / name).read_bytes() == (Path(expected) / name).read_bytes()


def test_an_error_of_the_checkpoints_leaves_nothing(series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64), 40, KeyboardInterrupt())
    assert os.listdir(".") == []
    with pytest.raises(Terminated) as caught:
        chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64, threads=1), 40, Terminated())
    assert caught.value.hint == "the same command goes on where it stopped"
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64)) == CHUNKS - 40


def waiting_process(directory: Path, number: int) -> subprocess.Popen[str]:
    """A run that stands still after some chunks, as one on a slow disk does, until a signal comes."""
    program = (
        "import sys, time\n"
        "from belay_cli.output.journal import Journal\n"
        "from belay_cli.planning import make\n"
        "add, count = Journal.add, 0\n"
        "def slow(self, done):\n"
        "    global count\n"
        "    add(self, done)\n"
        "    count += 1\n"
        f"    time.sleep(0.05 if count > {number} else 0)\n"
        "Journal.add = slow\n"
        "plan_buffers = make.plan_buffers\n"
        "make.plan_buffers = lambda **options: plan_buffers(**{**options, 'chunk': 64})\n"
        "from belay_cli.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "average", str(directory), "-o", NAME, "-q", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (WORK / "journal-0").exists() or (WORK / "journal-0").read_text().count("\n") <= number:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended(series: list[Path], clean: bytes, belay: Callable[..., Ran], number: Any) -> None:
    process = waiting_process(series[0].parent, 3)
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert out == ""
    if number == signal.SIGTERM:
        assert (process.returncode, err) == (
            143,
            "belay: terminated\n       the same command goes on where it stopped\n",
        )
    assert os.listdir(".") == [WORK.name]
    ran = belay("average", *series, "-o", NAME)
    assert (ran.code, os.listdir(".")) == (0, [NAME])
    assert "goes on with an earlier run" in ran.err
    assert Path(NAME).read_bytes() == clean


def test_the_second_of_two_is_refused(series: list[Path], clean: bytes, belay: Callable[..., Ran]) -> None:
    process = waiting_process(series[0].parent, 3)
    ran = belay("average", *series, "-o", NAME)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-2:] == [
        f"belay: {NAME}: is being written by another belay (process {process.pid} on {os.uname().nodename})",
        "       wait until it is done, or write somewhere else: -o",
    ]
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert Path(NAME).read_bytes() == clean


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_jumps(series: list[Path], clean: bytes, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    broken_off(series, monkeypatch)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + years * 365 * 86400)
    for path in WORK.rglob("*"):
        os.utime(path, (time.time(), time.time()))
    assert chunks_of(monkeypatch, lambda: average(series, NAME, chunk=64)) == CHUNKS - 40
    assert Path(NAME).read_bytes() == clean


@pytest.mark.parametrize("gone", ["place", "workplace"])
@pytest.mark.parametrize("name", [NAME, "directory"])
def test_a_directory_that_vanishes(
    series: list[Path], monkeypatch: pytest.MonkeyPatch, belay: Callable[..., Ran], gone: str, name: str
) -> None:
    place = Path("place")
    place.mkdir()
    command = ["average", *series, "-o", place / name, "--threads", 1, "-q"]
    add = Journal.add

    def then_vanishes(self: Journal, done: Range) -> None:
        add(self, done)
        shutil.rmtree(place if gone == "place" else place / f".{name}.belay", ignore_errors=True)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", then_vanishes)
        ran = belay(*command)
    built = (place / f".{name}.belay").absolute()
    assert (ran.code, ran.out, ran.err) == (
        1,
        "",
        f"belay: place/{name}: cannot be written: the directory that it was built in has vanished\n"
        f"       see what removes {built}, and start again\n",
    )
    assert not place.exists() or os.listdir(place) == []
    place.mkdir(exist_ok=True)
    assert belay(*command).code == 0
    assert os.listdir(place) == [name]
