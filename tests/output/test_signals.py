"""Interrupts, kills, full disks and runs at once: nothing unfinished is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import average
from belay_cli.engine import stream
from belay_cli.errors import CheckpointError
from tests.conftest import belay_process, make_files


def test_an_interrupt_during_the_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_files(tmp_path)
    rmtree, held = shutil.rmtree, []

    def interrupted(path: Path, **keywords: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        held.append(path)
        rmtree(path, **keywords)

    def fails(*arguments: Any) -> None:
        raise CheckpointError("is broken")

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    monkeypatch.setattr(stream, "replay_on_cpu", fails)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            average(paths, "out.safetensors")
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(held) == 1
    assert os.listdir(".") == []


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real limit of the kernel's, met in the middle of a write."""
    for i in range(2):
        save_file({"w": torch.randn(1 << 20)}, tmp_path / f"step-{i}.safetensors")
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "from belay_cli.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "average", str(tmp_path), "-o", "out.safetensors", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert (
        done.stderr
        == "belay: out.safetensors: cannot be written: file too large\n       make room, or write somewhere else: -o\n"
    )
    assert os.listdir(".") == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series whose replay takes long enough to be met in its middle."""
    directory = tmp_path_factory.mktemp("large")
    for i in range(4):
        save_file({f"w{j}": torch.randn(1 << 19) for j in range(16)}, directory / f"step-{i}.safetensors")
    return directory


def slow_run(large: Path, *options: str) -> Any:
    """A process in the middle of a replay: its staging directory is there."""
    command = [sys.executable, "-m", "belay_cli", "average", str(large), "-o", "out.safetensors", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(name.startswith(".out") for name in os.listdir(".")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


@pytest.mark.parametrize(
    ("number", "code", "word", "options"),
    [
        (signal.SIGINT, 130, "interrupted", []),
        (signal.SIGTERM, 143, "terminated", ["--no-resume"]),
        (signal.SIGTERM, 143, "terminated", []),
    ],
)
def test_signals(large: Path, number: Any, code: int, word: str, options: list[str]) -> None:
    process = slow_run(large, "--threads", "1", "-q", *options)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert out == "out.safetensors\n"
        return
    assert (process.returncode, out) == (code, "")
    left = os.listdir(".")
    kept = "the same command goes on where it stopped" if left else "no unfinished output is left behind"
    assert err == f"belay: {word}\n       {kept}\n"
    assert left == [] or (word == "terminated" and not options and left == [".out.safetensors.belay"])


def test_what_a_killed_run_left_is_removed_by_the_next(large: Path) -> None:
    process = slow_run(large, "--threads", "1")
    process.kill()
    process.communicate()
    left = os.listdir(".")
    Path(".other.safetensors.belay").mkdir()
    done = belay_process("average", large, "-o", "out.safetensors", "-q", "--overwrite", "--no-resume")
    assert (done.returncode, done.stderr) == (0, ""), left
    assert sorted(os.listdir(".")) == [".other.safetensors.belay", "out.safetensors"]


def test_two_runs_at_once_do_not_disturb_each_other(large: Path) -> None:
    process = slow_run(large, "--threads", "1", "-q")
    other = belay_process("average", large, "-o", "out.safetensors", "-q")
    process.communicate(timeout=60)
    assert sorted([process.returncode, other.returncode]) == [0, 1]
    assert os.listdir(".") == ["out.safetensors"]
    assert len(load_file("out.safetensors")) == 16
