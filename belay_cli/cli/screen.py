"""What a command shows, and where: the options that every command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from belay_cli.options import Option, Options
from belay_cli.show.console import Console

Checkpoints = Annotated[
    list[str],
    Option(
        "Files, directories, URLs, or a run directory with the checkpoints in it.",
        metavar="CHECKPOINTS",
        argument=True,
    ),
]


@dataclass(frozen=True)
class Screen(Options):
    """How a command speaks."""

    panel: ClassVar[str] = "What is shown"

    json: Annotated[bool, Option("One JSON object on stdout.")] = False
    quiet: Annotated[bool, Option("No tables, no notes; only what was written.", short="-q")] = False
    log_file: Annotated[Path | None, Option("Append what is said on stderr to this file, with the time.")] = None
    debug: Annotated[bool, Option("Show tracebacks.")] = False

    def console(self) -> Console:
        """The printer of one command."""
        return Console(json=self.json, quiet=self.quiet, log_file=self.log_file)


@dataclass(frozen=True)
class SummedUp(Screen):
    """The same for a command that does something."""

    summary: Annotated[Path | None, Option("Append what was done to this file, as Markdown.")] = None
