"""The command line: one file a command, the options declared once, and what an error becomes: a line, and an exit code.

average    belay average, belay plan
sweep      belay sweep
inspect    belay inspect
verify     belay verify
push       belay push
commands   commands made from functions and their groups of options
together   a command in several processes at once
failures   what an error becomes
screen     the options that every command has
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from belay_cli import words
from belay_cli._version import __version__
from belay_cli.cli.average import average, plan
from belay_cli.cli.commands import BelayCommand, BelayGroup, command, expanded, flags_of
from belay_cli.cli.failures import INTERRUPTED, said
from belay_cli.cli.inspect import inspect
from belay_cli.cli.push import push
from belay_cli.cli.sweep import sweep
from belay_cli.cli.together import is_helper
from belay_cli.cli.verify import verify
from belay_cli.engine.arithmetic import chosen_engine
from belay_cli.errors import BelayError, Terminated, UsageError
from belay_cli.show.console import Console
from belay_cli.show.log import appendable
from belay_cli.storage.remote.waiting import heard_by

_COMMANDS = (average, plan, sweep, inspect, verify, push)


def build() -> typer.Typer:
    """The command line. It is made anew each time, of the rules that are registered by then."""
    app = typer.Typer(
        name="belay",
        cls=BelayGroup,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(belay)
    for run in _COMMANDS:
        app.command(cls=BelayCommand)(command(run))
    return app


def _print_version(asked: bool) -> None:
    if asked:
        Console().line(f"belay {__version__} (engine: {chosen_engine()})")
        raise typer.Exit


def belay(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and engine."),
    ] = False,
) -> None:
    """Average the checkpoints of a training run, by the dynamics of EMA and BELAY. No retraining.

    Each command says more: `belay average --help`. The documentation is in `docs/` of the source; it begins with
    `docs/first-hour.md`.

    Examples:

        belay inspect run
        belay plan run --half-life 10%
        belay average run -o run-ema --half-life 10%
        belay verify run-ema
        belay push run-ema ORG/NAME --private
    """
    if context.invoked_subcommand != average.__name__ and is_helper():
        raise typer.Exit  # started several times at once; the first does it


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. 0 done, 1 a failure, 2 wrong usage, 130 interrupted, 143 terminated."""
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads any more: `belay inspect run | head`
            code = code or 1
    # Everything is closed and synced by now. Taking the interpreter and torch apart in order would take
    # half a second, as long as reading a few gigabytes.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line. Returns the exit code; an error is printed as one line, or as JSON with --json."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    quiet = "-q" in flags or "--quiet" in flags
    console = Console(json="--json" in flags, quiet=quiet, log_file=_log_file(flags))
    debug = "--debug" in flags
    signal.signal(signal.SIGTERM, _terminate)
    _encode_everything()
    try:
        with heard_by(console.note):
            code = build()(args=arguments, prog_name="belay", standalone_mode=False)
        if code == INTERRUPTED:  # how typer passes Ctrl-C on
            raise KeyboardInterrupt
        return int(code or 0)
    except typer.TyperException as error:
        return _usage(console, error)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return said(console, error, debug=debug)


def _log_file(flags: Sequence[str]) -> Path | None:
    """Where errors are logged too; what is wrong with that file is said by the command itself."""
    for flag, value in pairwise([*flags, ""]):
        name, given, joined = flag.partition("=")
        if name == "--log-file" and (joined if given else value):
            path = expanded(joined if given else value)
            with contextlib.suppress(BelayError):
                appendable(path, "--log-file")
                return path
    return None


def _usage(console: Console, error: typer.TyperException) -> int:
    if not error.format_message() or type(error).__name__ == "NoArgsIsHelpError":
        return 2  # the help was the answer
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "belay"
    unknown = getattr(error, "option_name", None) if "No such option" in error.format_message() else None
    if others := _commands_with(unknown):
        have = "has" if len(others) == 1 else "have"
        message = f"{path.removeprefix('belay ')} has no {unknown}; {' and '.join(others)} {have}"
        console.error(UsageError(message, hint=f"{path} --help"))
        return 2
    console.error(UsageError(error.format_message().rstrip("."), hint=f"{path} --help"))
    return 2


def _commands_with(flag: str | None) -> list[str]:
    """The commands that have an option."""
    return [f"belay {run.__name__}" for run in _COMMANDS if flag is not None and flag in flags_of(run)]


def _encode_everything() -> None:
    """A terminal or a log that is not UTF-8 gets plain signs instead of an error."""
    codecs.register_error("belay", words.ascii_instead)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: belay plan run >&-
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="belay")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
