"""`--summary FILE`: what a command did, as Markdown appended to a file, such as the summary page of a CI job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from belay_cli import words
from belay_cli.plan import Plan
from belay_cli.provenance import document
from belay_cli.report import Report
from belay_cli.verify import FAILED, HELD, Check

_MARKS = {HELD: "✅", FAILED: "❌"}


def ready(path: Path) -> None:
    """Raise OSError if the file cannot be appended to, before there is anything to say."""
    path.open("a").close()


def append(path: Path, lines: Sequence[str]) -> None:
    """Add lines to the end of the file, which need not be there yet."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, "", ""]))


def of_average(plan: Plan, done: Report) -> list[str]:
    """What was averaged, with which weights, and where it is."""
    from belay_cli.publish.average import read_average
    from belay_cli.publish.markdown import code
    from belay_cli.publish.section import overview

    average = read_average(document(plan.metadata(plan.outputs[0]), {}))
    wrote = f"{words.plural(len(done.files), 'file')}, {words.size(done.bytes_written)} in {done.seconds or 0:.1f} s"
    warnings = [f"- ⚠️ {code(warning)}" for warning in done.warnings]
    return [f"### belay average → {code(done.output)}", "", *overview(average), "", wrote, "", *warnings]


def of_verify(output: str, checks: Sequence[Check]) -> list[str]:
    """A row a check."""
    from belay_cli.publish.markdown import code, table

    good = all(check.status == HELD for check in checks)
    rows = [[f"{_MARKS.get(c.status, '⚪')} {c.status}", c.name, code(c.detail)] for c in checks]
    verdict = "verified" if good else "**not verified**"
    return [f"### belay verify {code(output)}: {verdict}", "", *table(["", "check", ""], rows, [False] * 3)]


def of_push(done: dict[str, Any]) -> list[str]:
    """Where it is now, and what was uploaded."""
    from belay_cli.publish.markdown import code, table

    state = {"committed": "published", "unchanged": "nothing to do", "planned": "would be published"}[done["status"]]
    rows = [[code(file["path"]), words.size(file["bytes"]), file["action"]] for file in done["files"]]
    head = f"### belay push {code(done['repo_id'])}: {state}"
    return [head, "", f"<{done['url']}>", "", *table(["file", "size", ""], rows, [False, True, False])]
