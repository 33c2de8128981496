"""Prefixes that wrappers put before the names of a model, which the model itself does not have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.formats.text import short

# torch.compile puts this part before the names of each module that it compiles (torch/_dynamo/eval_frame.py).
_COMPILED = "_orig_mod"

# DataParallel and DistributedDataParallel put this before all names (torch/nn/parallel/distributed.py).
_WRAPPERS = re.compile(r"(?:module\.(?=.))*", re.DOTALL)  # matches every name, and leaves some of it

# FSDP and activation checkpointing put these parts before those of what they wrap (torch/distributed/fsdp).
_INNER = {
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}


def plain_names(names: list[str]) -> tuple[list[str], list[str]]:
    """Names without what wrappers put before them, one each, and notes that say so."""
    notes = []
    plain = names
    for part, wrapper in ((_COMPILED, "torch.compile"), *_INNER.items()):
        without = [_without(name, part) for name in plain]
        if without != plain:
            notes.append(f"names are taken without the {part}. of {wrapper}")
            plain = without
    wrappers = min((len(found[0]) for name in plain if (found := _WRAPPERS.match(name))), default=0)
    if wrappers:
        plain = [name[wrappers:] for name in plain]
        notes.append("names are taken without the module. of DataParallel")
    return plain, notes


def _without(name: str, part: str) -> str:
    """A name without a part between dots; what is nothing else stays."""
    if part not in name:
        return name
    return ".".join(found for found in name.split(".") if found != part) or name


def by_plain_name(entries: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors by the names that the model itself has, and notes. Raises CheckpointError if two have one name."""
    names, notes = plain_names(list(entries))
    found: dict[str, Any] = {}
    for name, value in zip(names, entries.values(), strict=True):
        if name in found:
            raise CheckpointError(
                f"has {short(name)} twice, once with a prefix of torch.compile or DataParallel",
                tensor=name,
                hint="two models lie in one state dict; save the one to average by itself",
            )
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            raise CheckpointError(
                f"has the name {short(name)}, which is not one in Unicode",
                tensor=name,
                hint="save the checkpoint again under another name",
            )
        found[name] = value
    return found, notes
