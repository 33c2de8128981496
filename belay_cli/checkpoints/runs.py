"""Runs: arguments into the paths of checkpoints, and which entries of a run directory are its checkpoints.

They are directories or files whose whole names fit one template. What else lies there is left out, and that is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from belay_cli.checkpoints.arguments import typed_paths
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.directory import (
    STANDARD_STEMS,
    STATE,
    WeightSet,
    holders,
    holds_weights,
    is_ema_set,
    torch_sets,
    weight_sets,
)
from belay_cli.checkpoints.notes import counted_once
from belay_cli.checkpoints.order import names
from belay_cli.checkpoints.order.averages import average_by_name, ema_by_name
from belay_cli.checkpoints.order.pieces import Kind, Shape, has_number, pieces, shape
from belay_cli.checkpoints.order.places import place_of
from belay_cli.checkpoints.order.proof import in_order
from belay_cli.checkpoints.order.ranks import refuse_parts_in
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.formats import SUFFIX, is_directory_format
from belay_cli.formats.foreign import recognise
from belay_cli.storage.files import AnyPath
from belay_cli.storage.remote.tree import Tree

# What a trainer saves beside each checkpoint under a name of the same form: guided-diffusion's opt010000.pt.
_OPTIMIZER = re.compile(r"(?:opt|optim|optimi[sz]er|sched|scheduler|scaler)(?![a-z])", re.IGNORECASE)
# What Lightning appends where a file of the name is there already, and NeMo to the last one.
_SAVED_AGAIN = re.compile(r"-(?:v\d+|last)$")
# Directories with one of these are one model, whatever directories are inside: diffusers, sentence-transformers.
_ONE_MODEL = ("model_index.json", "modules.json")

_MOST_SHOWN = 8  # names in a note
_IN_ORDER = "give the checkpoints themselves as arguments, in order"

_Found = TypeVar("_Found")


def find_paths(arguments: Sequence[str | os.PathLike[str]], *, given: bool = False) -> tuple[list[AnyPath], list[str]]:
    """Each argument as checkpoints' paths, a run directory as those inside it; and notes about what was left out.

    given: whether their order is that of the arguments. That of a run directory is then its names', which must be sure.
    """
    if not arguments:
        raise UsageError("no checkpoint was given", hint="belay average ckpts/*.safetensors")
    paths: list[AnyPath] = []
    notes: list[str] = []
    listings: dict[str, Tree] = {}
    for argument in arguments:
        for path in typed_paths(argument, listings):
            inside, left_out = _inside(path, given) if path.is_dir() else ([], [])
            if inside and left_out:
                notes.append(f"{path}: takes the {len(inside)} checkpoints inside, not {_shortened(left_out)}")
            if given and len(inside) > 1:
                inside = [inside[i] for i in in_order([place_of(p, is_file=not p.is_dir()) for p in inside])]
            paths += inside or [path]
    return paths, notes


def _inside(directory: AnyPath, given: bool) -> tuple[list[AnyPath], list[str]]:
    """The checkpoints of a run directory, and what is left out. The mend for an order that is given is no glob."""
    try:
        inside, left_out = checkpoints_inside(directory)
    except CheckpointError as error:
        raise CheckpointError(error.message, file=error.file, hint=_IN_ORDER if given else error.hint) from error
    sets = [s for s in _sets_or_none(directory) if not is_ema_set(s)] if given and not inside else []
    if len(sets) > 1 and not any(s.stem in STANDARD_STEMS for s in sets):
        found = [s.entry.name for s in sets]
        refuse_parts_in(directory, found)
        what = f"holds {len(found)} sets of weights: {_shortened(found)}"
        raise CheckpointError(what, file=directory, hint=_IN_ORDER)
    return inside, left_out


def _shortened(left_out: Sequence[str]) -> str:
    more = len(left_out) - _MOST_SHOWN
    return ", ".join(left_out[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def distinct(checkpoints: Sequence[Checkpoint], notes: list[str]) -> list[Checkpoint]:
    """Without arguments that name the same checkpoint twice, by its path or by a link to it."""
    seen: dict[AnyPath, Checkpoint] = {}
    again = []
    for checkpoint in checkpoints:
        first = seen.setdefault(checkpoint.path.absolute(), checkpoint)
        if first is not checkpoint:
            again.append((checkpoint, first))
    kept, links = _without_links(list(seen.values()))
    notes += counted_once([*again, *links], "{} is {} again")
    return kept


def _without_links(checkpoints: list[Checkpoint]) -> tuple[list[Checkpoint], list[tuple[Checkpoint, Checkpoint]]]:
    """Without links to others among them, `last` or `last/pretrained_model`; and these, each with what it leads to.

    Links that lead to the same place elsewhere stay: a cache keeps equal files of different checkpoints as such.
    """
    if not any(_links(checkpoint.path) for checkpoint in checkpoints):
        return checkpoints, []
    owners: dict[AnyPath, Checkpoint] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: _links(c.path)):
        owners.setdefault(checkpoint.path.resolve(), checkpoint)
    found = [(checkpoint, owners[checkpoint.path.resolve()]) for checkpoint in checkpoints]
    links = [(one, owner) for one, owner in found if _links(owner.path) < _links(one.path)]
    return [one for one, owner in found if _links(owner.path) >= _links(one.path)], links


def _links(path: AnyPath) -> int:
    """Of the names at the end of a path, how many are links."""
    return path.is_symlink() + path.absolute().parent.is_symlink()


def checkpoints_inside(directory: AnyPath) -> tuple[list[AnyPath], list[str]]:
    """The checkpoints of a run directory, in the order of their integers, and what beside them is left out.

    They are sub-directories named as checkpoints, else sub-directories with weights whose names differ in their
    integers alone, else such files. Both are empty for a directory that is a checkpoint itself, or no run.
    """
    sets = _sets_or_none(directory)
    entries = sorted((e for e in directory.iterdir() if not e.name.startswith(".")), key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir() and not STATE.fullmatch(entry.name)]
    inside = _folders(directory, folders, sets)
    taken = {entry.name for entry in inside}
    left_out = [_link_or_name(folder) for folder in folders if inside and folder.name not in taken and _holds(folder)]
    if not inside:
        sets += _sets_or_none(directory, torch_sets) if sets and sets[0].suffix == SUFFIX else []
        inside = _of_one_format(directory, sets)
        taken = {entry.name for entry in inside}
    left_out += [s.entry.name for s in sets if s.entry.name not in taken]
    return (sorted(inside, key=_numbers), left_out) if inside else ([], [])


def _of_one_format(directory: AnyPath, sets: Sequence[WeightSet]) -> list[AnyPath]:
    """The files of a run, which are safetensors or torch files. Raises CheckpointError if it has others in either.

    Beside torch files one of safetensors is a last save, or an optimizer; beside all of them they are converted ones.
    """
    whole = any(s.stem in STANDARD_STEMS for s in sets)
    found = [_files(directory, [s for s in sets if (s.suffix == SUFFIX) is safe], whole) for safe in (True, False)]
    safetensors, torch = found
    if safetensors and torch and {s.stem for s in safetensors} != {s.stem for s in torch}:
        raise CheckpointError(
            f"holds a series as {SUFFIX}, {len(safetensors)} checkpoints, and one as {torch[0].suffix}, {len(torch)}",
            file=directory,
            hint=f"give the files of one of them: {directory}/*{torch[0].suffix}",
        )
    return [s.entry for s in safetensors or torch]


def _sets_or_none(directory: AnyPath, find: Callable[[AnyPath], list[WeightSet]] = weight_sets) -> list[WeightSet]:
    try:
        return find(directory)
    except CheckpointError:
        return []  # said when the directory itself is opened


def _folders(directory: AnyPath, folders: list[AnyPath], sets: list[WeightSet]) -> list[AnyPath]:
    whole = any(s.stem in STANDARD_STEMS for s in sets)
    named = [folder for folder in folders if names.names_a_checkpoint(folder.name)]
    if named:
        return [] if _is_checkpoint(directory, sets, named) else _of_one_series(directory, named)
    if whole or any((directory / name).is_file() for name in _ONE_MODEL):
        return []
    return _alike_folders(directory, [folder for folder in folders if not _leads_beside(folder)])


def _of_one_series(directory: AnyPath, named: list[AnyPath]) -> list[AnyPath]:
    groups = _alike(named, lambda folder: folder.name)
    groups = [group for group in groups if sum(map(_holds_a_model, group)) > 1] if len(groups) > 1 else []
    _refuse_several(directory, [[folder.name for folder in group] for group in groups])
    return named


def _refuse_several(directory: AnyPath, series: Sequence[Sequence[str]]) -> None:
    """Raise CheckpointError for several series in one directory; the names of each are given."""
    if len(series) < 2:
        return
    bases = [_base(names.stem_of(own[0])) for own in series]
    alone = next((base for base in bases if base and sum(own[0].startswith(base) for own in series) == 1), None)
    raise CheckpointError(
        f"holds {len(series)} series: {', '.join(f'{own[0]} …' for own in series)}",
        file=directory,
        hint="give the checkpoints of one of them as arguments" + (f": {directory}/{alone}*" if alone else ""),
    )


def _is_checkpoint(directory: AnyPath, sets: list[WeightSet], inside: list[AnyPath]) -> bool:
    """Whether a directory's own weights are the checkpoint, and what it holds is named as checkpoints is not a run's.

    DeepSpeed keeps its state in global_step500 inside checkpoint-500, where the Trainer saves the weights.
    """
    models = list(islice(filter(_holds_a_model, inside), 2))
    if not models:
        return bool(sets) or any(entry not in inside for entry in holders(directory))
    return len(models) == 1 and any(s.stem in STANDARD_STEMS for s in sets)


def _holds_a_model(folder: AnyPath) -> bool:
    found = [s.entry.name for s in _sets_or_none(folder)]
    return bool(found and not recognise(found)) or is_directory_format(folder) or bool(holders(folder))


def _alike_folders(directory: AnyPath, folders: list[AnyPath]) -> list[AnyPath]:
    """Directories whose names differ in their last number alone: samples_1000, or LeRobot's 003000."""
    there = {folder.name for folder in folders}
    groups = _alike([folder for folder in folders if _ends_in_a_number(folder.name)], lambda folder: folder.name)
    found = [group for group in groups if _base(group[0].name) not in there and sum(map(_holds, group)) > 1]
    _refuse_several(directory, [[folder.name for folder in group] for group in found])
    bare = [folder for folder in folders if folder.name.isdigit() and _holds(folder)]
    return found[0] if found else bare if len(bare) == 1 else []


