"""What becomes of a series of adapters: their factors as they are, or the updates that these stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.adapters.config import adapter_config, is_linear, metadata_scales, recorded_kind, with_rank
from belay_cli.checkpoints.adapters.lora import MERGE, Pair, knows_alpha, scale_names, update_pairs
from belay_cli.checkpoints.adapters.names import ADAPTER_CONFIG, is_adapter, kind_by_names, needs_choice
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.errors import SeriesError, UsageError
from belay_cli.formats.contents import Tensor
from belay_cli.planning.policies import AVERAGE, Policies


def planned_updates(
    series: Series, lora: str | None, policies: Policies, tensors: Mapping[str, Tensor]
) -> tuple[Pair, ...]:
    """The updates to average as products; SeriesError if the series is of adapters and nobody said how."""
    if not is_adapter(series.last):
        if lora:
            raise UsageError(f"--lora {lora} is for adapters, and these are none", hint="leave it out")
        return ()
    if is_linear(series.last) or lora == "factors":
        return ()

    def averaged(name: str) -> bool:
        return policies.action(name, tensors[name].dtype) == AVERAGE

    if lora is None:
        if _anything_to_choose(tensors, averaged):
            raise _undecided(series.last)
        return ()

    if series.last.weights.parts:
        raise UsageError(
            "--lora delta is for one adapter, and these checkpoints are several models",
            hint="take one of them: --subfolder NAME",
        )
    pairs = update_pairs(series.checkpoints, tensors, averaged)
    for pair in pairs:
        if not (averaged(pair.a) and averaged(pair.b)):
            raise UsageError(f"{pair.a!r} and {pair.b!r} are one update, and need one policy")
    return pairs


def _anything_to_choose(names: Iterable[str], averaged: Callable[[str], bool]) -> bool:
    """Whether anything of an adapter is averaged; where the names tell nothing, all of it may be."""
    factors = [name for name in names if needs_choice(name)]
    return not factors or any(map(averaged, factors))


def apart_warning(last: Checkpoint, averaged: Collection[str]) -> str | None:
    """About factors that are averaged as they are; `averaged` names all tensors that are."""
    if not is_adapter(last) or is_linear(last) or not _anything_to_choose(last.tensors, averaged.__contains__):
        return None
    if kind := _other_kind(last):
        return (
            f"these are adapters of the kind {kind}: their tensors are averaged apart, which is not the average of the "
            "updates they stand for; for that, merge each adapter into its model and average the models"
        )
    return (
        "these are adapters: their factors A and B are averaged apart, which is not the average of the "
        "updates B·A they stand for; for that: --lora delta"
    )


def _other_kind(last: Checkpoint) -> str | None:
    """What an adapter is called whose update is no product of two factors; None if it is one."""
    return recorded_kind(last, adapter_config(last)) or kind_by_names(last.tensors)


def _undecided(last: Checkpoint) -> SeriesError:
    if kind := _other_kind(last):
        return SeriesError(
            f"is an adapter of the kind {kind}: the average of its tensors is not the average of the updates that "
            "they stand for",
            file=last.path,
            hint=f"{MERGE} averages the tensors as they are",
        )
    return SeriesError(
        "is an adapter: the average of its factors A and B is not the average of the updates B·A",
        file=last.path,
        hint="--lora delta averages the updates, kept low-rank; --lora factors averages A and B as they are",
    )


def of_rank(factor: Tensor, rank: int, axis: int) -> tuple[int, ...]:
    """The shape of a factor of another rank: A is [r, in …], axis 0, and B is [out, r …], axis 1."""
    return (*factor.shape[:axis], rank, *factor.shape[axis + 1 :])


def edited_config(series: Series, rank: int | None, copies: Sequence[str]) -> dict[str, bytes]:
    """adapter_config.json for another rank, by its name; nothing if the rank stays, or it is no LoRA's.

    Raises UsageError where more than that file depends on the rank, or it does not go with the output.
    """
    if rank is None:
        return {}
    if is_linear(series.last):
        raise UsageError("--lora-rank is for LoRA, and these adapters are of another kind", hint="leave it out")
    last = series.last
    # What sd-scripts tells of a training is read by nobody: loaders take the rank and alpha from the tensors.
    elsewhere = [key for key in metadata_scales(last) if not key.startswith("ss_")]
    if elsewhere or (ADAPTER_CONFIG in copies and scale_names(last.tensors)):
        where = repr(elsewhere[0]) if elsewhere else "tensors and in a configuration"
        raise UsageError(
            f"--lora-rank: the scale of these adapters lies in {where}, for the rank that they have",
            hint="leave it out: each update keeps its rank",
        )
    if ADAPTER_CONFIG not in copies and knows_alpha(last.tensors):
        return {}
    if ADAPTER_CONFIG not in copies:
        raise UsageError(
            f"--lora-rank: the scale of the updates depends on the rank, and no {ADAPTER_CONFIG} goes with the output",
            hint="give directories that hold one, and a directory for the output; or leave it out",
        )
    config = with_rank(adapter_config(last), rank)
    return {ADAPTER_CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
