"""Which of the things in a checkpoint are the weights: the state dict among several.

Trainers put the state dict under a key of their own, beside optimizers and counters. Many keep an EMA of the weights
too: under a second key, or in the same state dict under a prefix (raw_or_ema). Which of the two is meant is never
guessed, but for an EMA under a key beside raw weights that lie under none, which no key could ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from belay_cli.checkpoints.meaning.containers import CONTAINERS, holds_tensors
from belay_cli.checkpoints.meaning.guessed_keys import below, without_guessed_keys
from belay_cli.checkpoints.meaning.raw_or_ema import Place, says_ema, without_ema
from belay_cli.checkpoints.meaning.saved import KEYS, Saved, descend, is_ema_key, is_trainers
from belay_cli.formats.contents import NoWeights
from belay_cli.formats.text import listed, short

_WRAPPER = "app"  # of DCP's applications: a Stateful that saves model and optimizer together

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
    search = _Search(Saved(root, leaves))
    found = search.usual(source) if state_key is None else search.under(state_key)
    return found._replace(notes=(*notes, *found.notes))


# ---- nested dicts


class _Search:
    """Which of the state dicts in what was saved are meant."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved

    def usual(self, source: str | None) -> Found:
        """The weights where trainers put them. Raises NoWeights if that is not clear."""
        if self._saved.is_state_dict(self._saved.root):
            return Found(Place("", self._saved.root), None)
        raws, emas = self._by_key()
        if not raws and (bare := self._bare()):
            return self._at_the_top(bare, emas, source)
        raws = raws or self._twins(emas)
        others = [key for key in self._saved.model_keys() if key not in {place.key for place in (*raws, *emas)}]
        if source == "raw" and len(emas) > 1:
            others += [place.key for place in emas]
            emas = []  # which of them is not asked
        unusual = others if not all(self._is_usual(place) for place in raws) or not raws else []
        if not raws and self._saved.has_weights_at_the_top():
            raise self._unclear(None)
        elsewhere, formless = self._saved.other_emas((*raws, *emas))
        if source == "ema" and not emas and (elsewhere or formless):
            raise _no_usual_ema(elsewhere, formless)
        others = list(dict.fromkeys((*others, *elsewhere, *formless)))
        if len(raws) > 1 or len(emas) > 1 or not (raws or emas) or (unusual and source != "ema"):
            raise self._unclear(None, source)
        return Found(next(iter(raws), None), next(iter(emas), None), tuple(others), tuple(self._top_notes()))

    def under(self, state_key: str) -> Found:
        """What lies under the key that was asked for: raw weights or an EMA. Raises NoWeights."""
        value = descend(self._saved.root, state_key.split("."))
        if value is None and state_key and self._saved.is_state_dict(self._saved.root):
            value = self._saved.below(f"{state_key}.")
        elif not self._saved.is_state_dict(value):
            value = None
        if not value:
            raise self._unclear(state_key)
        place = Place(state_key, value)
        averaged = any(s.averaged == state_key and self._is_swapped(s) for s in SWAPPED)
        raw = any(s.raw == state_key and self._is_swapped(s) for s in SWAPPED)
        return Found(None, place) if averaged or (says_ema(state_key) and not raw) else Found(place, None)

    def _by_key(self) -> tuple[list[Place], list[Place]]:
        """Raw weights and EMAs under the keys that say so."""
        wrapped = self._saved.root.get(_WRAPPER)
        tops = [("", self._saved.root)]
        if isinstance(wrapped, dict) and not self._saved.is_state_dict(wrapped):
            tops.append((f"{_WRAPPER}.", wrapped))
        raws = [place for prefix, top in tops for key in KEYS for place in self._saved.inside(top, prefix, key)]
        emas = [
            place
            for prefix, top in tops
            for key in top
            if is_ema_key(key)
            for place in self._saved.inside(top, prefix, key)
        ]
        for swapped in SWAPPED:
            if self._is_swapped(swapped) and [place.key for place in raws] == [swapped.averaged]:
                return list(self._saved.inside(self._saved.root, "", swapped.raw)), raws
        return raws, emas

    def _is_swapped(self, layout: Swapped) -> bool:
        raw = self._saved.root.get(layout.raw)
        return isinstance(raw, dict) and layout.averaged in self._saved.root and (not layout.mark or layout.mark in raw)

    def _is_usual(self, place: Place) -> bool:
        return place.key.removeprefix(f"{_WRAPPER}.").partition(".")[0] in (*KEYS, *(s.raw for s in SWAPPED))

    def _twins(self, emas: Iterable[Place]) -> list[Place]:
        """The weights under a key that is that of an EMA without the word: `g` beside `g_ema`."""
        names = dict.fromkeys(without_ema(place.key) for place in emas)
        return [place for name in names if name for place in self._saved.inside(self._saved.root, "", name)]

    def _bare(self) -> dict[str, Any]:
        """The tensors at the top, if all other weights are a trainer's or an EMA's; empty if they are no model."""
        tensors = {
            key: value
            for key, value in self._saved.root.items()
            if type(key) is str and isinstance(value, self._saved.leaves)
        }
        tensors = {key: value for key, value in tensors.items() if "." in key or not is_trainers(key)}
        clear = all(
            is_trainers(str(key)) or is_ema_key(key) or not holds_tensors(value, self._saved.leaves)
            for key, value in self._saved.root.items()
            if isinstance(value, CONTAINERS) and not isinstance(value, self._saved.leaves)
        )
        return tensors if clear and all(type(key) is str for key in self._saved.root) else {}

    def _at_the_top(self, bare: dict[str, Any], emas: list[Place], source: str | None) -> Found:
        """Weights under no key, beside an EMA under one: they are taken, unless the EMA is asked for."""
        others = [value for value in self._saved.root.items() if type(value[0]) is str and value[0] not in bare]
        raw = Place("", bare | {key: value for key, value in others if not isinstance(value, CONTAINERS)})
        if source == "ema" and len(emas) == 1:
            return Found(raw, emas[0])
        if source == "ema" and emas:
            raise self._unclear(None)
        note = f"takes the weights at the top, not the EMA under {listed([place.key for place in emas])}"
        return Found(raw, None, (), (note,) if emas else ())

    def _top_notes(self) -> Iterator[str]:
        """About tensors at the top, beside the key of the weights."""
        tensors = [
            key for key, value in self._saved.root.items() if type(key) is str and isinstance(value, self._saved.leaves)
        ]
        left = [key for key in tensors if not is_trainers(key)]
        if left:
            yield f"leaves out what lies at the top, under no key of weights: {listed(left)}"

    def _unclear(self, state_key: str | None, source: str | None = None) -> NoWeights:
        names = self._saved.model_keys()
        if state_key is None and names and self._saved.has_weights_at_the_top():
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
        if self._saved.is_state_dict(self._saved.root):
            return NoWeights(f"{missed}: it is one itself", hint="leave --state-key out")
        keys = listed([key for key in self._saved.root if type(key) is str])
        what = f"holds no state dict; its keys are: {keys}" if keys else "holds no state dict"
        return NoWeights(what, hint=_SAVE)


def _no_usual_ema(state_dicts: list[str], formless: list[str]) -> NoWeights:
    if state_dicts:
        what = f"holds no EMA under a usual key; one lies under {listed(state_dicts)}"
        return NoWeights(what, hint=f"say which: --state-key {listed(state_dicts[:1])}")
    what = f"holds an EMA under {listed(formless)} that is no state dict: its tensors have no names"
    return NoWeights(what, hint="save the EMA's state dict by itself, or leave --source out")
