"""What becomes of a series of adapters: their factors as they are, or the updates that these stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.checkpoint import is_adapter
from belay_cli.checkpoints.lora import ADAPTER_CONFIG, Pair, adapter_config, is_linear, update_pairs, with_rank
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.errors import SeriesError, UsageError
from belay_cli.plan.policies import AVERAGE, Policies

LORA = ("factors", "delta")


def planned_updates(
    series: Series, lora: str | None, policies: Policies, tensors: Mapping[str, Tensor]
) -> tuple[Pair, ...]:
    """The updates to average as products; SeriesError if the series is of adapters and nobody said how."""
    if not is_adapter(series.last):
        if lora:
            raise UsageError(f"--lora {lora} is for adapters, and these are none", hint="leave it out")
        return ()
    if is_linear(series.last):
        return ()
    if lora is None:
        raise SeriesError(
            "is an adapter: the average of its factors A and B is not the average of the updates B·A",
            file=series.last.path,
            hint="--lora delta averages the updates, kept low-rank; --lora factors averages A and B as they are",
        )
    if lora == "factors":
        return ()
    averaged = []
    for pair in update_pairs(series.checkpoints, tensors):
        actions = {policies.action(name, tensors[name].dtype) for name in pair}
        if len(actions) > 1:
            raise UsageError(f"{pair.a!r} and {pair.b!r} are one update, and need one policy")
        averaged += [pair] if actions == {AVERAGE} else []
    return tuple(averaged)


def of_rank(factor: Tensor, rank: int) -> tuple[int, ...]:
    """The shape of a factor of another rank: A is [r, in …], B is [out, r …]."""
    place = 0 if re.search(r"\.lora_(embedding_)?A", factor.name) else 1
    return (*factor.shape[:place], rank, *factor.shape[place + 1 :])


def edited_config(series: Series, rank: int | None, copies: Sequence[str]) -> dict[str, bytes]:
    """adapter_config.json for another rank, by its name; nothing if the rank stays."""
    if rank is None or ADAPTER_CONFIG not in copies:
        return {}
    config = with_rank(adapter_config(series.last), rank)
    return {ADAPTER_CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
