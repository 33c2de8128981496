"""A command in several processes at once, as torchrun and srun start it: one that speaks, and others that help."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import typer

from belay_cli.cli.failures import TERMINATED, said
from belay_cli.cli.screen import Screen
from belay_cli.engine.distributed import Together, launched
from belay_cli.engine.ranks import Alone, check_terminated
from belay_cli.errors import LostRank, Terminated


def is_helper() -> bool:
    """Whether this process was started beside another one, which is the first. Raises UsageError."""
    here = launched(os.environ)
    return here is not None and here.number > 0


@contextlib.contextmanager
def together(screen: Screen) -> Iterator[Alone | Together]:
    """The processes that were started with this one, or Alone. If one ends too early all do.

    One of them says why, before the others hear that it is over: as soon as one has ended, a launcher ends the rest.
    Raises UsageError, and LostRank if they do not meet.
    """
    here = launched(os.environ)
    if here is None:
        yield Alone()
        return
    ranks = Together(here)
    try:
        yield ranks
    except BaseException as error:
        raise typer.Exit(_ended(ranks, screen, error)) from error
    ranks.close()


def _ended(ranks: Together, screen: Screen, error: BaseException) -> int:
    """Say why it ends, where this process is the one to say it, and let the others hear. Returns the exit code."""
    if isinstance(error, Terminated):
        try:
            check_terminated(ranks)
        except LostRank as lost:
            error = lost
    if isinstance(error, Terminated) and ranks.number:
        code = TERMINATED
    elif isinstance(error, LostRank) and not ranks.speaks:
        code = 1
    else:
        code = said(screen.console(), error, debug=screen.debug)
    with contextlib.suppress(Terminated, KeyboardInterrupt):
        if isinstance(error, LostRank):
            ranks.linger()
        else:
            ranks.fail(error)
    return code
