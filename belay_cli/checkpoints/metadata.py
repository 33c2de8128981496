"""What safetensors files say beside their tensors: adapters' scales, how a LoRA was trained (sd-scripts' `ss_`), …

An entry that every file of every checkpoint has holds for their average too, and goes with it. What differs belongs to
one of them. The texts are anyone's, so they are bounded, and none can speak for belay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from belay_cli.checkpoints.weights import Weights
from belay_cli.formats.safetensors import WeightFile

LARGEST = 1_000_000  # bytes of UTF-8, of names and values together
_NAMED = 3  # entries in a note
_LONGEST_NAME = 60  # characters of a name in a note

# belay says these of the average itself: its format, and as `belay.series` the step of each checkpoint.
_OWN = ("format", "step")
_RESERVED = "belay."

# Of one checkpoint, even where it is the only one: its place in the training, and hashes of its bytes.
_OF_ONE = frozenset(
    {
        *("global_step", "iteration", "iter", "iter_num", "steps", "epoch", "ss_steps", "ss_epoch"),
        *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "hash", "sha256", "md5", "checksum"),
    }
)


class Metadata(NamedTuple):
    """`carried` goes with the output, by name in order; `left` are the names of entries that do not."""

    carried: dict[str, str]
    left: list[str]

    @property
    def notes(self) -> list[str]:
        """One note about what is left out, if there is any."""
        if not self.left:
            return []
        more = len(self.left) - _NAMED
        names = ", ".join(map(_shown, self.left[:_NAMED])) + (f" and {more} more" if more > 0 else "")
        return [f"metadata of single checkpoints, or that cannot be carried, is left out: {names}"]


def agreed_metadata(
    checkpoints: Sequence[Weights], tensors: Collection[str], aliases: Collection[str], untrue: Collection[str]
) -> Metadata:
    """The entries that all checkpoints of one model have alike.

    tensors: names in the output; aliases: entries that the output makes itself; untrue: entries that would not hold
    for the output, because somebody asked for another rank or dtype.
    """
    names, agreed = _compare(file.metadata for checkpoint in checkpoints for file in checkpoint.files)
    names = {name for name in names if not _is_own(name) and name not in aliases}
    if not names:
        return Metadata({}, [])
    stored = _stored_names(checkpoints[-1])
    fitting = {
        name: value
        for name, value in agreed.items()
        if name in names
        and name not in _OF_ONE
        and name not in untrue
        and _is_text(name + value)
        and (value not in stored or (value in tensors and name not in tensors))  # that two names share their bytes
    }
    carried = _within(LARGEST, fitting)
    return Metadata(carried, sorted(names - carried.keys()))


def _compare(files: Iterable[Mapping[str, str]]) -> tuple[set[str], dict[str, str]]:
    """Every name there is, and the entries that are the same in all files."""
    entries = iter(files)
    first = next(entries, {})
    names, agreed = set(first), dict(first)
    for metadata in entries:
        if metadata != first:
            names |= metadata.keys()
            agreed = {name: value for name, value in agreed.items() if metadata.get(name) == value}
    return names, agreed


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(_RESERVED)


def _stored_names(checkpoint: Weights) -> set[str]:
    """The names of tensors as the files have them."""
    files = [file for file in checkpoint.files if isinstance(file, WeightFile)]
    return {tensor.name for file in files for tensor in file.tensors}


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half a character."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _within(limit: int, entries: Mapping[str, str]) -> dict[str, str]:
    """As many entries as have room together, the small ones first; in the order of their names."""
    return dict(sorted(_smallest(limit, entries)))


def _smallest(limit: int, entries: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    sizes = {name: len(name.encode()) + len(value.encode()) for name, value in entries.items()}
    for name in sorted(entries, key=lambda name: (sizes[name], name)):
        limit -= sizes[name]
        if limit < 0:
            return
        yield name, entries[name]


def _shown(name: str) -> str:
    """A name as text for one line, whatever characters it has."""
    return repr(name) if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]!r}…"
