"""A command in several processes at once, as torchrun and srun start it: one that speaks, and others that help."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import typer

from belay_cli.engine.distributed import Together, launched
from belay_cli.engine.ranks import Alone
from belay_cli.errors import LostRank, Terminated


def is_helper() -> bool:
    """Whether this process was started beside another one, which is the first. Raises UsageError."""
    here = launched(os.environ)
    return here is not None and here.number > 0


@contextlib.contextmanager
def together() -> Iterator[Alone | Together]:
    """The processes that were started with this one, or Alone. If one ends too early all do, and hear why.

    Raises LostRank and UsageError.
    """
    here = launched(os.environ)
    if here is None:
        yield Alone()
        return
    ranks = Together(here)
    try:
        try:
            yield ranks
        except Terminated:
            ranks.check(look=True)  # whoever ends the rest of a job does so because one of it has ended
            raise
    except LostRank as error:
        ranks.linger()
        if not ranks.speaks:
            raise typer.Exit(1) from error  # said once, not by all
        raise
    except BaseException as error:
        ranks.fail(error)
        raise
    ranks.close()
