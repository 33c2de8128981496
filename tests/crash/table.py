"""The figures of a run of the harness, as tables of Markdown; and the faults, with what shows each again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tests.crash.moments import Met
from tests.crash.worker import Found, Result


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as what is in them."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def by_situation(results: Sequence[Result]) -> str:
    """A row for each target: system calls, cases, and cases with a fault."""
    rows = []
    for one in results:
        how = f"without {one.without}" if one.without else "processes" if one.real else "forks"
        cases = one.skipped or one.cases.total()
        rows.append((one.situation, how, one.calls, one.reads, cases, len(broken_cases(one.faults))))
    total = sum(one.cases.total() for one in results), sum(len(broken_cases(one.faults)) for one in results)
    return table(("target", "how", "changes", "reads", "cases", "with faults"), [*rows, ("all", "", "", "", *total)])


def by_kind(results: Sequence[Result]) -> str:
    """A row for each way to break a call."""
    cases: Counter[str] = sum((one.cases for one in results), Counter())
    broken = Counter(case[2] for one in results for case in broken_cases(one.faults))
    return table(("kind", "cases", "with faults"), [(kind, number, broken[kind]) for kind, number in cases.items()])


def broken_cases(faults: Iterable[Found]) -> set[tuple[str, str, str, int]]:
    """The cases that have a fault; some have two."""
    return {(one.situation, one.without, one.kind, one.at) for one in faults}


def faults(results: Sequence[Result]) -> str:
    """Every fault with how often it was met and by what kinds, and one case of each."""
    found: defaultdict[str, list[Found]] = defaultdict(list)
    for result in results:
        for one in result.faults:
            found[one.fault].append(one)
    blocks = []
    for fault, cases in sorted(found.items(), key=lambda item: -len(item[1])):
        kinds = Counter(one.kind for one in cases)
        one = cases[0]
        said = one.said.replace("\n", "\n           ")
        without = f" --without {one.without}" if one.without else ""
        blocks.append(
            f"{len(cases)} x {fault}\n"
            f"    by {', '.join(f'{kind} {number}' for kind, number in kinds.most_common())}\n"
            f"    e.g. at {one.call}\n"
            f"         python -m tests.crash --situation '{one.situation}' --kind {one.kind} --at {one.at}{without}\n"
            f"         {said}"
        )
    return "\n\n".join(blocks)


def notes(results: Sequence[Result]) -> str:
    """What is no fault, with how often it was met."""
    met: Counter[str] = sum((one.notes for one in results), Counter())
    return table(("no fault, but met", "cases"), met.most_common())


def moments(all_met: Sequence[Met]) -> str:
    """A row for each signal that was sent at random moments."""
    rows = [
        (
            met.sent,
            met.runs,
            met.finished,
            met.too_early,
            ", ".join(f"{loads} {number}" for loads, number in sorted(met.left.items())),
            f"{met.longest:.2f} s",
            met.faults.total(),
        )
        for met in all_met
    ]
    head = ("signal", "runs", "had finished", "still starting", "what loads then", "longest end", "faults")
    return table(head, rows)
