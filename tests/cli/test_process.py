"""The command as a process: help, versions, tracebacks, pipes and terminals without Unicode."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belay_cli import __version__
from belay_cli.checkpoints import series as series_module
from belay_cli.engine.arithmetic import chosen_engine
from tests.conftest import Ran, belay_process, make_files


@pytest.mark.parametrize("command", [[], ["average"], ["plan"], ["inspect"], ["verify"]])
def test_help_fits_80_columns_and_shows_examples(command: list[str], belay: Callable[..., Ran]) -> None:
    ran = belay(*command, "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    assert not command or f"belay {command[0]} " in ran.out.partition("Examples")[2]


def test_version_and_no_arguments(belay: Callable[..., Ran]) -> None:
    assert belay("--version").out == f"belay {__version__} (engine: {chosen_engine()})\n"
    nothing = belay()
    assert nothing.code == 2
    assert "average" in nothing.out + nothing.err


def test_a_traceback_only_with_debug(tmp_path: Path) -> None:
    quiet = belay_process("average", tmp_path / "nowhere")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert quiet.stderr == f"belay: {tmp_path}/nowhere: does not exist\n"
    debug = belay_process("average", tmp_path / "nowhere", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_mistake_of_ours_is_one_line_too(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(series_module, "order_checkpoints", broken)
    ran = belay("plan", *make_files(tmp_path))
    assert ran.code == 1
    assert ran.err == (
        "belay: ZeroDivisionError: division by zero\n       this is unexpected; --debug shows where it happened\n"
    )


def test_output_without_unicode(tmp_path: Path) -> None:
    done = belay_process("plan", *make_files(tmp_path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout
    assert "every 100 - 456 parameters" in done.stdout


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    make_files(tmp_path, steps=range(1000))
    command = f"{sys.executable} -m belay_cli inspect {tmp_path} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{tmp_path.name}: 1000 checkpoints, every 1 · 456 parameters\n"
    assert done.stderr == ""


def test_a_closed_or_full_stdout_is_no_traceback(tmp_path: Path) -> None:
    paths = " ".join(map(str, make_files(tmp_path)))
    for end in (">&-", ">/dev/full"):
        command = f"{sys.executable} -m belay_cli plan {paths} --json {end}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
