"""What was recognised in each checkpoint, and why, in words for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from belay_cli.checkpoints.adapters.names import ADAPTER_CONFIG, factors_in, kind_by_names
from belay_cli.checkpoints.checkpoint import Checkpoint, is_of_training, is_replayed
from belay_cli.checkpoints.packed import packed
from belay_cli.checkpoints.weights import inside


def recognised(checkpoints: Sequence[Checkpoint]) -> list[dict[str, str]]:
    """Of each checkpoint, by what it is: format, state dict, raw or EMA, names, adapter, packing, aliases, step."""
    of_layout: dict[int, dict[str, str]] = {}  # checkpoints of one layout share their tensors
    found = []
    for checkpoint in checkpoints:
        names = of_layout.setdefault(id(checkpoint.tensors), _by_names(checkpoint.tensors))
        found.append(
            {
                **checkpoint.weights.recognised,
                **(names or _by_configuration(checkpoint)),
                **_packed(checkpoint),
                **_aliases(checkpoint),
                **_averaged(checkpoint),
                "step": checkpoint.step_from or "none",
            }
        )
    return found


def _by_names(names: Iterable[str]) -> dict[str, str]:
    known = dict.fromkeys(names)
    factors = list(factors_in(known))
    kind = kind_by_names(known)
    if not factors and kind is None:
        return {}
    updates = len({factor.update for factor in factors})
    shown = f", by {factors[0].name}" if factors else ", by its names"
    return {"adapter": f"{kind or 'LoRA'}{_counted(updates)}{shown}"}


def _counted(updates: int) -> str:
    return f", {updates} update{'s' if updates > 1 else ''}" if updates else ""


def _averaged(checkpoint: Checkpoint) -> dict[str, str]:
    if is_of_training(checkpoint):
        return {"weights": "an average", "average": "of training, by belay_cli.training"}
    return {"average": "of belay, by its record"} if is_replayed(checkpoint) else {}


def _by_configuration(checkpoint: Checkpoint) -> dict[str, str]:
    directories = [part.directory for part in checkpoint.weights.components.values()]
    known = any(directory is not None and (directory / ADAPTER_CONFIG).is_file() for directory in directories)
    return {"adapter": f"by {ADAPTER_CONFIG}"} if known else {}


def _packed(checkpoint: Checkpoint) -> dict[str, str]:
    for folder, part in checkpoint.weights.components.items():
        if found := packed(part.tensors, part.directory, ()):
            return {"packed": f"{found.what}, by {inside(folder, found.tensor)}"}
    return {}


def _aliases(checkpoint: Checkpoint) -> dict[str, str]:
    names = checkpoint.weights.aliases
    if not names:
        return {}
    name, kept = next(iter(names.items()))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return {"shared": f"{name} is {kept}{more}"}
