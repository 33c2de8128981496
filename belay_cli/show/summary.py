"""`--summary FILE`: what a command did, as Markdown appended to a file, such as the summary page of a CI job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from belay_cli import words
from belay_cli.planning import Plan
from belay_cli.show.described import overview
from belay_cli.show.log import appendable
from belay_cli.show.markdown import code, table
from belay_cli.show.report import PushReport, Report
from belay_cli.verification import FAILED, HELD, Check

_MARKS = {HELD: "✅", FAILED: "❌"}


def ready(path: Path) -> None:
    """Raise OutputError if the file cannot be appended to, before there is anything to say."""
    appendable(path, "--summary")


def append(path: Path, lines: Sequence[str]) -> str:
    """Add lines to the end of the file, which need not be there yet. Returns what is said of that.

    Nothing in it is replaced, so that the steps of a job fill one page; there is nothing to ask --overwrite for.
    """
    with path.open("a", encoding="utf-8") as file:
        began = file.tell()
        file.write("\n".join([*lines, "", ""]))
    return f"appended to {path}" if began else f"wrote {path}"


def of_average(plan: Plan, done: Report) -> list[str]:
    """What was averaged, with which weights, and where it is."""
    wrote = f"{words.plural(len(done.files), 'file')}, {words.size(done.bytes_written)} in {done.seconds or 0:.1f} s"
    warnings = [f"- ⚠️ {code(warning)}" for warning in done.warnings]
    return [f"### belay average → {code(done.output)}", "", *overview(plan.outputs[0].record), "", wrote, "", *warnings]


def of_verify(output: str, checks: Sequence[Check]) -> list[str]:
    """A row a check."""
    good = all(check.status == HELD for check in checks)
    rows = [[f"{_MARKS.get(c.status, '⚪')} {c.status}", c.name, code(c.detail)] for c in checks]
    verdict = "verified" if good else "**not verified**"
    return [f"### belay verify {code(output)}: {verdict}", "", *table(["", "check", ""], rows, [False] * 3)]


def of_push(done: PushReport) -> list[str]:
    """Where it is now, and what was uploaded."""
    state = {"committed": "published", "unchanged": "nothing to do", "planned": "would be published"}[done.status]
    rows = [[code(file.path), words.size(file.bytes), file.action] for file in done.files]
    head = f"### belay push {code(done.repo_id)}: {state}"
    return [head, "", f"<{done.url}>", "", *table(["file", "size", ""], rows, [False, True, False])]
