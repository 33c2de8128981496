"""Where on the Hub an output goes, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from belay_cli.options import Option, Options

MAIN = "main"
MESSAGE = "Upload an average of checkpoints, made with belay"


@dataclass(frozen=True)
class Destination(Options):
    """A revision of a repository, or a new pull request to it. The token is never shown or stored."""

    panel: ClassVar[str] = "The Hub"

    revision: Annotated[str | None, Option("A branch of the repository. Default main.", "NAME")] = None
    private: Annotated[bool, Option("If the repository is new, make it private.")] = False
    create_pr: Annotated[bool, Option("Open a pull request instead of committing.")] = False
    commit_message: Annotated[str | None, Option("The first line of the commit.", "TEXT")] = None
    commit_description: Annotated[str | None, Option("The rest of it.", "TEXT")] = None
    token: Annotated[str | None, Option("Default: HF_TOKEN, or what hf auth login stored.", "TOKEN", secret=True)] = (
        field(default=None, repr=False)
    )

    @property
    def branch(self) -> str:
        """The revision, which is main unless one is given."""
        return self.revision or MAIN

    @property
    def message(self) -> str:
        """The first line of the commit."""
        return self.commit_message or MESSAGE
