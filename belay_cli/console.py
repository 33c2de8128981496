"""The only printer. Results go to stdout, all else to stderr; progress bars only to a terminal."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from belay_cli import words
from belay_cli.checkpoints import Series
from belay_cli.errors import BelayError
from belay_cli.plan import Plan, PlannedOutput
from belay_cli.report import Report
from belay_cli.rules import TITLES
from belay_cli.rules.half_life import mean_spacing

_ROWS = 12  # of the table of weights: nothing to scroll for
_TAIL = 0.10  # of the weight: the oldest checkpoints that together have less share a row
_BAR = 40  # columns of the heaviest row


class Console:
    """Prints for one command. `json` silences tables, `quiet` everything but errors, warnings and the result's name."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._json, self._quiet = json, quiet
        self._out = rich.console.Console(highlight=False, soft_wrap=True)
        self._err = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def _shows(self) -> bool:
        return not (self._json or self._quiet)

    def error(self, error: BelayError) -> None:
        """One line, and the mend under it; or one JSON object on stdout."""
        if self._json:
            self.json(error_json(error))
            return
        self._prose(self._err, Text.assemble(("belay: ", "bold red"), words.printable(str(error))))
        if error.hint:
            self._err.print(Text(f"       {words.printable(error.hint)}", style="dim"))

    def warn(self, warning: str) -> None:
        """Something a person should know before trusting the result."""
        if not self._json:
            self._prose(self._err, Text.assemble(("warning: ", "bold yellow"), words.printable(warning)))

    def note(self, note: str) -> None:
        """Something that was decided for the person."""
        if self._shows:
            self._prose(self._err, Text.assemble(("note: ", "bold"), words.printable(note)))

    @property
    def animated(self) -> bool:
        """Whether there is a terminal to draw progress on."""
        return self._shows and self._err.is_terminal

    def json(self, value: dict[str, Any]) -> None:
        """One object on stdout."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def _prose(self, screen: rich.console.Console, text: Text) -> None:
        """A text that is wrapped between words on a terminal; in a pipe each is one line, and so are all commands."""
        screen.print(text, soft_wrap=not screen.is_terminal)

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result."""
        self._out.print(Text(words.printable(text), style=style))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns as a result; the first row is the heading. Numbers are aligned to the right."""
        widths = [max(len(words.printable(row[i])) for row in rows) for i in range(len(rows[0]))]
        right = [all(row[i][:1].isdigit() or row[i] == "-" for row in rows[1:]) for i in range(len(rows[0]))]
        for number, row in enumerate(rows):
            cells = [words.printable(cell) for cell in row]
            padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
            self.line("  " + "  ".join(padded).rstrip(), style="" if number else "dim")

    def show_plan(self, plan: Plan, *, result: bool) -> None:
        """The tables of a plan: the result of `belay plan`, an announcement of `belay average`."""
        if self._shows:
            screen = self._out if result else self._err
            for line in plan_lines(plan, unicode=_unicode(screen)):
                self._prose(screen, line)
        for note in plan.series.notes:
            self.note(note)
        for warning in plan.warnings:
            self.warn(warning)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that is told the bytes done so far. Nothing without a terminal."""
        if not self.animated:
            yield lambda nbytes: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._err) as bar:
            task = bar.add_task(description, total=total)
            yield lambda nbytes: bar.update(task, completed=nbytes)

    @contextmanager
    def share(self, description: str) -> Iterator[Callable[[float], None]]:
        """A bar that is told the share that is done, and is gone afterwards. Nothing without a terminal."""
        if not self.animated:
            yield lambda share: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(description, total=1.0)
            yield lambda share: bar.update(task, completed=share)

    def finished(self, done: Report, published: dict[str, Any] | None = None) -> None:
        """The result of `belay average`, and what to do next."""
        if self._json:
            self.json(done.to_json() | {"published": published})
        elif self._quiet:
            self.line(done.output)
        else:
            tensors = words.plural(done.tensors["averaged"] + done.tensors["last"], "tensor")
            wrote = f"{tensors}, {words.size(done.bytes_written)} in {done.seconds or 0:.1f} s"
            if done.discarded_energy is not None:
                wrote += f", at most {done.discarded_energy:.2%} of an update's energy discarded"
            mark = "✓" if _unicode(self._out) else "done:"
            self._out.print(
                Text.assemble((f"{mark} ", "bold green"), (words.printable(done.output), "bold"), f"  {wrote}")
            )
            if published:
                self.published(published)
            elif not done.output.endswith(".safetensors"):  # a file does not know where its checkpoints lay
                output = shlex.quote(done.output)
                hint = f"  check it: belay verify {output}      publish it: belay push {output} ORG/NAME"
                self._err.print(Text(words.printable(hint), style="dim"))

    def published(self, done: dict[str, Any]) -> None:
        """The result of `belay push`."""
        if self._json:
            self.json(done)
            return
        if self._quiet:
            self.line(done["url"])
            return
        if done["status"] == "planned":
            self.table([("file", "size", "")] + [_file_row(file) for file in done["files"]])
        sent = [file for file in done["files"] if file["action"] in ("add", "replace")]
        total = f"{words.plural(len(sent), 'file')}, {words.size(sum(file['bytes'] for file in sent))}"
        mark = "✓" if _unicode(self._out) else "done:"
        head, tail = {
            "planned": ("would upload ", f"{total}, in one commit to "),
            "unchanged": (f"{mark} ", "nothing to do, it is there already: "),
            "committed": (f"{mark} ", f"{total} in one commit: "),
        }[done["status"]]
        self._out.print(Text.assemble((head, "bold green"), tail, (words.printable(done["url"]), "bold")))


