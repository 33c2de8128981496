"""What an error becomes: a line, or an object with --json, and an exit code."""

from __future__ import annotations

import contextlib

from belay_cli.errors import BelayError, Terminated
from belay_cli.show.console import Console

INTERRUPTED, TERMINATED = 130, 143


def said(console: Console, error: BaseException, *, debug: bool) -> int:
    """Say it. Returns the exit code; whatever nobody can act on is raised again."""
    if isinstance(error, KeyboardInterrupt):
        console.error(BelayError("interrupted", hint="no unfinished output is left behind"))
        return INTERRUPTED
    if isinstance(error, Terminated):
        console.error(BelayError("terminated", hint=error.hint))
        return TERMINATED
    if not isinstance(error, Exception):
        raise error
    if debug:
        import traceback  # here, as no run that ends well has one

        traceback.print_exception(error)
    if isinstance(error, BelayError):
        console.error(error)
        return error.exit_code
    if isinstance(error, OSError):
        with contextlib.suppress(OSError):  # it may be stdout itself that failed
            console.error(BelayError(error.strerror or str(error), file=error.filename))
        return 1
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    console.error(BelayError(kind, hint="this is unexpected; --debug shows where it happened"))
    return 1