def _files(directory: AnyPath, sets: Sequence[WeightSet], whole: bool) -> list[WeightSet]:
    """Files whose stems are of one template, by words that count checkpoints, else by their integers alone.

    whole: whether the directory also holds a model under a standard name, beside which only words count.
    """
    files = [s for s in sets if s.index is None and not (_OPTIMIZER.match(s.stem) or STATE.fullmatch(s.entry.name))]
    raw = [s for s in files if not average_by_name(s.stem) and not ema_by_name(s.stem)] or files
    once = [s for s in raw if s.suffix != ".ckpt" or not _SAVED_AGAIN.search(s.stem)]
    groups = _alike(once, lambda s: s.stem)
    said = [group for group in groups if names.step_in_name(group[0].stem) is not None or names.counts(group[0].stem)]
    _refuse_several(directory, [[s.entry.name for s in group] for group in said])
    if said:
        shapes = {shape(group[0].stem) for group in said}
        return [s for s in raw if shape(s.stem) in shapes or _records_its_step(s, said, shapes)]
    return groups[0] if len(groups) == 1 and not whole else []


def _records_its_step(weights: WeightSet, said: Sequence[Sequence[WeightSet]], shapes: set[Shape]) -> bool:
    """Whether a file is Lightning's last.ckpt or a like one, beside such as state a step."""
    if weights.suffix != ".ckpt" or names.step_in_name(said[0][0].stem) is None:
        return False
    return not has_number(weights.stem) or shape(_SAVED_AGAIN.sub("", weights.stem)) in shapes