def error_json(error: BelayError) -> dict[str, Any]:
    """An error as every command gives it with --json."""
    where = {"file": error.file, "tensor": error.tensor, "hint": error.hint}
    return {"error": {"message": str(error), **where}}


def _file_row(file: dict[str, Any]) -> tuple[str, ...]:
    action = {
        "add": "upload",
        "replace": "upload, replacing the one there",
        "keep": "there already",
        "delete": "delete: older weights",
    }[file["action"]]
    return file["path"], words.size(file["bytes"]) if file["bytes"] else "-", action


def _unicode(screen: rich.console.Console) -> bool:
    return screen.encoding.lower().startswith("utf")


def plan_lines(plan: Plan, *, unicode: bool) -> Iterator[Text]:
    """Everything a person must know to trust the average, in the order in which it matters."""
    yield _series_line(plan)
    for output in plan.outputs:
        if len(plan.outputs) > 1:
            yield Text(f"\n{output.target.path}", style="bold")
        yield _rule_line(plan.series, output)
        yield Text()
        yield from _weight_rows(plan.series, output.coefficients.tolist(), unicode)
        yield Text(f"  {_summary(output)}", style="dim")
        yield Text()
    written = sum(sum(plan.files(output).values()) for output in plan.outputs)
    device = {"auto": "CUDA if there is one, else cpu"}.get(plan.options.device, plan.options.device)
    yield Text(
        f"reads {words.size(plan.bytes_read)}, writes {words.size(written)}, "
        f"{words.size(plan.buffers.nbytes)} of buffers, {device} with {words.plural(plan.buffers.threads, 'thread')}"
    )


def _series_line(plan: Plan) -> Text:
    series = plan.series
    kinds = words.plural(len(series.checkpoints), "checkpoint")
    if series.unit == "step":
        where = f"steps {series.ticks[0]} to {series.ticks[-1]}, {words.spacing(series.ticks)}"
        where = where if len(series.ticks) > 1 else f"step {series.ticks[0]}"
    else:
        where = f"{series.checkpoints[0].name} to {series.last.name}"
    parameters = sum(tensor.elements for tensor in plan.tensors if tensor.averaged)
    what = f"{words.count(parameters)} parameters, {dtypes_text(plan)}, {words.size(series.last.bytes)} each"
    return Text.assemble((words.printable(series.name), "bold"), f": {kinds}, {words.printable(where)} · {what}")


def dtypes_text(plan: Plan) -> str:
    """The dtypes that are averaged, and what they become if that is something else."""
    from belay_cli.formats.dtypes import DTYPES

    averaged = [tensor for tensor in plan.tensors if tensor.averaged] or list(plan.tensors)
    sources = dict.fromkeys(DTYPES[tensor.source_dtype].name for tensor in averaged)
    targets = dict.fromkeys(DTYPES[tensor.dtype].name for tensor in averaged)
    return " and ".join(sources) + ("" if list(sources) == list(targets) else f" to {' and '.join(targets)}")


