"""From what a format found to the weights of a checkpoint: the same steps, in the same order, for every format.

    state_dict    the weights among several things
    raw_or_ema    the raw ones, or an EMA of them
    prefixes      the names that the model itself has
    parts         whether they are whole
    recorded      the step that they record

What a series of them is, adapters or packed numbers, is asked of the weights that come out (adapters, packed).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from belay_cli.checkpoints.learning_rate import in_root
from belay_cli.checkpoints.meaning.not_understood import in_place_of, note, refuse_hidden, with_unreadable
from belay_cli.checkpoints.meaning.parts import refuse_parts_of_a_rank
from belay_cli.checkpoints.meaning.prefixes import by_plain_name
from belay_cli.checkpoints.meaning.raw_or_ema import Place, Taken, says_ema, take
from belay_cli.checkpoints.meaning.recorded import names_one_low, recorded_in_root
from belay_cli.checkpoints.meaning.state_dict import find_state_dicts
from belay_cli.checkpoints.weights import Opening, Weights
from belay_cli.errors import CheckpointError
from belay_cli.formats.contents import Contents, Layout, NoWeights
from belay_cli.formats.text import listed
from belay_cli.storage.files import AnyPath


class Meaning(NamedTuple):
    """The tensors that are the weights, by the names of the model; where else weights lie; notes; and all in words."""

    named: Layout
    beside: tuple[str, ...]
    notes: tuple[str, ...]
    recognised: dict[str, str]


def understand(
    contents: Contents, opening: Opening, *, stem: str, directory: AnyPath | None, named_ema: str | None
) -> Weights:
    """The weights in what a format found. Raises CheckpointError.

    stem, directory: as in Weights; named_ema: what in the names of file and directory says that the weights are an
    EMA, in words.
    """
    try:
        meaning = _meaning(contents, opening, named_ema)
        refuse_parts_of_a_rank(contents.root, meaning.named)
    except NoWeights as error:
        error.file = error.file or str(contents.path)
        raise in_place_of(error, contents.path, contents.unknown) from error
    except CheckpointError as error:
        error.file = error.file or str(contents.path)
        raise
    kept, aliases = _without_aliases(contents, meaning.named)
    places = contents.locate(kept)
    return Weights(
        places.files,
        places.tensors,
        stem,
        directory,
        places.stored,
        places.unreadable,
        recorded_in_root(contents.root),
        aliases,
        contents.metadata,
        (*meaning.notes, *note(contents.unknown)),
        meaning.beside,
        {"format": contents.format, **meaning.recognised},
        names_one_low(contents.root),
        in_root(contents.root),
    )


def _meaning(contents: Contents, opening: Opening, named_ema: str | None) -> Meaning:
    if isinstance(contents.root, Layout):
        return _of_layout(contents.root, contents.leaves, opening, named_ema, contents.keys_known)
    return _of_root(contents.root, contents.leaves, opening, named_ema, contents.keys_known)


def _of_root(root: Any, leaves: tuple[type, ...], opening: Opening, named_ema: str | None, keys_known: bool) -> Meaning:
    if opening.as_it_is and isinstance(root, Layout):
        return Meaning(root, (), (), {})
    source = opening.source
    found = find_state_dicts(root, leaves, state_key=opening.state_key, source=source, keys_known=keys_known)
    if opening.state_key is not None and found.raw is None and says_ema(opening.state_key):
        source = source or "ema"  # named by its key, so asked for
    raw, stripped = _plain(found.raw, leaves)
    ema, stripped_of_ema = _plain(found.ema, leaves)
    taken = take(raw, ema, source, named=named_ema)
    stripped = list(dict.fromkeys([*stripped, *stripped_of_ema]))
    if opening.state_key is None:
        refuse_hidden(root)
    entries = with_unreadable(taken.place.entries, leaves)
    tensors = {name: value for name, value in entries.items() if isinstance(value, leaves)}
    if not tensors:
        raise NoWeights(f"holds no weights, only counters ({taken.place.where})", hint=_SAVE)
    named, more = by_plain_name(tensors)
    stripped += [note for note in more if note not in stripped]
    recognised = {"state dict": taken.place.key or "at the top", "weights": _in_words(taken)}
    recognised |= {"names": "; ".join(stripped)} if stripped else {}
    beside = found.beside if opening.state_key is None else ()
    notes = (*_passed_over(taken), *taken.notes, *found.notes, *stripped, *_no_tensors(entries, leaves))
    same = isinstance(root, Layout) and list(named.items()) == list(root.items())
    return Meaning(root if same else Layout(named), beside, notes, recognised)


def _plain(place: Place | None, leaves: tuple[type, ...]) -> tuple[Place | None, list[str]]:
    """A state dict by the names that the model itself has, as wrappers stand before what says EMA too."""
    if place is None:
        return None, []
    tensors = {name: value for name, value in place.entries.items() if isinstance(value, leaves)}
    found, notes = by_plain_name(tensors)
    others = {name: value for name, value in place.entries.items() if name not in tensors}
    return place._replace(entries={**found, **others}), notes


_of_layout = lru_cache(maxsize=64)(_of_root)  # files of one layout have one meaning
_SAVE = "save the weights by themselves: torch.save(model.state_dict(), path)"


def _in_words(taken: Taken) -> str:
    what = "raw" if taken.source == "raw" else "an EMA"
    why = f" ({taken.place.part})" if taken.place.part else ""
    return f"{what}{why}" + (f"; the other: {taken.other.where}" if taken.other else "")


def _passed_over(taken: Taken) -> list[str]:
    """A note about the raw weights or the EMA that is not taken."""
    if taken.other is None or not (taken.place.key or taken.place.part):
        return []
    what = "raw weights" if taken.source == "raw" else "EMA"
    return [f"takes the {what} ({taken.place.where}), not {taken.other.where}"]


def _no_tensors(entries: Mapping[str, Any], leaves: tuple[type, ...]) -> list[str]:
    """Notes about entries of a state dict that are no tensors."""
    others = [name for name, value in entries.items() if not isinstance(value, leaves) and name != "_metadata"]
    states = [name for name in others if "_extra_state" in name.split(".")]
    rest = [name for name in others if name not in set(states)]
    notes = [f"leaves out {len(states)} _extra_state, no tensors: {listed(states[:1])}"] if states else []
    return notes + ([f"leaves out what is no tensor: {listed(rest)}"] if rest else [])


def _without_aliases(contents: Contents, named: Layout) -> tuple[Layout, dict[str, str]]:
    """The tensors once each, and the other names for them."""
    if isinstance(contents.root, Layout):
        return named, {}
    first: dict[object, str] = {}
    aliases = {}
    for name, leaf in named.items():
        kept = first.setdefault(contents.identity(leaf), name)
        if kept != name:
            aliases[name] = kept
    return Layout({name: leaf for name, leaf in named.items() if name not in aliases}), aliases
