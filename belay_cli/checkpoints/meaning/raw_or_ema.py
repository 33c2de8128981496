"""Raw weights or an EMA of them.

They are told apart by the key they lie under, by prefixes in one state dict, and by the names of the file and of its
directory. Which of the two is meant is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from belay_cli.errors import CheckpointError
from belay_cli.formats.text import listed

Entries = Mapping[str, Any]  # a state dict: name -> tensor, or something that is none

_EMA = re.compile(r"(?:^|[_.-])ema(?:$|[_.\d-])", re.IGNORECASE)
# Keys of averages that are no EMA: icefall's model_avg, torch.optim.swa_utils, timm, paddle-like shadow weights.
_AVERAGE = re.compile(r"(?:^|[_.-])(?:avg|averaged?|swa|shadow)(?:$|[_.\d-])", re.IGNORECASE)
_AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel, beside its `module.`
_ONLINE = "online_model."  # of ema-pytorch, which wraps both; its counters are no weights

# What LitEma, ema-pytorch, AveragedModel and mmengine count beside their weights.
_COUNTERS = re.compile(r"(?:.*\.)?(?:decay|num_updates|initted|steps?|n_averaged)")
_MMENGINE = "steps"  # the counter of mmengine's averaged model, beside `module.`

_WORDS = ("ema", "avg", "average", "swa", "shadow")  # one of them is in every name that says it

# What holds the raw weights beside an EMA, in the order in which they are tried.
_PARTNERS = ("model.", "module.", "net.", "")

_MOST_PREFIXES = 16  # each costs a pass over all names


class Place(NamedTuple):
    """A state dict, the key it lies under (dots between keys, empty at the top), and which part of it, in words.

    `several`: there are EMAs of which each has its own value for one tensor, and `entries` are those of none.
    """

    key: str
    entries: Entries
    part: str = ""
    several: bool = False

    @property
    def where(self) -> str:
        """Where it lies, in words."""
        return ", ".join([listed([text]) for text in (self.key, self.part) if text]) or "at the top"


class Taken(NamedTuple):
    """What was taken, `raw` or `ema`, and the other one if it is there."""

    place: Place
    source: str
    other: Place | None
    notes: tuple[str, ...] = ()


def says_ema(name: str) -> bool:
    """Whether a key is that of an EMA, or of another average of the weights."""
    return _EMA.search(name) is not None or _AVERAGE.search(name) is not None


def without_ema(key: str) -> str:
    """A key of an EMA without the word; what is left is that of the raw weights, if anything is."""
    return _AVERAGE.sub("", _EMA.sub("", key))


def take(raw: Place | None, ema: Place | None, source: str | None, *, named: str | None = None) -> Taken:
    """The weights that are meant, of the raw ones and their EMA. Raises CheckpointError, without a file.

    source: `raw` or `ema`, where somebody said which. named: what in the name of the file or the directory says that
    the weights in it are an EMA, in words.
    """
    raw, ema = _apart(raw, ema)
    if raw is not None and ema is None and named:
        ema, raw = raw._replace(part=named), None
    if ema is not None and ema.several and source != "raw":
        raise CheckpointError(
            f"holds several EMAs of the same weights ({ema.where})",
            hint="say which, by its prefix: --state-key; or --source raw",
        )
    if raw is not None and ema is not None and source is None:
        raise CheckpointError(
            f"holds raw weights ({raw.where}) and their EMA ({ema.where})",
            hint="say which: --source raw or --source ema; averaging an EMA again gives an EMA of an EMA",
        )
    if source == "ema":
        if ema is None:
            raise CheckpointError("holds no EMA", hint="leave --source out, or leave the checkpoint out")
        notes: list[str] = []
        if raw is not None and raw.key != ema.key:
            ema, notes = filled(ema, raw)
        return Taken(ema, "ema", raw, tuple(notes))
    if raw is None:
        raise CheckpointError(
            f"holds only an average of weights ({ema.where if ema is not None else ''})",
            hint="leave it out, or average EMAs on purpose: --source ema",
        )
    return Taken(raw, "raw", ema)


def _apart(raw: Place | None, ema: Place | None) -> tuple[Place | None, Place | None]:
    """Raw weights and EMA, also where one state dict holds both."""
    if ema is not None:
        _, inner = split(ema)
        ema = inner or ema
    if raw is not None and _MMENGINE in raw.entries:
        raw = _of_mmengine(raw)
    if raw is not None:
        raw, inner = split(raw)
        ema = ema or inner
    return raw, ema


def _of_mmengine(raw: Place) -> Place:
    """Its averaged model's state holds the raw weights when it is saved: they were swapped."""
    module = {name.removeprefix("module."): value for name, value in raw.entries.items() if name.startswith("module.")}
    return raw._replace(entries=module) if len(module) == len(raw.entries) - 1 else raw


