"""The checks of an output, as `belay verify` shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text

from belay_cli import words
from belay_cli.errors import BelayError
from belay_cli.show.report import Shown
from belay_cli.verification import FAILED, HELD, Check


@dataclass(frozen=True)
class Verification(Shown):
    """Every check of an output, in order."""

    output: str
    checks: list[Check]
    warnings: list[str]

    @property
    def verified(self) -> bool:
        """Whether everything was checked and held."""
        return all(check.status == HELD for check in self.checks)

    @property
    def ok(self) -> bool:
        """Whether it is verified."""
        return self.verified

    def __bool__(self) -> bool:
        """Whether it is verified."""
        return self.verified

    @property
    def error(self) -> BelayError | None:
        """The first check that failed, else the first that was not made; None if all held."""
        if self.verified:
            return None
        failed = [check for check in self.checks if check.status == FAILED]
        first = failed[0] if failed else next(check for check in self.checks if check.status != HELD)
        what = f"{first.name} {first.status}: {first.detail}" if failed else f"is not verified: {first.detail}"
        return BelayError(what, file=self.output, tensor=first.tensor)

    def to_json(self) -> dict[str, Any]:
        """As an object for json.dumps."""
        return {
            "command": "verify",
            "output": self.output,
            "verified": self.verified,
            "checks": [asdict(check) for check in self.checks],
            "warnings": self.warnings,
        }

    def lines(self, *, width: int | None = None, unicode: bool = True) -> Iterator[Text]:
        """A line a check."""
        for check in self.checks:
            yield Text(words.printable(f"  {check.status:<11}  {check.name:<12}  {check.detail}"))

    def __str__(self) -> str:
        """The lines, and the warnings under them."""
        return "\n".join(
            [*(line.plain for line in self.lines()), *(words.printable(f"warning: {text}") for text in self.warnings)]
        )
