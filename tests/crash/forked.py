"""The command in a fork of this process, which has imported everything: some milliseconds instead of a second."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import typer.main

LONGEST = 60.0  # seconds; a run takes a hundredth of one


@dataclass(frozen=True)
class Ran:
    """How a run ended. A code below zero is the signal that killed it."""

    code: int
    out: str
    err: str


def warm_up(run: Path, scratch: Path) -> None:
    """Import what a run imports, and build the command line, which takes longer than a small run."""
    from belay_cli import cli

    gc.disable()  # as the program does
    built = typer.main.get_command(cli.build())
    cli.build = lambda: built  # type: ignore[assignment, return-value]
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.run(["average", str(run), "-o", str(scratch / "warm"), "--threads", "1", "-q"])
    assert code == 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    shutil.rmtree(scratch / "warm")
    gc.freeze()


def forked(arguments: Sequence[str], cwd: Path, scratch: Path, before: Callable[[], None] = lambda: None) -> Ran:
    """Run the command line in a fork, which calls `before` first."""
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = scratch / "stdout", scratch / "stderr"
    child = os.fork()
    if child == 0:
        _run(arguments, cwd, (out, err), before)
    code = _wait(child)
    return Ran(code, out.read_text(), err.read_text())


def _run(arguments: Sequence[str], cwd: Path, outputs: tuple[Path, Path], before: Callable[[], None]) -> NoReturn:
    """In the fork; it never comes back from here."""
    try:
        for descriptor, path in enumerate(outputs, 1):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        os.chdir(cwd)
        from belay_cli import cli

        before()
        cli.main(arguments)
    except BaseException as error:
        sys.stderr.write(f"Traceback: {error!r} came out of main\n")
        sys.stderr.flush()
    finally:
        os._exit(99)


def _wait(child: int) -> int:
    deadline = time.monotonic() + LONGEST
    pause = 0.0002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(pause)
        pause = min(2 * pause, 0.005)
