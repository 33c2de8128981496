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
        try:
            yield ranks
        except Terminated as error:
            check_terminated(ranks)
            if ranks.number:
                ranks.fail(error)
                raise typer.Exit(TERMINATED) from error
            raise
    except typer.Exit:
        raise
    except LostRank as error:
        code = said(screen.console(), error, debug=screen.debug) if ranks.speaks else 1
        with contextlib.suppress(Terminated, KeyboardInterrupt):
            ranks.linger()
        raise typer.Exit(code) from error
    except BaseException as error:
        code = said(screen.console(), error, debug=screen.debug)
        with contextlib.suppress(Terminated, KeyboardInterrupt):
            ranks.fail(error)
        raise typer.Exit(code) from error
    ranks.close()
