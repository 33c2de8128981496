"""How long a plan takes on this machine: what it is to do, by rates that a short probe finds."""

from __future__ import annotations

from belay_cli.checkpoints.fingerprint import fingerprinted_bytes
from belay_cli.output.digests import to_take_later
from belay_cli.planning import Plan
from belay_cli.planning.estimate import Estimate, Work, estimate
from belay_cli.storage.blocks import blocks_of


def estimated(plan: Plan) -> Estimate | None:
    """Seconds of a run from the plan to the output in its place; None where a probe cannot tell."""
    from belay_cli.engine.probe import probe

    rates = probe(plan)
    return estimate(work_of(plan), rates) if rates else None


def work_of(plan: Plan) -> Work:
    """What a run of the plan does."""
    files = [file for checkpoint in plan.series.checkpoints for file in checkpoint.files]
    if plan.is_same:  # every byte of the files, when they are whole
        left = [end - begin for shard in plan.shards for begin, end in blocks_of(shard.nbytes)]
    else:
        later = to_take_later(plan.tensors) if plan.options.sync else frozenset()
        left = [t.nbytes for t in plan.tensors if t.name in later and t.elements > plan.buffers.chunk]
    return Work(
        read=plan.data_read,
        written=plan.bytes_written,
        opens=len(files) * plan.buffers.threads,
        fingerprinted=sum(map(fingerprinted_bytes, files)),
        later=sum(left) * len(plan.outputs),
        longest=max(left, default=0) * len(plan.outputs),
        tensors=len(plan.pieces) * len(plan.outputs),
        synced=plan.options.sync,
    )
