"""`belay inspect`: what checkpoints are, whether they are one series, and what is wrong with them."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from belay_cli.api.inspect import look
from belay_cli.checkpoints import Selection
from belay_cli.checkpoints.selection import SeriesOptions
from belay_cli.cli.screen import Checkpoints, Screen
from belay_cli.options import Option
from belay_cli.show.console import error_json

Values = Annotated[bool, Option("Read every weight, and find NaN and infinity.", panel="The run")]
Tensors = Annotated[bool, Option("List every tensor.", panel="What is shown")]


def inspect(
    checkpoints: Checkpoints, series: SeriesOptions, screen: Screen, values: Values = False, tensors: Tensors = False
) -> None:
    """Say what these checkpoints are, and whether they are one series; of an average of belay's, what it is made of.

    Reads headers, and a few blocks of each file to find checkpoints that are the same. Everything that is
    wrong is listed, not only the first thing; the exit code is 1 if anything is.

    Examples:

        belay inspect ckpts/*.safetensors
        belay inspect run --tensors
        belay inspect run --values
        belay inspect belay-average
    """
    console = screen.console()
    selection = Selection(**{field.name: getattr(series, field.name) for field in fields(series)})
    found = look(checkpoints, selection, console, values=values)
    if screen.json:
        failed = error_json(found.problems[0]) if found.problems else {}
        console.json(found.to_json(tensors=tensors) | failed)
    elif not screen.quiet:
        console.screen(found.lines, tensors=tensors)
    for problem in found.problems:
        (console.log_error if screen.json else console.error)(problem)
    for warning in found.warnings:
        console.warn(warning)
    if found.problems:
        raise typer.Exit(1)
