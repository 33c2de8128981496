"""Which of the things in a torch file are the weights: the state dict, and whether it is the raw one or an EMA.

Trainers put the state dict under a key of their own, beside optimizers and counters. Many keep an EMA of the weights
too: under a second key, or in the same state dict under a prefix. Which of the two is meant is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from belay_cli.checkpoints.ema_layouts import Entries, Place, says_ema, split
from belay_cli.checkpoints.storage import AnyPath
from belay_cli.checkpoints.torch_pickle import Unreadable, View
from belay_cli.checkpoints.torch_zip import listed, short
from belay_cli.errors import CheckpointError

_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
_NO_WEIGHTS = re.compile(
    r"optim|sched|rng|random|scaler|callback|loops?$|hyper|config|args|averaging_state|loss|metric", re.IGNORECASE
)
_EMA_FILE = re.compile(r".*[-_.]ema", re.IGNORECASE)

# Lightning's WeightAveraging puts the average where the weights were, and those under a key of their own.
_LIGHTNING, _LIGHTNING_RAW = "state_dict", "current_model_state"

_MOST_DEEP = 3  # keys in a row that lead to weights
_CONTAINERS = (dict, list, tuple, set, frozenset)
_TENSORS = (View, Unreadable)


class Choice(NamedTuple):
    """What was chosen, and notes for the person who did not choose it."""

    entries: Entries
    notes: tuple[str, ...] = ()


class NoWeights(CheckpointError):  # noqa: N818 - it reads as what it is
    """No weights where they are looked for."""


def choose_state_dict(root: Any, path: AnyPath, *, state_key: str | None, source: str | None) -> Choice:
    """The weights in `root`, the object of a torch file.

    state_key: where they lie, keys joined by dots; source: `raw` or `ema`. Raises NoWeights if there are none, and
    CheckpointError if several are there, or raw weights and their EMA, and nobody said which.
    """
    if not isinstance(root, dict):
        kind = "a tensor" if isinstance(root, _TENSORS) else "a list" if isinstance(root, list) else "an object"
        raise NoWeights(f"holds {kind}, not a state dict", file=path, hint=_SAVE)
    search = _Search(root, path)
    raw, ema = search.usual(source) if state_key is None else search.under(state_key)
    if state_key is not None and says_ema(state_key):
        source = source or "ema"  # named by its key, so asked for
    raw, ema = _apart(raw, ema)
    if raw is not None and ema is None and _named_ema(path, source):
        ema, raw = raw._replace(part="by the name of the file"), None
    taken = _take(raw, ema, source, path)
    if not any(isinstance(value, _TENSORS) for value in taken.entries.values()):
        raise NoWeights(f"holds no weights, only counters ({taken.where})", file=path, hint=_SAVE)
    notes = [*_both(raw, ema, taken), *(search.left_out(raw, ema, taken) if state_key is None else ())]
    return Choice(taken.entries, tuple(notes))


_SAVE = "save the weights by themselves: torch.save(model.state_dict(), path)"


def _apart(raw: Place | None, ema: Place | None) -> tuple[Place | None, Place | None]:
    """Raw weights and EMA, also where one state dict holds both."""
    if ema is not None:
        _, inner = split(ema)
        ema = inner or ema
    if raw is not None:
        raw, inner = split(raw)
        ema = ema or inner
    return raw, ema


def _named_ema(path: AnyPath, source: str | None) -> bool:
    """Whether the name says that the file is the EMA twin of another: NeMo's `-EMA.ckpt`, diffusers' `unet_ema/`."""
    twin = _EMA_FILE.fullmatch(path.stem) is not None
    return twin or (source == "ema" and _EMA_FILE.fullmatch(path.absolute().parent.name) is not None)


def _take(raw: Place | None, ema: Place | None, source: str | None, path: AnyPath) -> Place:
    if raw is not None and ema is not None and source is None:
        raise CheckpointError(
            f"holds raw weights ({raw.where}) and their EMA ({ema.where})",
            file=path,
            hint="say which: --source raw or --source ema; averaging an EMA again gives an EMA of an EMA",
        )
    if source == "ema":
        if ema is None:
            raise CheckpointError("holds no EMA", file=path, hint="leave --source out, or leave the checkpoint out")
        return ema
    if raw is None:
        where = ema.where if ema is not None else ""
        raise CheckpointError(
            f"holds only an average of weights ({where})",
            file=path,
            hint="leave it out, or average EMAs on purpose: --source ema",
        )
    return raw


def _both(raw: Place | None, ema: Place | None, taken: Place) -> Iterator[str]:
    if raw is not None and ema is not None:
        what, other = ("raw weights", ema) if taken is raw else ("EMA", raw)
        yield f"takes the {what} ({taken.where}), not {other.where}"


class _Search:
    """The state dicts in one object. Each container is looked at once, however the object nests or loops."""

    def __init__(self, root: dict[Any, Any], path: AnyPath) -> None:
        self._root = root
        self._path = path
        self._state_dicts = _state_dicts(root)

    def usual(self, source: str | None) -> tuple[Place | None, Place | None]:
        """The raw weights and the EMA where trainers put them. Raises NoWeights if that is not clear."""
        if self._is_state_dict(self._root):
            return Place("", self._root), None
        raws = [place for key in _KEYS for place in self._inside(key)]
        emas = [place for key in self._root if _is_ema_key(key) for place in self._inside(key)]
        current = list(self._inside(_LIGHTNING_RAW))
        if current and [place.key for place in raws] == [_LIGHTNING]:
            raws, emas = current, raws
        if source == "raw" and len(emas) > 1:
            emas = []  # which of them is not asked
        if len(raws) > 1 or len(emas) > 1 or not (raws or emas):
            raise self._unclear(None)
        return next(iter(raws), None), next(iter(emas), None)

    def under(self, state_key: str) -> tuple[Place | None, Place | None]:
        """What lies under the key that was asked for: raw weights or an EMA. Raises NoWeights."""
        value = _descend(self._root, state_key.split("."))
        if not self._is_state_dict(value):
            raise self._unclear(state_key)
        place = Place(state_key, value)
        averaged = state_key == _LIGHTNING and _LIGHTNING_RAW in self._root
        return (None, place) if averaged or says_ema(state_key) else (place, None)

    def left_out(self, raw: Place | None, ema: Place | None, taken: Place) -> Iterator[str]:
        """A note about weights that were not looked for."""
        known = {place.key for place in (raw, ema) if place is not None}
        others = [key for key in self._keys() if key not in known]
        if others:
            yield f"takes the weights under {listed([taken.key])}, not those under {listed(others)}"

    def _is_state_dict(self, value: Any) -> bool:
        return id(value) in self._state_dicts

    def _inside(self, key: str) -> Iterator[Place]:
        """The state dict under a key, or those one level further down under the usual keys."""
        value = self._root.get(key)
        if not isinstance(value, dict):
            return
        if self._is_state_dict(value):
            yield Place(key, value)
        else:
            inner = [name for name in (*_KEYS, "shadow") if self._is_state_dict(value.get(name))]
            yield from (Place(f"{key}.{name}", value[name]) for name in inner)

    def _unclear(self, state_key: str | None) -> NoWeights:
        names = self._keys()
        missed = f"holds no state dict under {short(state_key)}" if state_key is not None else None
        if names:
            where = f"weights lie under {listed(names)}"
            what = f"{missed or 'holds several state dicts'}: {where}"
            if missed is None and len(names) == 1:
                what = f"holds no state dict under a usual key: {where}"
            return NoWeights(what, file=self._path, hint=f"say which: --state-key {listed(names[:1])}")
        if self._is_state_dict(self._root):
            return NoWeights(f"{missed}: it is one itself", file=self._path, hint="leave --state-key out")
        keys = listed([key for key in self._root if type(key) is str])
        what = f"holds no state dict; its keys are: {keys}" if keys else "holds no state dict"
        return NoWeights(what, file=self._path, hint=_SAVE)

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
                    if self._is_state_dict(value) and not _NO_WEIGHTS.search(key):
                        found.append(prefix + key)
                    elif not _NO_WEIGHTS.search(key) and "param_groups" not in value:
                        deeper.append((f"{prefix}{key}.", value))
            level = deeper
        return found


def _is_ema_key(key: Any) -> bool:
    return type(key) is str and says_ema(key) and _NO_WEIGHTS.search(key) is None


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


def _state_dicts(root: dict[Any, Any]) -> set[int]:
    """The identity of each dict inside that maps names to tensors, and has no tensors further down."""
    named: set[int] = set()  # dicts from text to something, tensors among it
    holders: list[int] = []  # containers with a tensor in them, then those with such a container in them
    parents: dict[int, list[int]] = {id(root): []}
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        entries = value.values() if isinstance(value, dict) else value
        if any(isinstance(entry, _TENSORS) for entry in entries):
            holders.append(id(value))
            if isinstance(value, dict) and all(type(key) is str for key in value):
                named.add(id(value))
        for entry in _inner(value):
            if id(entry) not in parents:
                parents[id(entry)] = []
                stack.append(entry)
            parents[id(entry)].append(id(value))
    deep: set[int] = set()
    while holders:
        above = set(parents[holders.pop()]) - deep
        deep |= above
        holders += above
    return named - deep


def _inner(value: Any) -> Iterator[Any]:
    """The containers in a container that may hold weights; what a module keeps for itself is none."""
    if isinstance(value, dict):
        pairs = value.items()
        yield from (
            entry
            for key, entry in pairs
            if isinstance(entry, _CONTAINERS)
            and not isinstance(entry, _TENSORS)
            and not (type(key) is str and key.endswith("_extra_state"))
        )
    else:
        yield from (e for e in value if isinstance(e, _CONTAINERS) and not isinstance(e, _TENSORS))
