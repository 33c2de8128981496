"""What was saved, as nested dicts: where in it state dicts lie, and which keys are those of a trainer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from belay_cli.checkpoints.meaning.containers import holds_tensors, state_dicts_in
from belay_cli.checkpoints.meaning.raw_or_ema import Place, says_ema

KEYS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")

# Words of keys under which trainers keep what is no model: whole words, for an upscaler is one.
STATE = re.compile(
    r"(?:.*[-_. ])?(?:optim\w*|sched\w*|lr_?sched\w*|rng|rngs|random|(?:grad_?)?scaler|amp|callbacks?|loops?|hparams"
    r"|hyper_?param\w*|config|cfg|args|averaging|train(?:er)?_state|data_?loaders?|sampler|ds_config)(?:[-_. ].*)?",
    re.IGNORECASE,
)
# Under these a trainer keeps numbers, and some models a part of theirs.
_NUMBERS = re.compile(r"(?:.*[-_. ])?(?:loss(?:es)?|metrics?|stats|history|results?)(?:[-_. ].*)?", re.IGNORECASE)
# Names of single tensors that trainers keep at the top: they are no weights of a model.
_RECORDS = re.compile(
    r"(?:cur(?:rent)?_?|global_?|total_?)?(?:epochs?|iter(?:ation)?s?(?:_num)?|steps?)|best_\w+|lr|(?:ema_)?decay"
    r"|num_updates",
    re.IGNORECASE,
)

_MOST_DEEP = 3  # keys in a row that lead to weights


class Saved:
    """The root dict of what was saved. Each container in it is looked at once, however it nests or loops."""

    def __init__(self, root: dict[Any, Any], leaves: tuple[type, ...]) -> None:
        self.root = root
        self.leaves = leaves
        self._state_dicts = state_dicts_in(root, leaves)

    def is_state_dict(self, value: Any) -> bool:
        """Whether it is a dict of names to tensors, and has none further in."""
        return id(value) in self._state_dicts

    def inside(self, top: dict[Any, Any], prefix: str, key: str) -> Iterator[Place]:
        """The state dict under a key, or those one level further down under the usual keys."""
        value = top.get(key)
        if not isinstance(value, dict):
            return
        if self.is_state_dict(value):
            yield Place(prefix + key, value)
        else:
            inner = [name for name in (*KEYS, "shadow") if self.is_state_dict(value.get(name))]
            yield from (Place(f"{prefix}{key}.{name}", value[name]) for name in inner)

    def at_the_top(self) -> dict[str, Any]:
        """The tensors under no key of a state dict, by name."""
        return {k: v for k, v in self.root.items() if type(k) is str and isinstance(v, self.leaves)}

    def has_weights_at_the_top(self) -> bool:
        """Whether tensors lie under no key that are not a trainer's."""
        return not all(map(is_trainers, self.at_the_top()))

    def below(self, prefix: str) -> dict[str, Any]:
        """In one state dict, the entries whose names have a prefix, by the rest of their names."""
        return {name[len(prefix) :]: value for name, value in self.root.items() if name.startswith(prefix)}

    def model_keys(self) -> list[str]:
        """The keys, joined by dots, under which state dicts lie, those of optimizers and the like left out."""
        found: list[str] = []
        seen = {id(self.root)}
        level = [("", self.root)]
        for _ in range(_MOST_DEEP):
            deeper = []
            for prefix, mapping in level:
                for key, value in mapping.items():
                    if not isinstance(value, dict) or id(value) in seen or type(key) is not str:
                        continue
                    seen.add(id(value))
                    if self.is_state_dict(value) and not STATE.fullmatch(key) and self._may_be_model(key, value):
                        found.append(prefix + key)
                    elif not STATE.fullmatch(key) and "param_groups" not in value:
                        deeper.append((f"{prefix}{key}.", value))
            level = deeper
        return found

    def _may_be_model(self, key: str, value: dict[Any, Any]) -> bool:
        """Whether tensors under a key are more than numbers, where it is one of those under which numbers lie."""
        tensors = (leaf for leaf in value.values() if isinstance(leaf, self.leaves))
        return not _NUMBERS.fullmatch(key) or any(getattr(leaf, "shape", (1,)) for leaf in tensors)

    def other_emas(self, known: Iterable[Place]) -> tuple[list[str], list[str]]:
        """Keys of EMAs elsewhere, joined by dots: of state dicts, and of what holds tensors in another form."""
        taken = {id(place.entries) for place in known}
        state_dicts: list[str] = []
        others: list[str] = []
        level: list[tuple[str, bool, dict[Any, Any]]] = [("", False, self.root)]
        for _ in range(_MOST_DEEP):
            deeper = []
            for prefix, inside, mapping in level:
                for key, value in mapping.items():
                    said = inside or (type(key) is str and says_ema(key))
                    if not isinstance(value, dict) or type(key) is not str or id(value) in taken:
                        continue
                    taken.add(id(value))
                    if self.is_state_dict(value):
                        state_dicts += [prefix + key] if said else []
                    elif said and self._has_no_names(value):
                        others.append(prefix + key)
                    else:
                        deeper.append((f"{prefix}{key}.", said, value))
            level = deeper
        return state_dicts, others

    def _has_no_names(self, value: dict[Any, Any]) -> bool:
        """Whether tensors lie in a dict, and in no state dict that is in it."""
        return holds_tensors(value, self.leaves) and not any(map(self.is_state_dict, value.values()))


def is_ema_key(key: Any) -> bool:
    """Whether a key is that of an EMA, and not of a trainer's state for it."""
    return type(key) is str and says_ema(key) and STATE.fullmatch(key) is None


def is_trainers(key: str) -> bool:
    """Whether a key at the top is that of a trainer's own state, or of a number that it records."""
    return STATE.fullmatch(key) is not None or _RECORDS.fullmatch(key) is not None


def descend(value: Any, parts: list[str]) -> Any:
    """The value under keys joined by dots; a key may have dots of its own. None if there is none."""
    if not parts:
        return value
    if not isinstance(value, dict):
        return None
    for count in range(len(parts), 0, -1):
        key = ".".join(parts[:count])
        if key in value and (found := descend(value[key], parts[count:])) is not None:
            return found
    return None
