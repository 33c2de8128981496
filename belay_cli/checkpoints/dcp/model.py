"""Which of the tensors that were saved are the model's, and what they are called in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from belay_cli.checkpoints.dcp.metadata import BytesEntry, TensorEntry, lie
from belay_cli.checkpoints.ema_layouts import says_ema
from belay_cli.checkpoints.storage import AnyPath, StoredFile
from belay_cli.checkpoints.torch_file import plain_names
from belay_cli.checkpoints.torch_zip import listed, short
from belay_cli.errors import CheckpointError

# Names of what a trainer saves beside the model, of the model itself, and of the object that holds them all.
_TRAINER = re.compile(
    r"(.*_)?(optim|optimizers?|lr_?schedulers?|schedulers?|rng(_states?)?|train(er)?_state|data_?loaders?|scaler|sampler)"
    r"(_\d+|_states?)?",
    re.IGNORECASE,
)
_MODEL = frozenset(("model", "app", "state_dict", "model_state_dict", "module", "net", "weights"))
_APP = ("app",)


_Path = tuple[str, ...]  # keys that lead to a tensor in what was saved; each may hold dots of its own


def model_names(
    file: StoredFile, directory: AnyPath, entries: Mapping[Any, Any], paths: Mapping[Any, Any], state_key: str | None
) -> tuple[dict[str, str], list[str]]:
    """Name in the model -> name in the checkpoint, and notes."""
    known = [(_path(fqn, paths), fqn) for fqn in entries if isinstance(fqn, str)]
    tensors = [(path, fqn) for path, fqn in known if isinstance(entries[fqn], TensorEntry)]
    if state_key is None:
        taken, kept, notes = _usual(tensors, guessed=not paths)
        emas = _emas_beside(kept) if paths else []
        kept = [(path, fqn) for path, fqn in kept if path[0] not in emas]
        notes += [f"takes the weights at the top, not the EMA under {listed(emas)}"] if emas else []
        if _several(kept, guessed=not paths):
            raise _unclear(directory, "does not say which of its tensors are the model's", taken, kept or tensors)
        prefix = "".join(f"{part}." for part in taken)
        notes += [f"names are taken without the {prefix} under which they were saved"] if taken else []
        notes += [f"takes {top}.* too, an EMA by its name" for top in _tops(kept) if says_ema(top)]
    else:
        prefix, notes = f"{state_key}.", []
        kept = _below(prefix, tensors)
        if not kept:
            raise _unclear(directory, f"holds no tensors in {state_key}", (), tensors)
    others = [".".join(path) for path, fqn in _below(prefix, known) if isinstance(entries[fqn], BytesEntry)]
    return _named(file, kept, notes + _left_out(others, whole=bool(prefix)))


def _usual(tensors: list[tuple[_Path, str]], guessed: bool) -> tuple[_Path, list[tuple[_Path, str]], list[str]]:
    """The keys under which the model lies where trainers put it, its tensors by their paths below, and notes.

    guessed: nothing says which dots in a name are those between keys.
    """
    taken: _Path = ()
    notes: list[str] = []
    while True:
        if taken in ((), _APP):  # further in, a model may have parts of such names
            states = [path for path, _ in tensors if _TRAINER.fullmatch(path[0])]
            unsure = dict.fromkeys(path[0] for path in states if guessed or len(path) == 1)
            notes += [f"leaves out {listed(list(unsure))}, by name a trainer's and not the model's"] if unsure else []
            tensors = [(path, fqn) for path, fqn in tensors if not _TRAINER.fullmatch(path[0])]
        tops = {path[0] for path, _ in tensors}
        if len(tops) != 1 or not tops <= _MODEL or any(len(path) == 1 for path, _ in tensors):
            return taken, tensors, notes
        taken += tuple(tops)
        tensors = [(path[1:], fqn) for path, fqn in tensors]


def _emas_beside(tensors: list[tuple[_Path, str]]) -> list[str]:
    """Keys of EMAs beside weights that lie under no key, so that none could be given for those."""
    keys = dict.fromkeys(path[0] for path, _ in tensors if len(path) > 1 and says_ema(path[0]))
    return list(keys) if any(len(path) == 1 for path, _ in tensors) else []


def _several(tensors: list[tuple[_Path, str]], guessed: bool) -> bool:
    """Whether what is left is no model, more than one, or an EMA of one."""
    tops = {path[0] for path, _ in tensors}
    inside = set() if guessed else {path[0] for path, _ in tensors if len(path) > 1}
    return not tops or any(map(says_ema, inside)) or (len(tops) > 1 and not inside.isdisjoint(_MODEL))


def _below(prefix: str, entries: Iterable[tuple[_Path, str]]) -> list[tuple[_Path, str]]:
    """The entries under a prefix of keys and dots, by what follows it."""
    named = ((".".join(path), fqn) for path, fqn in entries)
    return [((name[len(prefix) :],), fqn) for name, fqn in named if name.startswith(prefix) and name != prefix]


def _tops(tensors: Iterable[tuple[_Path, str]]) -> list[str]:
    """The parts before the first dot of the names."""
    return list(dict.fromkeys(top for path, _ in tensors for top, dot, _ in [".".join(path).partition(".")] if dot))


def _left_out(others: list[str], whole: bool) -> list[str]:
    """Notes about entries of a model that are no tensors; beside a model at the top lies what is none of it."""
    states = [name for name in others if "_extra_state" in name.split(".")]
    rest = [name for name in others if name not in set(states)] if whole else []
    notes = [f"leaves out {len(states)} _extra_state, no tensors: {listed(states[:1])}"] if states else []
    return notes + ([f"leaves out what is no tensor: {listed(rest)}"] if rest else [])


def _path(fqn: str, paths: Mapping[Any, Any]) -> _Path:
    """Where in what was saved a tensor lay; a name may hold dots of its own."""
    found = paths.get(fqn)
    if isinstance(found, tuple) and found and all(type(part) in (str, int) for part in found):
        return tuple(part if isinstance(part, str) else short(part) for part in found)
    return tuple(fqn.split("."))


def _unclear(directory: AnyPath, what: str, taken: _Path, tensors: list[tuple[_Path, str]]) -> CheckpointError:
    counts = Counter(".".join((*taken, path[0])) for path, _ in tensors)
    held = listed([f"{name} ({count})" for name, count in counts.items()]) or "no tensors"
    return CheckpointError(what, file=directory, hint=f"say where: --state-key NAME; it holds {held}")


def _named(file: StoredFile, kept: list[tuple[_Path, str]], notes: list[str]) -> tuple[dict[str, str], list[str]]:
    names, stripped = plain_names([".".join(path) for path, _ in kept])
    found: dict[str, str] = {}
    for name, (_, fqn) in zip(names, kept, strict=True):
        if name in found:
            raise lie(file, f"{short(found[name])} and {short(fqn)} have one name", name)
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise lie(file, f"{short(name)} is not a name in Unicode", name)
        found[name] = fqn
    return found, [*notes, *stripped]
