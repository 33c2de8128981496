"""Which of the things in a checkpoint are the weights: the state dict among several.

Trainers put the state dict under a key of their own, beside optimizers and counters. Many keep an EMA of the weights
too: under a second key, or in the same state dict under a prefix (raw_or_ema). Which of the two is meant is never
guessed, but for an EMA under a key beside raw weights that lie under none, which no key could ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from belay_cli.checkpoints.containers import CONTAINERS, holds_tensors, state_dicts_in
from belay_cli.checkpoints.guessed_keys import below, without_guessed_keys
from belay_cli.checkpoints.raw_or_ema import Place, says_ema, without_ema
from belay_cli.formats.contents import NoWeights
from belay_cli.formats.text import listed, short

KEYS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
_WRAPPER = "app"  # of DCP's applications: a Stateful that saves model and optimizer together

# Words of keys under which trainers keep what is no model: whole words, for an upscaler is one.
_STATE = re.compile(
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
_SAVE = "save the weights by themselves: torch.save(model.state_dict(), path)"


class Swapped(NamedTuple):
    """A layout in which the EMA lies where the weights would be: the key of each, and what shows it."""

    averaged: str
    raw: str
    mark: str  # a key inside the raw one, without which the layout is not this one; empty if there is none


SWAPPED = (
    # Lightning's WeightAveraging (lightning/pytorch/callbacks/weight_averaging.py): on_save_checkpoint.
    Swapped("state_dict", "current_model_state", ""),
    # mmengine's EMAHook (mmengine/hooks/ema_hook.py): before_save_checkpoint swaps the two.
    Swapped("state_dict", "ema_state_dict", "steps"),
)


class Found(NamedTuple):
    """The raw weights and the EMA, each None if it is not there; keys of other weights; notes."""

    raw: Place | None
    ema: Place | None
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_state_dicts(
    root: Any, leaves: tuple[type, ...], *, state_key: str | None, source: str | None, keys_known: bool
) -> Found:
    """The weights in `root`, what was saved.

    state_key: where they lie, keys joined by dots; source: `raw` or `ema`. Raises NoWeights, without a file, if there
    are none, or several and nobody said which.
    """
    if not isinstance(root, dict):
        kind = "a tensor" if isinstance(root, leaves) else "a list" if isinstance(root, list) else "an object"
        raise NoWeights(f"holds {kind}, not a state dict", hint=_SAVE)
    notes: list[str] = []
    if not keys_known:
        root = without_guessed_keys(root, leaves, notes) if state_key is None else below(root, state_key)
        state_key = None
    search = _Search(root, leaves)
    found = search.usual(source) if state_key is None else search.under(state_key)
    return found._replace(notes=(*notes, *found.notes))


# ---- nested dicts


class _Search:
    """The state dicts in one object. Each container is looked at once, however the object nests or loops."""

    def __init__(self, root: dict[Any, Any], leaves: tuple[type, ...]) -> None:
        self._root = root
        self._leaves = leaves
        self._state_dicts = state_dicts_in(root, leaves)

    def usual(self, source: str | None) -> Found:
        """The weights where trainers put them. Raises NoWeights if that is not clear."""
        if self._is_state_dict(self._root):
            return Found(Place("", self._root), None)
        raws, emas = self._by_key()
        if not raws and (bare := self._bare()):
            return self._at_the_top(bare, emas, source)
        raws = raws or self._twins(emas)
        others = [key for key in self._keys() if key not in {place.key for place in (*raws, *emas)}]
        if source == "raw" and len(emas) > 1:
            others += [place.key for place in emas]
            emas = []  # which of them is not asked
        unusual = others if not all(self._is_usual(place) for place in raws) or not raws else []
        if not raws and self._has_weights_at_the_top():
            raise self._unclear(None)
        elsewhere, formless = self._other_emas((*raws, *emas))
        if source == "ema" and not emas and (elsewhere or formless):
            raise _no_usual_ema(elsewhere, formless)
        others = list(dict.fromkeys((*others, *elsewhere, *formless)))
        if len(raws) > 1 or len(emas) > 1 or not (raws or emas) or (unusual and source != "ema"):
            raise self._unclear(None, source)
        return Found(next(iter(raws), None), next(iter(emas), None), tuple(others), tuple(self._top_notes()))

    def under(self, state_key: str) -> Found:
        """What lies under the key that was asked for: raw weights or an EMA. Raises NoWeights."""
        value = _descend(self._root, state_key.split("."))
        if value is None and state_key and self._is_state_dict(self._root):
            value = self._named(f"{state_key}.")
        elif not self._is_state_dict(value):
            value = None
        if not value:
            raise self._unclear(state_key)
        place = Place(state_key, value)
        averaged = any(s.averaged == state_key and self._is_swapped(s) for s in SWAPPED)
        raw = any(s.raw == state_key and self._is_swapped(s) for s in SWAPPED)
        return Found(None, place) if averaged or (says_ema(state_key) and not raw) else Found(place, None)

    def _named(self, prefix: str) -> dict[str, Any]:
        """In one state dict, the entries whose names have a prefix, by the rest of their names."""
        return {name[len(prefix) :]: value for name, value in self._root.items() if name.startswith(prefix)}

    def _by_key(self) -> tuple[list[Place], list[Place]]:
        """Raw weights and EMAs under the keys that say so."""
        wrapped = self._root.get(_WRAPPER)
        tops = [("", self._root)]
        if isinstance(wrapped, dict) and not self._is_state_dict(wrapped):
            tops.append((f"{_WRAPPER}.", wrapped))
        raws = [place for prefix, top in tops for key in KEYS for place in self._inside(top, prefix, key)]
        emas = [
            place for prefix, top in tops for key in top if _is_ema_key(key) for place in self._inside(top, prefix, key)
        ]
        for swapped in SWAPPED:
            if self._is_swapped(swapped) and [place.key for place in raws] == [swapped.averaged]:
                return list(self._inside(self._root, "", swapped.raw)), raws
        return raws, emas

    def _is_swapped(self, layout: Swapped) -> bool:
        raw = self._root.get(layout.raw)
        return isinstance(raw, dict) and layout.averaged in self._root and (not layout.mark or layout.mark in raw)

    def _is_usual(self, place: Place) -> bool:
        return place.key.removeprefix(f"{_WRAPPER}.").partition(".")[0] in (*KEYS, *(s.raw for s in SWAPPED))

    def _twins(self, emas: Iterable[Place]) -> list[Place]:
        """The weights under a key that is that of an EMA without the word: `g` beside `g_ema`."""
        names = dict.fromkeys(without_ema(place.key) for place in emas)
        return [place for name in names if name for place in self._inside(self._root, "", name)]

    def _bare(self) -> dict[str, Any]:
        """The tensors at the top, if all other weights are a trainer's or an EMA's; empty if they are no model."""
        tensors = {
            key: value for key, value in self._root.items() if type(key) is str and isinstance(value, self._leaves)
        }
        tensors = {key: value for key, value in tensors.items() if "." in key or not _is_trainers(key)}
        clear = all(
            _is_trainers(str(key)) or _is_ema_key(key) or not holds_tensors(value, self._leaves)
            for key, value in self._root.items()
            if isinstance(value, CONTAINERS) and not isinstance(value, self._leaves)
        )
        return tensors if clear and all(type(key) is str for key in self._root) else {}

    def _at_the_top(self, bare: dict[str, Any], emas: list[Place], source: str | None) -> Found:
        """Weights under no key, beside an EMA under one: they are taken, unless the EMA is asked for."""
        others = [value for value in self._root.items() if type(value[0]) is str and value[0] not in bare]
        raw = Place("", bare | {key: value for key, value in others if not isinstance(value, CONTAINERS)})
        if source == "ema" and len(emas) == 1:
            return Found(raw, emas[0])
        if source == "ema" and emas:
            raise self._unclear(None)
        note = f"takes the weights at the top, not the EMA under {listed([place.key for place in emas])}"
        return Found(raw, None, (), (note,) if emas else ())

    def _top_notes(self) -> Iterator[str]:
        """About tensors at the top, beside the key of the weights."""
        tensors = [key for key, value in self._root.items() if type(key) is str and isinstance(value, self._leaves)]
        left = [key for key in tensors if not _is_trainers(key)]
        if left:
            yield f"leaves out what lies at the top, under no key of weights: {listed(left)}"

    def _is_state_dict(self, value: Any) -> bool:
        return id(value) in self._state_dicts

    def _inside(self, top: dict[Any, Any], prefix: str, key: str) -> Iterator[Place]:
        """The state dict under a key, or those one level further down under the usual keys."""
        value = top.get(key)
        if not isinstance(value, dict):
            return
        if self._is_state_dict(value):
            yield Place(prefix + key, value)
        else:
            inner = [name for name in (*KEYS, "shadow") if self._is_state_dict(value.get(name))]
            yield from (Place(f"{prefix}{key}.{name}", value[name]) for name in inner)

    def _has_weights_at_the_top(self) -> bool:
        entries = self._root.items()
        return any(isinstance(v, self._leaves) and type(k) is str and not _is_trainers(k) for k, v in entries)

    def _other_emas(self, known: Iterable[Place]) -> tuple[list[str], list[str]]:
        """Keys of EMAs elsewhere, joined by dots: of state dicts, and of what holds tensors in another form."""
        taken = {id(place.entries) for place in known}
        state_dicts: list[str] = []
        others: list[str] = []
        level: list[tuple[str, bool, dict[Any, Any]]] = [("", False, self._root)]
        for _ in range(_MOST_DEEP):
            deeper = []
            for prefix, inside, mapping in level:
                for key, value in mapping.items():
                    said = inside or (type(key) is str and says_ema(key))
                    if not isinstance(value, dict) or type(key) is not str or id(value) in taken:
                        continue
                    taken.add(id(value))
                    if self._is_state_dict(value):
                        state_dicts += [prefix + key] if said else []
                    elif (
                        said
                        and holds_tensors(value, self._leaves)
                        and not any(map(self._is_state_dict, value.values()))
                    ):
                        others.append(prefix + key)
                    else:
                        deeper.append((f"{prefix}{key}.", said, value))
            level = deeper
        return state_dicts, others

    def _has_no_names(self, value: dict[Any, Any]) -> bool:
        """Whether tensors lie in a dict, and in no state dict that is in it."""
        return holds_tensors(value, self._leaves) and not any(map(self._is_state_dict, value.values()))

    def _unclear(self, state_key: str | None, source: str | None = None) -> NoWeights:
        names = self._keys()
        if state_key is None and names and self._has_weights_at_the_top():
            what = f"holds weights at the top and under {listed(names)}, and other tensors beside them"
            return NoWeights(what, hint=f"say which: --state-key {listed(names[:1])}; or {_SAVE}")
        missed = f"holds no state dict under {short(state_key)}" if state_key is not None else None
        if names:
            emas = [name for name in names if says_ema(name)]
            raws = [name for name in names if name not in emas]
            wanted = emas if source == "ema" else raws
            what = missed or "holds several state dicts"
            if missed is None and len(names) == 1:
                what = "holds no state dict under a usual key"
            where = f"weights lie under {listed(names)}"
            if missed is None and raws and len(emas) == 1:
                where = f"{listed(raws)}, and an EMA {listed(emas)}"
            return NoWeights(f"{what}: {where}", hint=f"say which: --state-key {listed((wanted or names)[:1])}")
        if self._is_state_dict(self._root):
            return NoWeights(f"{missed}: it is one itself", hint="leave --state-key out")
        keys = listed([key for key in self._root if type(key) is str])
        what = f"holds no state dict; its keys are: {keys}" if keys else "holds no state dict"
        return NoWeights(what, hint=_SAVE)

    def _may_be_model(self, key: str, value: dict[Any, Any]) -> bool:
        """Whether tensors under a key are more than numbers, where it is one of those under which numbers lie."""
        tensors = (leaf for leaf in value.values() if isinstance(leaf, self._leaves))
        return not _NUMBERS.fullmatch(key) or any(getattr(leaf, "shape", (1,)) for leaf in tensors)

    def _keys(self) -> list[str]:
        """The keys, joined by dots, under which state dicts lie, those of optimizers and the like left out."""
        found: list[str] = []
        seen = {id(self._root)}
        level = [("", self._root)]
        for _ in range(_MOST_DEEP):
            deeper = []
            for prefix, mapping in level:
                for key, value in mapping.items():
                    if not isinstance(value, dict) or id(value) in seen or type(key) is not str:
                        continue
                    seen.add(id(value))
                    if self._is_state_dict(value) and not _STATE.fullmatch(key) and self._may_be_model(key, value):
                        found.append(prefix + key)
                    elif not _STATE.fullmatch(key) and "param_groups" not in value:
                        deeper.append((f"{prefix}{key}.", value))
            level = deeper
        return found


def _no_usual_ema(state_dicts: list[str], formless: list[str]) -> NoWeights:
    if state_dicts:
        what = f"holds no EMA under a usual key; one lies under {listed(state_dicts)}"
        return NoWeights(what, hint=f"say which: --state-key {listed(state_dicts[:1])}")
    what = f"holds an EMA under {listed(formless)} that is no state dict: its tensors have no names"
    return NoWeights(what, hint="save the EMA's state dict by itself, or leave --source out")


def _is_ema_key(key: Any) -> bool:
    return type(key) is str and says_ema(key) and _STATE.fullmatch(key) is None


def _is_trainers(key: str) -> bool:
    """Whether a key at the top is that of a trainer's own state, or of a number that it records."""
    return _STATE.fullmatch(key) is not None or _RECORDS.fullmatch(key) is not None


def _descend(value: Any, parts: list[str]) -> Any:
    """The value under keys joined by dots; a key may have dots of its own. None if there is none."""
    if not parts:
        return value
    if not isinstance(value, dict):
        return None
    for count in range(len(parts), 0, -1):
        key = ".".join(parts[:count])
        if key in value and (found := _descend(value[key], parts[count:])) is not None:
            return found
    return None
