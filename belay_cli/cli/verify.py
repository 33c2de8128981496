"""`belay verify`: check an output against its record and against the checkpoints it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from belay_cli.api.verify import share_of, verified
from belay_cli.cli.screen import SummedUp
from belay_cli.options import Option
from belay_cli.show import summary as summaries
from belay_cli.show.console import error_json

Output = Annotated[Path, Option("What belay wrote: a file or a directory.", metavar="OUTPUT", argument=True)]
Inputs = Annotated[
    tuple[str, ...],
    Option("The checkpoints it was made from, or the run directory.", metavar="PATH…", several=True),
]
Sample = Annotated[str, Option("Of the values, such as 5% (default), or all.", metavar="SHARE")]
Threads = Annotated[int | None, Option("Default: all cores.", metavar="N")]


def verify(
    output: Output,
    screen: SummedUp,
    checkpoints: Inputs = (),
    sample: Sample = "5%",
    threads: Threads = None,
) -> None:
    """Check that an average is what it says it is.

    Its structure; every byte of every file, by digests; its coefficients, from the rule again; whether the checkpoints
    are the ones recorded; and its values, from the checkpoints by the recursion. The exit code is 0 only if all of it
    was checked and held.

    Examples:

        belay verify belay-average
        belay verify averaged.safetensors --checkpoints ckpts --sample all
    """
    console = screen.console()
    if screen.summary:
        summaries.ready(screen.summary)
    found = verified(output, checkpoints, share_of(sample), threads, console)
    if screen.summary:
        console.note(summaries.append(screen.summary, summaries.of_verify(str(output), found.checks)))
    if screen.json:
        console.json(found.to_json() | (error_json(found.error) if found.error else {}))
    elif not screen.quiet:
        console.screen(found.lines)
    for warning in found.warnings:
        console.warn(warning)
    if found.error:
        (console.log_error if screen.json else console.error)(found.error)
        raise typer.Exit(1)