def split(place: Place) -> tuple[Place | None, Place | None]:
    """The raw weights and the EMA of one state dict, each None if it is not there.

    Both have the names of the raw weights; what has no EMA of its own is the same in both. Raises CheckpointError,
    without a file, for several EMAs of the same weights.
    """
    entries = place.entries
    if _AVERAGED in entries and all(name == _AVERAGED or name.startswith("module.") for name in entries):
        rest = {name: value for name, value in entries.items() if name != _AVERAGED}
        return None, place._replace(entries=rest, part=f"with {_AVERAGED}")
    groups, rest = _groups(entries)
    if not 0 < len(groups) <= _MOST_PREFIXES:
        return place, None
    if len(groups) == 1 and all(map(_COUNTERS.fullmatch, rest)):
        ((head, ema),) = groups.items()
        return None, place._replace(entries=_unwrapped(ema), part=f"{head}.*")
    averages = {head: found for head, ema in groups.items() if (found := _by_raw_name(head, rest, _unwrapped(ema)))}
    if not averages:
        return place, None
    raw = {name: value for name, value in entries.items() if _ema_part(name)[0] not in averages}
    part = listed([f"{head}.*" for head in averages])
    ema = {name: value for found in averages.values() for name, value in found.items()}
    if len(ema) < sum(map(len, averages.values())):
        return place._replace(entries=raw, part=f"without {part}"), place._replace(entries={}, part=part, several=True)
    return _pair(place, raw, ema, part)


def _groups(entries: Entries) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The entries under each prefix that says EMA, without it; and the rest."""
    groups: dict[str, dict[str, Any]] = {}
    rest = {}
    for name, value in entries.items():
        head, tail = _ema_part(name)
        if head:
            groups.setdefault(head, {})[tail] = value
        else:
            rest[name] = value
    return groups, rest


def _ema_part(name: str) -> tuple[str, str]:
    """A name up to its first part that says EMA, and the rest; both empty if none does, or nothing follows it."""
    if not any(word in name.lower() for word in _WORDS):
        return "", ""
    parts = name.split(".")
    for count, part in enumerate(parts[:-1], 1):
        if says_ema(part):
            return ".".join(parts[:count]), ".".join(parts[count:])
    return "", ""


def _unwrapped(ema: Entries) -> dict[str, Any]:
    """The weights of an EMA without its counters, and without what wraps them: AveragedModel, ema-pytorch, a list."""
    weights = {name: value for name, value in ema.items() if not _COUNTERS.fullmatch(name)}
    for prefix in ("0.", "ema_model.", "module."):
        inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if inside and all(name.startswith((prefix, _ONLINE)) for name in weights):
            weights = inside
    return {name: value for name, value in weights.items() if not _COUNTERS.fullmatch(name)}


def _by_raw_name(head: str, rest: Entries, ema: Entries) -> dict[str, Any]:
    """What lies under the prefix `head`, by the names of the raw weights; empty if most of it has no twin there.

    The twins' prefix is the one that fits best: beside the EMA, or from the top. Latent diffusion leaves the dots out
    of the names of its EMA, since they name buffers. What only the EMA has keeps its place beside the twins.
    """
    best: dict[str, str] = {}
    best_partner = ""
    above, _, last = head.rpartition(".")
    beside = f"{above}." if above else ""
    for partner in dict.fromkeys(
        f"{place}{name}" for place in (beside, "") for name in (_ONLINE, f"{without_ema(last)}.", *_PARTNERS)
    ):
        tails = {name: name.removeprefix(partner) for name in rest if name.startswith(partner)}
        twins = {name: tail if tail in ema else tail.replace(".", "") for name, tail in tails.items()}
        twins = {name: twin for name, twin in twins.items() if twin in ema}
        if len(twins) > len(best) and len(set(twins.values())) == len(twins):
            best, best_partner = twins, partner
    if 2 * len(best) <= len(ema):
        return {}
    alone = [tail for tail in ema if tail not in set(best.values())]
    return {name: ema[twin] for name, twin in best.items()} | {best_partner + tail: ema[tail] for tail in alone}


def _pair(place: Place, raw: Entries, ema: Entries, part: str) -> tuple[Place, Place]:
    if all(name.startswith(_ONLINE) or _COUNTERS.fullmatch(name) for name in raw):
        raw = {name.removeprefix(_ONLINE): value for name, value in raw.items() if name.startswith(_ONLINE)}
        ema = {name.removeprefix(_ONLINE): value for name, value in ema.items()}
    return place._replace(entries=raw, part=f"without {part}"), place._replace(entries={**raw, **ema}, part=part)


def filled(ema: Place, raw: Place) -> tuple[Place, list[str]]:
    """An EMA under a key of its own, with what has no EMA (buffers, as a rule) from the raw weights; and a note."""
    missing = [name for name in raw.entries if name not in ema.entries]
    if not missing or not any(name in raw.entries for name in ema.entries) or len(missing) == len(raw.entries):
        return ema, []
    entries = {name: ema.entries.get(name, value) for name, value in raw.entries.items()}
    note = f"takes {listed(missing)} from the raw weights: there is no EMA of {'it' if len(missing) == 1 else 'them'}"
    return ema._replace(entries={**entries, **ema.entries}), [note]