def _rule_line(series: Series, output: PlannedOutput) -> Text:
    rule, dynamics = output.rule, output.rule.dynamics
    unit = "checkpoint" if rule.unit == "checkpoint" else "step"
    half_life = f"{words.number(rule.half_life)} {unit}{'' if rule.half_life == 1 else 's'}"
    if rule.unit == "step":
        half_life += f" = {rule.half_life / mean_spacing(series.ticks):.1f} checkpoints"
    parts = [f"half-life {half_life}" + (" (default)" if rule.given == "default" else "")]
    if dynamics.feedback:
        parts.append(f"feedback {words.number(dynamics.feedback)}, curvature {words.number(dynamics.curvature)}")
    if dynamics.inertia:
        ratio = "" if rule.damping_ratio is None else f" (damping ratio {words.number(rule.damping_ratio)})"
        parts.append(f"inertia {words.number(dynamics.inertia)}{ratio}")
    if rule.debias:
        parts.append("debiased")
    parts[-1] += f" · decay {_decay(dynamics.a)} a {unit}"
    return Text.assemble((TITLES[rule.method], "bold"), ", " + ", ".join(parts))


def _decay(a: float) -> str:
    return words.number(1 - a) if a > 1e-4 else f"1 - {a:.3g}"


def _summary(output: PlannedOutput) -> str:
    unit = output.rule.unit
    lag = f"mean lag {words.three_digits(output.summary.mean_lag)} {unit}s"
    if output.ema_lag is not None:
        lag += f" (the EMA of this half-life: {words.three_digits(output.ema_lag)})"
    return f"{lag} · as good as {output.summary.effective_checkpoints:.1f} checkpoints averaged equally"


def _weight_rows(series: Series, coefficients: Sequence[float], unicode: bool) -> Iterator[Text]:
    labels = [str(t) for t in series.ticks] if series.unit == "step" else [c.name for c in series.checkpoints]
    rows = [
        (_joined(labels[first], labels[last], unicode), sum(coefficients[first : last + 1]))
        for first, last in group_rows(coefficients)
    ]
    heading = series.unit if series.unit == "step" else "checkpoint"
    width = min(36, max(len(heading), *(len(label) for label, _ in rows)))
    heaviest = max(abs(weight) for _, weight in rows)
    yield Text(f"  {heading:<{width}}   weight", style="dim")
    grouped = rows[0][1] != coefficients[0] or rows[-1][1] != coefficients[-1]
    for label, weight in rows:
        shown = label if len(label) <= width else "…" + label[-width + 1 :]
        blocks = bar(abs(weight) / heaviest * _BAR, unicode)
        yield Text.assemble(
            f"  {words.printable(shown):<{width}}  {weight:6.1%}  ", (blocks, "red" if weight < 0 else "cyan")
        )
    if grouped:
        yield Text(f"  first checkpoint {coefficients[0]:.1%}, last {coefficients[-1]:.1%}", style="dim")


def _joined(first: str, last: str, unicode: bool) -> str:
    return first if first == last else f"{first}{'…' if unicode else '..'}{last}"


def group_rows(coefficients: Sequence[float]) -> list[tuple[int, int]]:
    """First and last checkpoint of each row: the light tail in one row, and never more than fit on a screen."""
    count, tail = len(coefficients), 0
    while tail < count and sum(abs(c) for c in coefficients[: tail + 1]) < _TAIL:
        tail += 1
    tail = tail if count > 5 else 0
    rows = [(0, tail - 1)] if tail else []
    room = _ROWS - len(rows)
    rest = count - tail
    each = -(-rest // room)
    starts = range(tail, count, each) if rest else range(0)
    return rows + [(start, min(start + each, count) - 1) for start in starts]


def bar(columns: float, unicode: bool) -> str:
    """A bar as long as so many columns, to an eighth of one."""
    if not unicode:
        return "#" * round(columns)
    eighths = round(columns * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
