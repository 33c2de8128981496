"""A plan, run from the first read to the last write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from belay_cli.engine.chunks import Progress, Sink
from belay_cli.engine.cpu import replay_on_cpu
from belay_cli.engine.device import CPU, find_device
from belay_cli.engine.ranks import Ranks
from belay_cli.engine.reading import let_go_of_files, refuse_changed
from belay_cli.engine.spans import Spans
from belay_cli.engine.updates import write_updates
from belay_cli.planning import Plan
from belay_cli.planning.plan import TORCH


class Replayed(NamedTuple):
    """The device and the engine that a plan ran with, and for each output the energy that low-rank updates lost.

    That is None without updates.
    """

    device: str
    engine: str
    discarded: list[float | None]


def replay(
    plan: Plan, sinks: Sequence[Sink], progress: Progress, todo: Spans | None = None, ranks: Ranks | None = None
) -> Replayed:
    """Run the plan: every byte of every output into its sink, one for each output of the plan.

    todo: do these ranges of it only; ranks: who does the others. The first of them makes low-rank updates too.

    Raises CheckpointError, NumericError, DeviceError or UsageError, and whatever a sink raises.
    """
    device = find_device(plan, ranks.local if ranks and ranks.count > 1 else None)
    engine = plan.engine if device == CPU else TORCH
    with _own_threads(plan.engine):
        if device == CPU:
            replay_on_cpu(plan, sinks, progress, todo)
        else:
            import torch

            from belay_cli.engine.cuda import replay_on_device

            replay_on_device(plan, sinks, progress, torch.device(device), todo)
        discarded: list[float | None] = [None] * len(sinks) if ranks and ranks.number else write_updates(plan, sinks)
    refuse_changed(plan)
    if plan.options.drop_cache:
        let_go_of_files(plan)
    return Replayed(device, engine, discarded)


def _own_threads(engine: str) -> AbstractContextManager[None]:
    """What keeps the engine's number of threads from the program that calls."""
    if engine != TORCH:
        return nullcontext()
    from belay_cli.engine.torch_cpu import threads_kept

    return threads_kept()