def _alike(found: Iterable[_Found], name: Callable[[_Found], str]) -> list[list[_Found]]:
    """Those whose names are of one template and differ in an integer, two or more of each."""
    groups: dict[Shape, list[_Found]] = {}
    for one in found:
        groups.setdefault(shape(name(one)), []).append(one)
    return [group for group in groups.values() if len({tuple(_integers(name(one))) for one in group}) > 1]


def _integers(name: str) -> list[int]:
    return [piece.value or 0 for piece in pieces(name) if piece.kind is Kind.NUMBER]


def _numbers(entry: AnyPath) -> tuple[bool, list[int], str]:
    """By its integers, and what has none last."""
    found = _integers(entry.name if entry.is_dir() else names.stem_of(entry.name))
    return not found, found, entry.name


def _ends_in_a_number(name: str) -> bool:
    """Whether a number counts what a name says, and does not number a module as in 2_Dense."""
    return pieces(name)[-1].kind is Kind.NUMBER or names.counts(name) or names.step_in_name(name) is not None


def _base(name: str) -> str:
    """What stands before the number: text_encoder of text_encoder_2, which is one model of several with it."""
    return "".join(piece.text for piece in pieces(name)[:-1]).rstrip("-_. =")


def _holds(folder: AnyPath) -> bool:
    """Whether weights lie in a directory, or in one inside it as in 003000/pretrained_model."""
    return holds_weights(folder) or bool(holders(folder))


def _leads_beside(folder: AnyPath) -> bool:
    """Whether a directory is a link to one beside it: LeRobot's last."""
    return folder.is_symlink() and folder.resolve().parent == folder.absolute().parent.resolve()


def _link_or_name(folder: AnyPath) -> str:
    return f"{folder.name} (a link to {folder.resolve().name})" if _leads_beside(folder) else folder.name
