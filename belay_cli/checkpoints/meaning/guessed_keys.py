"""Names of which nothing says which of their dots are those between keys of what was saved."""

from __future__ import annotations

import re
from typing import Any

from belay_cli.formats.contents import NoWeights
from belay_cli.formats.text import listed, short

# What a trainer saves beside the model in one dict without keys, by the first part of the names.
_TRAINER = re.compile(
    r"(.*_)?(optim|optimizers?|lr_?schedulers?|schedulers?|rng(_states?)?|train(er)?_state|data_?loaders?|scaler|sampler)"
    r"(_\d+|_states?)?",
    re.IGNORECASE,
)
_MODEL = frozenset(("model", "app", "state_dict", "model_state_dict", "module", "net", "weights"))


def without_guessed_keys(root: dict[str, Any], leaves: tuple[type, ...], notes: list[str]) -> dict[str, Any]:
    """The model's entries, without the prefix that all of them have, if it is one that trainers give."""
    taken = ""
    while True:
        if taken in ("", "app."):  # further in, a model may have parts of such names
            states = dict.fromkeys(top for name in root if _TRAINER.fullmatch(top := name.partition(".")[0]))
            notes += [f"leaves out {listed(list(states))}, by name a trainer's and not the model's"] if states else []
            root = {name: value for name, value in root.items() if name.partition(".")[0] not in states}
        tops = {name.partition(".")[0] for name, value in root.items() if isinstance(value, leaves)}
        if len(tops) != 1 or not tops <= _MODEL:
            break
        (top,) = tops
        taken += f"{top}."
        root = {name.removeprefix(f"{top}."): value for name, value in root.items() if name != top}
    if taken:
        notes.append(f"names are taken without the {taken} under which they were saved")
    return root


def below(root: dict[str, Any], key: str) -> dict[str, Any]:
    """The entries under a prefix, by what follows it."""
    prefix = f"{key}."
    found = {name[len(prefix) :]: value for name, value in root.items() if name.startswith(prefix)}
    if not found:
        tops = dict.fromkeys(name.partition(".")[0] for name in root)
        raise NoWeights(f"holds no state dict under {short(key)}", hint=f"its names begin with {listed(list(tops))}")
    return found
