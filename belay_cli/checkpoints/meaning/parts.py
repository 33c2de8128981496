"""Parts of tensors: what one rank of a parallel run saved, which is no model by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.formats.text import short
from belay_cli.formats.unknown import Unknown


def refuse_parts_of_a_rank(root: Any, named: Mapping[str, Any]) -> None:
    """Raise CheckpointError, without a file, for a rank of DeepSpeed or Megatron-LM, where others hold more."""
    if not isinstance(root, dict):
        return
    deepspeed = "ds_version" in root and "module" in root
    ranks = root.get("mp_world_size") if deepspeed else _megatron_ranks(root.get("args"))
    if type(ranks) is int and ranks > 1:
        raise CheckpointError(
            f"is the part of one of {ranks} model-parallel ranks",
            hint="put the ranks together first: ds_to_universal.py, or the converter of the training code",
        )
    for name, leaf in named.items() if deepspeed else ():
        if 0 in getattr(leaf, "shape", ()):
            raise CheckpointError(
                f"holds no weights but placeholders ({short(name)}): they lie in shards of DeepSpeed ZeRO",
                tensor=name,
                hint="put them together first: python zero_to_fp32.py RUN OUT --safe_serialization",
            )


def _megatron_ranks(args: Any) -> int:
    """How many ranks share the weights, by the arguments that Megatron-LM saves with them."""
    if not isinstance(args, Unknown):
        return 1
    kinds = ("tensor", "pipeline", "expert")
    sizes = [args.attribute(f"{kind}_model_parallel_size") for kind in kinds]
    return max((size for size in sizes if type(size) is int), default=1)
