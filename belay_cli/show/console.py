"""The only printer. Results go to stdout, all else to stderr; progress is drawn only where it can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import rich.console
from rich.text import Text

from belay_cli import words
from belay_cli.errors import BelayError
from belay_cli.planning import Plan
from belay_cli.planning.estimate import Estimate
from belay_cli.show.folding import fold
from belay_cli.show.log import Log
from belay_cli.show.progress import Display, Phase, can_draw
from belay_cli.show.report import PushReport, Report
from belay_cli.show.screens import file_lines, finished_line, next_lines, plan_lines, published_lines
from belay_cli.show.styles import ERROR, STRONG, WARNING

_NARROWEST = 20  # columns that lines are folded to


class Console:
    """Prints for one command. `json` silences tables, `quiet` everything but errors, warnings and the result's name.

    log_file: where all that is meant for stderr is appended too, silenced or not. Raises OutputError if it cannot be.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, log_file: Path | None = None) -> None:
        self._json, self._quiet = json, quiet
        self._out = rich.console.Console(highlight=False)
        self._err = rich.console.Console(stderr=True, highlight=False)
        self._log = Log(log_file) if log_file is not None else None

    @property
    def _shows(self) -> bool:
        return not (self._json or self._quiet)

    @property
    def animated(self) -> bool:
        """Whether progress is drawn, as a bar that moves."""
        return self._shows and can_draw(self._err)

    def error(self, error: BelayError) -> None:
        """One line, and the mend under it; or one JSON object on stdout."""
        if self._json:
            self.json(error_json(error))
        told = [Text.assemble(("belay: ", ERROR), words.printable(str(error)))]
        told += [Text(f"       {words.printable(error.hint)}")] if error.hint else []
        self._tell(told, shown=not self._json, hang=7)

    def log_error(self, error: BelayError) -> None:
        """The same in the log alone, where JSON says it among other things."""
        self._write_log([Text(words.printable(f"belay: {error}"))])

    def warn(self, warning: str) -> None:
        """Something a person should know before trusting the result."""
        told = Text.assemble(("warning: ", WARNING), words.printable(warning))
        self._tell([told], shown=not self._json, hang=9)

    def note(self, note: str) -> None:
        """Something that was decided for the person."""
        self._tell([Text.assemble(("note: ", STRONG), words.printable(note))], shown=self._shows, hang=6)

    def json(self, value: dict[str, Any]) -> None:
        """One object on stdout."""
        sys.stdout.write(_harmless(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result."""
        self._show([Text(words.printable(text), style=style)])

    def screen(self, lines: Callable[..., Iterable[Text]], **more: Any) -> None:
        """A whole screen as a result: what `lines` makes for the width of this terminal."""
        self._show(lines(width=_width(self._out), unicode=_unicode(self._out), **more))

    def show_plan(self, plan: Plan, estimate: Estimate | None = None, *, result: bool) -> None:
        """The tables of a plan: the result of `belay plan`, an announcement of `belay average`."""
        screen = self._out if result else self._err
        if self._shows:
            width, unicode = _width(screen), _unicode(screen)
            _print(screen, plan_lines(plan, plan.outputs, estimate=estimate, width=width, unicode=unicode))
        if not result:
            self._write_log(plan_lines(plan, plan.outputs, estimate=estimate, width=None, unicode=True))
        for note in plan.series.notes:
            self.note(note)
        for warning in plan.warnings:
            self.warn(warning)

    def finished(self, done: Report, published: PushReport | None = None) -> None:
        """The result of `belay average`, and what to do next."""
        if self._json:
            self.json(done.to_json() | {"published": published.to_json() if published else None})
        elif self._quiet:
            self._show([Text(words.printable(done.output))], folded=False)
        if self._shows:
            self._show([finished_line(done, unicode=_unicode(self._out))])
        self._write_log([finished_line(done, unicode=True)])
        if published is None:
            self._tell_next(done)
        elif self._shows:
            self.published(published)

    def _tell_next(self, done: Report) -> None:
        if self._shows:
            _print(self._err, next_lines(done, width=_width(self._err)), folded=False)
        self._write_log(next_lines(done, width=None))

    def published(self, done: PushReport) -> None:
        """The result of `belay push`."""
        if self._json:
            self.json(done.to_json())
        elif self._quiet:
            self._show([Text(words.printable(done.url))], folded=False)
        else:
            if done.status == "planned":
                self.screen(partial(file_lines, done))
            self._show(published_lines(done, unicode=_unicode(self._out)))
        self._write_log(published_lines(done, unicode=True))

    def phase(
        self, description: str, total_bytes: int | None = None, *, keep: bool = False
    ) -> AbstractContextManager[Phase]:
        """A part of the work that takes its time; what it yields is told the bytes done so far, from any thread.

        With `keep` its bar stays on the screen. Nothing is shown with --json or --quiet.
        """
        return self._display().phase(description, total_bytes, keep=keep)

    def share(self, description: str) -> AbstractContextManager[Phase]:
        """A part of the work that is told the share that is done, from 0 to 1."""
        return self._display().phase(description, 1.0, share=True)

    def _display(self) -> Display:
        said = (self._shows and not self.animated) or self._log is not None
        return Display(self._err if self.animated else None, self._say if said else None)

    def _say(self, line: str) -> None:
        self._tell([Text(line)], shown=self._shows and not self.animated)

    def _show(self, lines: Iterable[Text], *, folded: bool = True) -> None:
        _print(self._out, lines, folded=folded)

    def _tell(self, lines: Sequence[Text], *, shown: bool, hang: int | None = None) -> None:
        """Lines for stderr and the log."""
        if shown:
            _print(self._err, lines, hang=hang)
        self._write_log(lines)

    def _write_log(self, lines: Iterable[Text]) -> None:
        if self._log is not None:
            self._log.write("\n".join(line.plain for line in lines))


def _print(
    screen: rich.console.Console, lines: Iterable[Text], *, folded: bool = True, hang: int | None = None
) -> None:
    """Lines as one block, folded to the width of a terminal. rich itself must not fold them: it parts numbers."""
    width = _width(screen) if folded else None
    parts = [part for line in lines for part in fold(line, width, hang)]
    if parts:
        screen.print(Text("\n").join(parts), soft_wrap=True)
        screen.file.flush()  # stdout and stderr may be one pipe, and what is said first comes first


def error_json(error: BelayError) -> dict[str, Any]:
    """An error as every command gives it with --json."""
    where = {"file": error.file, "tensor": error.tensor, "hint": error.hint}
    return {"error": {"message": str(error), **where}}


def _harmless(text: str) -> str:
    """JSON without signs that a terminal obeys, or that no stream can encode: as escapes they mean the same."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _width(screen: rich.console.Console) -> int | None:
    """Columns of a terminal; None without one."""
    return max(screen.width, _NARROWEST) if screen.is_terminal else None


def _unicode(screen: rich.console.Console) -> bool:
    return screen.encoding.lower().startswith("utf")
