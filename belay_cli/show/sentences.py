"""What is said of a series, a rule and a run, as plain text, for the terminal, the log and the card."""

from __future__ import annotations

from collections.abc import Sequence

from belay_cli import words
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan
from belay_cli.planning.estimate import Estimate
from belay_cli.planning.gpu import gpu_pays
from belay_cli.rules import Rule
from belay_cli.show.folding import shorten_all


def series_line(plan: Plan, longest: int | None = None) -> str:
    """`run: 12 checkpoints, steps 100 to 1200, every 100 · 290 M parameters, bfloat16, 0.58 GB each`.

    longest: columns of a checkpoint's name; a longer one is cut.
    """
    series = plan.series
    parameters = sum(tensor.elements for tensor in plan.tensors if tensor.averaged)
    what = f"{words.count(parameters)} parameters, {dtypes_text(plan)}, {words.size(series.last.bytes)} each"
    names = [checkpoint.name for checkpoint in series.checkpoints]
    return f"{series.name}: {span(names, series.ticks, series.unit, longest)} · {what}"


def span(names: Sequence[str], ticks: Sequence[int], unit: str, longest: int | None = None) -> str:
    """`12 checkpoints, steps 100 to 1200, every 100`; without steps, the names of the first and the last."""
    kinds = words.plural(len(names), "checkpoint")
    if unit != "step":
        ends = [names[0], names[-1]][: len(names)]
        return f"{kinds}, {' to '.join(ends if longest is None else shorten_all(ends, longest))}"
    if len(ticks) == 1:
        return f"{kinds}, step {ticks[0]}"
    return f"{kinds}, steps {ticks[0]} to {ticks[-1]}, {words.spacing(ticks)}"


def dtypes_text(plan: Plan) -> str:
    """The dtypes that are averaged, and what they become if that is something else."""
    averaged = [tensor for tensor in plan.tensors if tensor.averaged] or list(plan.tensors)
    sources = dict.fromkeys(DTYPES[tensor.source_dtype].name for tensor in averaged)
    targets = dict.fromkeys(DTYPES[tensor.dtype].name for tensor in averaged)
    return " and ".join(sources) + ("" if list(sources) == list(targets) else f" to {' and '.join(targets)}")


def rule_line(rule: Rule, ticks: Sequence[int], unit: str) -> str:
    """`EMA, half-life 100 steps = 1.0 checkpoints (default) · decay 0.99309 a step`."""
    sentence = rule.sentence(ticks, unit)
    return f"{rule.title}, {sentence}" if sentence else rule.title


def lag_line(mean_lag: float, effective: float, unit: str, reference: tuple[str, float] | None = None) -> str:
    """`mean lag 144 steps · effective number of checkpoints 4.0`.

    Lags are in ticks of `unit`; reference: another rule to compare with, how it is called and its lag.
    """
    compared = "" if reference is None else f" ({reference[0]}: {words.three_digits(reference[1])})"
    return f"mean lag {lag(mean_lag, unit)}{compared} · {EFFECTIVE} {effective:.1f}"


EFFECTIVE = "effective number of checkpoints"


def lag(mean_lag: float, unit: str) -> str:
    """`144 steps`."""
    return f"{words.three_digits(mean_lag)} {unit}s"


def work_line(plan: Plan, ran_on: str | None = None, estimate: Estimate | None = None) -> str:
    """`reads 6.95 GB, writes 0.58 GB, 150 MB of buffers, cpu with 2 threads, about 1.3 s here`."""
    asked = plan.options.device
    if asked == "auto":
        pays = "CUDA if there is one, since the arithmetic takes longer than reading, else "
        asked = (pays if gpu_pays(plan) else "") + "cpu"
    device = ran_on or asked
    takes = f", about {words.about(estimate.seconds)} here" if estimate else ""
    return (
        f"reads {words.size(plan.bytes_read)}, writes {words.size(plan.bytes_written)}, "
        f"{words.size(plan.buffers.nbytes)} of buffers, "
        f"{device} with {words.plural(plan.buffers.threads, 'thread')}{takes}"
    )


def engine(device: str, threads: int, gpu: str | None = None, processes: int = 1) -> str:
    """What ran: `cpu, 2 threads`, or `cuda:0 (NVIDIA H100)`. gpu: the name that its maker gave it."""
    if processes > 1:
        kind = device.partition(":")[0]
        return f"{kind}, {processes} processes, each with {words.plural(threads, 'thread')}"
    if device == "cpu":
        return f"cpu, {words.plural(threads, 'thread')}"
    return f"{device} ({gpu})" if gpu else device
