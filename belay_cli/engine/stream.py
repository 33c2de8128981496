"""A plan, run from the first read to the last rename."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from belay_cli.engine.chunks import Progress
from belay_cli.engine.cpu import replay_on_cpu
from belay_cli.engine.cuda import replay_on_device
from belay_cli.engine.device import find_device
from belay_cli.engine.reading import refuse_changed
from belay_cli.engine.updates import write_updates
from belay_cli.engine.write import staged_outputs
from belay_cli.plan import Plan


class Replayed(NamedTuple):
    """The device that a plan ran on, and for each output the energy that low-rank updates lost; None without any."""

    device: torch.device
    discarded: list[float | None]


def replay(plan: Plan, fingerprints: Sequence[str], progress: Progress) -> Replayed:
    """Run the plan: every output complete and in place, or an error and none.

    fingerprints: one a checkpoint, for the metadata. Raises CheckpointError, NumericError, DeviceError or
    OutputError.
    """
    device = find_device(plan.options.device)
    with staged_outputs(plan, fingerprints) as writers:
        if device.type == "cpu":
            replay_on_cpu(plan, writers, progress)
        else:
            replay_on_device(plan, writers, progress, device)
        discarded = write_updates(plan, writers)
        refuse_changed(plan)
    return Replayed(device, discarded)
