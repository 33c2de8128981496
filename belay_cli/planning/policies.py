"""Policies: by its name, is a tensor averaged, taken from the last checkpoint, or dropped."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.components import ALL, named
from belay_cli.checkpoints.config import read_config
from belay_cli.checkpoints.packed import Packed, packed
from belay_cli.checkpoints.weights import inside, without
from belay_cli.errors import SeriesError, UsageError, glob_for
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import DTYPES, NOT_AVERAGEABLE_FLOATS
from belay_cli.formats.text import listed
from belay_cli.options import Option, Options

# The names of output embeddings that libraries tie to the input embedding.
_TIED = re.compile(r"(.*\.)?(lm_head|embed_out|output|decoder)\.weight")

AVERAGE, LAST, DROP = "average", "last", "drop"
DELTA = "delta"  # a factor of an update that is averaged as a product


@dataclass(frozen=True)
class Policies(Options):
    """Globs over tensor names; `drop` goes before `last`, and `last` before `average`.

    Without `average`, every floating point tensor is averaged; with it, only those that match. All the
    rest comes from the last checkpoint.
    """

    panel: ClassVar[str] = "The output"

    average: Annotated[tuple[str, ...], Option("Average only these tensors; the rest from the last.", "GLOB")] = ()
    last: Annotated[tuple[str, ...], Option("Take these from the last checkpoint.", "GLOB")] = ()
    drop: Annotated[tuple[str, ...], Option("Leave these out.", "GLOB")] = ()

    def action(self, name: str, dtype: str) -> str:
        """AVERAGE, LAST or DROP for a tensor of this name and dtype code."""
        if self.drops(name):
            return DROP
        if _matches(name, self.last) or not DTYPES[dtype].averageable:
            return LAST
        return AVERAGE if not self.average or _matches(name, self.average) else LAST

    def drops(self, name: str) -> bool:
        """Whether a tensor of this name is left out."""
        return _matches(name, self.drop)

    def exempts(self, name: str) -> bool:
        """Whether the tensor need not be in every checkpoint, because a person decided what becomes of it."""
        return _matches(name, self.drop) or _matches(name, self.last)

    def check(self, tensors: Iterable[Tensor], others: Iterable[str] = ()) -> None:
        """Raise UsageError for a glob that matches no tensor, SeriesError for a dtype that nobody decided about.

        others: names that are none of these tensors', of what is no plain array or of a tensor with several names.
        """
        tensors, others = list(tensors), list(others)
        for option, globs in ((AVERAGE, self.average), (LAST, self.last), (DROP, self.drop)):
            for pattern in globs:
                matched = [tensor for tensor in tensors if fnmatchcase(tensor.name, pattern)]
                if not matched and not any(fnmatchcase(name, pattern) for name in others):
                    raise UsageError(
                        f"--{option} '{pattern}' matches no tensor", hint="belay inspect --tensors lists them"
                    )
                if option == AVERAGE and not any(DTYPES[tensor.dtype].averageable for tensor in matched):
                    raise UsageError(f"--average '{pattern}' matches no floating point tensor")
        for tensor in tensors:
            if tensor.dtype in NOT_AVERAGEABLE_FLOATS and not self.exempts(tensor.name):
                raise _undecided(tensor)

    def arguments(self) -> list[str]:
        """The command-line options that say the same."""
        pairs = ((AVERAGE, self.average), (LAST, self.last), (DROP, self.drop))
        return [word for option, globs in pairs for pattern in globs for word in (f"--{option}", pattern)]


def without_tied(policies: Policies, series: Series) -> tuple[Policies, list[str]]:
    """Leave out a tied output embedding that only some checkpoints have, where config.json says that it is tied.

    Returns the policies with it, and a note.
    """
    folders = [
        folder
        for folder, part in series.last.weights.components.items()
        if read_config(part.directory).get("tie_word_embeddings")
    ]
    if not folders:
        return policies, []
    everywhere = set.intersection(*(set(checkpoint.tensors) for checkpoint in series.checkpoints))
    somewhere = set.union(*(set(checkpoint.tensors) for checkpoint in series.checkpoints))
    differ = {name: series.last.weights.folder_of(name) for name in somewhere - everywhere}
    tied = sorted(
        name
        for name, folder in differ.items()
        if folder in folders and _TIED.fullmatch(without(folder, name)) and not policies.exempts(name)
    )
    notes = [
        f"{name} is only in some checkpoints; config.json says it is tied to the input embedding, so it is left out"
        for name in tied
    ]
    return replace(policies, drop=(*policies.drop, *map(glob.escape, tied))), notes


def with_unnamed_last(policies: Policies, series: Series) -> tuple[Policies, list[str]]:
    """Take models that a list in --subfolder does not name as they are in the last checkpoint.

    Returns the policies with it, and a note.
    """
    wanted = series.selection.opening.subfolder
    if not series.last.weights.parts or wanted is None or wanted == ALL:
        return policies, []
    unnamed = [folder for folder in series.last.weights.parts if folder not in named(wanted)]
    globs = [f"{glob.escape(folder)}/*" for folder in unnamed]
    notes = [f"{listed(unnamed)}: not named by --subfolder, so as the last checkpoint has it"] if unnamed else []
    return replace(policies, last=tuple(dict.fromkeys((*policies.last, *globs)))), notes


def refuse_packed(policies: Policies, tensors: Mapping[str, Tensor], last: Checkpoint) -> None:
    """Raise SeriesError for quantized weights that nobody decided about: an average of packed numbers is noise.

    tensors: those of all checkpoints; last: the checkpoint that says where each model lies.
    """
    for folder, part in last.weights.components.items():
        names = {name: without(folder, name) for name in tensors if last.weights.folder_of(name) == folder}
        own = {name: tensors[whole]._replace(name=name) for whole, name in names.items()}
        found = packed(own, part.directory, [name for whole, name in names.items() if policies.exempts(whole)])
        if found:
            raise _packed(found, inside(folder, found.tensor))


def _packed(found: Packed, name: str) -> SeriesError:
    otherwise = f"; if it is no weight: --last {glob_for(name)}" if found.doubtful else ""
    return SeriesError(
        f"{name!r} is packed by {found.what}: an average of packed numbers is noise",
        tensor=name,
        hint=f"average the checkpoints from before quantization, then quantize the average{otherwise}",
    )


def _undecided(tensor: Tensor) -> SeriesError:
    """The error for floating point numbers that belay does not average: what becomes of them is for a person to say."""
    dtype, pattern = DTYPES[tensor.dtype], glob_for(tensor.name)
    if dtype.complex:
        return SeriesError(
            f"{tensor.name!r} is {dtype.name}, which belay does not average",
            tensor=tensor.name,
            hint=f"to keep the last one's: --last {pattern}; to leave it out: --drop {pattern}",
        )
    return SeriesError(
        f"{tensor.name!r} is {dtype.name}, whose numbers mean nothing without their scales",
        tensor=tensor.name,
        hint=f"average before quantization; to keep the last one's: --last {pattern}",
    )


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in globs)
