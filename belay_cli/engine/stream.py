"""A plan, run from the first read to the last write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from belay_cli.engine.chunks import Progress, Sink
from belay_cli.engine.cpu import replay_on_cpu
from belay_cli.engine.cuda import replay_on_device
from belay_cli.engine.device import find_device
from belay_cli.engine.reading import refuse_changed
from belay_cli.engine.updates import write_updates
from belay_cli.planning import Plan


class Replayed(NamedTuple):
    """The device that a plan ran on, and for each output the energy that low-rank updates lost; None without any."""

    device: torch.device
    discarded: list[float | None]


def replay(plan: Plan, sinks: Sequence[Sink], progress: Progress) -> Replayed:
    """Run the plan: every byte of every output into its sink, one for each output of the plan.

    Raises CheckpointError, NumericError or DeviceError, and whatever a sink raises.
    """
    device = find_device(plan.options.device)
    if device.type == "cpu":
        replay_on_cpu(plan, sinks, progress)
    else:
        replay_on_device(plan, sinks, progress, device)
    discarded = write_updates(plan, sinks)
    refuse_changed(plan)
    return Replayed(device, discarded)
