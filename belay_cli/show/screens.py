"""Whole screens as lines: a plan, an average that is there, and the results of the commands that write."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.text import Text

from belay_cli import words
from belay_cli.planning import Plan, PlannedOutput
from belay_cli.planning.estimate import Estimate
from belay_cli.record import Record
from belay_cli.show import sentences
from belay_cli.show.loading import load_line, load_line_of_same
from belay_cli.show.report import PushReport, Report
from belay_cli.show.styles import DONE, ERROR, STRONG
from belay_cli.show.tables import columns, weight_rows


def plan_lines(
    plan: Plan,
    outputs: Sequence[PlannedOutput],
    device: str | None = None,
    estimate: Estimate | None = None,
    *,
    width: int | None,
    unicode: bool,
) -> Iterator[Text]:
    """Everything a person must know to trust averages of a plan, in the order in which it matters.

    device: what it ran on, if it ran. estimate: how long it will take, if it did not and that is known.
    """
    yield _headed(sentences.series_line(plan, _longest(width)), plan.series.name)
    for output in outputs:
        if len(plan.outputs) > 1:
            yield Text()
            place = output.target.path if output.target else "in memory"
            yield Text(words.printable(str(place)), style=STRONG)
        yield from _rule_lines(plan, output, width, unicode)
    yield Text(sentences.work_line(plan, device, estimate))


def _rule_lines(plan: Plan, output: PlannedOutput, width: int | None, unicode: bool) -> Iterator[Text]:
    series, summary = plan.series, output.summary
    yield _headed(sentences.rule_line(output.rule, series.ticks, series.unit))
    yield Text()
    names = [checkpoint.name for checkpoint in series.checkpoints]
    c = output.coefficients
    yield from weight_rows(names, series.ticks, c.tolist(), series.unit, width=width, unicode=unicode)
    lag = sentences.lag_line(summary.mean_lag, summary.effective_checkpoints, series.unit, output.reference)
    yield Text(f"  {lag}")
    if why := output.rule.remark(series.ticks, c):
        yield Text(f"  {why}")
    yield Text()


def average_lines(
    name: str, record: Record, files: Sequence[tuple[str, int, str]], *, width: int | None, unicode: bool
) -> Iterator[Text]:
    """What an output is: its rule, the weight of every checkpoint in it, and whether its files are whole.

    files: name, bytes, and what is wrong with each; an empty text where nothing is.
    """
    span = sentences.span(record.names, record.ticks, record.unit, _longest(width))
    yield _headed(f"{name}: an average of {span}", name)
    yield _headed(sentences.rule_line(record.rule, record.ticks, record.unit))
    yield Text()
    yield from weight_rows(record.names, record.ticks, record.coefficients, record.unit, width=width, unicode=unicode)
    summary = record.summary
    yield Text(f"  {sentences.lag_line(summary.mean_lag, summary.effective_checkpoints, record.unit)}")
    if why := record.rule.remark(record.ticks, np.array(record.coefficients)):
        yield Text(f"  {why}")
    yield Text()
    rows = [(name, words.size(size), wrong or "there") for name, size, wrong in files]
    for line, (_, _, wrong) in zip(
        columns([("file", "size", ""), *rows], width=width, unicode=unicode), [("", 0, ""), *files], strict=True
    ):
        line.stylize(ERROR if wrong else "")
        yield line
    yield Text()
    where = " --checkpoints RUN" if Path(name).is_file() else ""  # a file does not know where they lay
    yield Text(f"check every byte: belay verify {shlex.quote(name)}{where}")


def _longest(width: int | None) -> int | None:
    """Columns of a name in a sentence, such that two of them fit on a line."""
    return None if width is None else width // 2 - 3


def finished_line(done: Report, *, unicode: bool) -> Text:
    """The result of `belay average`, and what ran."""
    tensors = words.plural(done.tensors.averaged + done.tensors.last, "tensor")
    wrote = f"{tensors}, {words.size(done.bytes_written)} in {done.seconds or 0:.1f} s"
    if done.discarded_energy is not None:
        wrote += f", at most {done.discarded_energy:.2%} of an update's energy discarded"
    device = done.device or "cpu"
    result = f"  {wrote} · {sentences.engine(device, done.threads, _gpu(device), done.processes)}"
    return Text.assemble((f"{_mark(unicode)} ", DONE), (words.printable(done.output), STRONG), result)


def next_lines(done: Report, *, width: int | None) -> Iterator[Text]:
    """What one does with an output, each on a line of its own, which is never folded, so that it can be copied."""
    output = shlex.quote(done.output)
    same = done.format == "same"
    how = load_line_of_same(Path(done.output)) if same else load_line(Path(done.output))
    lines = [("load it:", how)] if how else []
    if Path(done.output).is_dir():  # a file does not know where its checkpoints lay
        lines += [("check it:", f"belay verify {output}")]
        lines += [("publish it:", f"belay push {output} ORG/NAME")] if not same else []
    room = max(len(what) for what, _ in lines)
    for what, how in lines:
        line = Text(f"  {what:<{room}}  {words.printable(how)}")
        fits = width is None or line.cell_len <= width
        yield from [line] if fits else [Text(f"  {what}"), Text(f"    {words.printable(how)}")]


def _gpu(device: str) -> str | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.get_device_name(device)


def published_lines(done: PushReport, *, unicode: bool) -> list[Text]:
    """The result of `belay push`."""
    sent = [file for file in done.files if file.action in ("add", "replace")]
    total = f"{words.plural(len(sent), 'file')}, {words.size(sum(file.bytes for file in sent))}"
    head, tail = {
        "planned": ("would upload ", f"{total}, in one commit to "),
        "unchanged": (f"{_mark(unicode)} ", "nothing to do, it is there already: "),
        "committed": (f"{_mark(unicode)} ", f"{total} in one commit: "),
    }[done.status]
    return [Text.assemble((head, DONE), tail, (words.printable(done.url), STRONG))]


_ACTIONS = {
    "add": "upload",
    "replace": "upload, replacing the one there",
    "keep": "there already",
    "delete": "delete: older weights",
}


def file_lines(done: PushReport, *, width: int | None, unicode: bool) -> Iterator[Text]:
    """What becomes of every file of a publication."""
    rows = [(file.path, words.size(file.bytes) if file.bytes else "-", _ACTIONS[file.action]) for file in done.files]
    yield from columns([("file", "size", ""), *rows], width=width, unicode=unicode)


def _mark(unicode: bool) -> str:
    return "✓" if unicode else "done:"


def _headed(text: str, head: str | None = None) -> Text:
    """A line whose head stands out: a name, or what comes before the first comma."""
    shown = words.printable(text)
    line = Text(shown)
    line.stylize(STRONG, 0, len(words.printable(head)) if head is not None else shown.find(","))
    return line
