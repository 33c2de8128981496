"""Whether checkpoints have one architecture: the same names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.errors import SeriesError, glob_for
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.text import shape_text

_SHOWN = 5  # names in a message


def difference(one: Checkpoint, other: Checkpoint, ignored: Callable[[str], bool]) -> SeriesError | None:
    """The first way in which `other` differs from `one`, as the error that says so, or None.

    `ignored` names the tensors that need not agree, because they are not averaged.
    """
    if one.tensors is other.tensors:
        return None
    for absent, present in ((other, one), (one, other)):
        names = [name for name in present.tensors if name not in absent.tensors and not ignored(name)]
        if names:
            return _missing(names, absent=absent, present=present)
    for name, left in one.tensors.items():
        if ignored(name):
            continue
        right = other.tensors[name]
        if left.shape != right.shape:
            what = f"{name!r} is {shape_text(right.shape)}; in {one.name} it is {shape_text(left.shape)}"
            return SeriesError(what, file=other.path, tensor=name, hint="a series has one architecture")
        if left.dtype != right.dtype:
            what = f"{name!r} is {DTYPES[right.dtype].name}; in {one.name} it is {DTYPES[left.dtype].name}"
            return SeriesError(what, file=other.path, tensor=name, hint="save every checkpoint in the same dtype")
    return None


def _missing(names: Sequence[str], *, absent: Checkpoint, present: Checkpoint) -> SeriesError:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    drop = " ".join(f"--drop {glob_for(name)}" for name in names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
    return SeriesError(
        f"has no {shown}, which {present.name} has",
        file=absent.path,
        tensor=names[0],
        hint=f"a series has one architecture; to leave the tensor{'s' * (len(names) > 1)} out: {drop}",
    )


def first_difference(
    checkpoints: Sequence[Checkpoint], ignored: Callable[[str], bool] = lambda name: False
) -> SeriesError | None:
    """The first difference between neighbours of a series, or None; the mend is a shorter series."""
    for one, other in pairwise(checkpoints):
        error = difference(one, other, ignored)
        if error is None:
            continue
        if one.step is not None and "architecture" in (error.hint or ""):
            error.hint = f"{error.hint}; to leave the later checkpoints out: --to-step {one.step}"
        return error
    return None
