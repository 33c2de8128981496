"""A torch file, as torch.save writes it: its weights known from its headers, without torch, and nothing executed.

The way in: the zip archive (torch_zip), the object its pickle describes (torch_pickle), the state dict inside that
object (state_dict); here its tensors become names, dtypes, shapes and places in the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from belay_cli.checkpoints.dtypes import BY_NAME, DTYPES
from belay_cli.checkpoints.ema_layouts import Entries
from belay_cli.checkpoints.foreign import recognise
from belay_cli.checkpoints.pieces import Piece, StoredPieces, simplest
from belay_cli.checkpoints.restricted_pickle import ForbiddenNames
from belay_cli.checkpoints.safetensors_header import shape_text
from belay_cli.checkpoints.state_dict import NoWeights, choose_state_dict
from belay_cli.checkpoints.storage import ReadAt, Stored, StoredFile
from belay_cli.checkpoints.torch_pickle import Unreadable, View, read_object
from belay_cli.checkpoints.torch_zip import COPY_AGAIN, Archive, listed, open_archive, short
from belay_cli.errors import CheckpointError

# Names of torch that safetensors writes otherwise.
CODES = {"float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0"}
_LARGEST_STEP = 10**18  # below it, as in a name; fits a signed 64-bit integer
_LARGEST_VIEW = 1 << 30  # bytes of a tensor that shows its storage many times over

# Every rank of ZeRO has such a file: the weights in it are placeholders.
_ZERO = "*zero_pp_rank_*"


class TorchTensor(NamedTuple):
    """A tensor of a torch file; dtype by its safetensors code."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: Stored | StoredPieces


@dataclass(frozen=True)
class TorchWeights:
    """The weights of a torch file, in the order of its state dict.

    `step`: the training step that it records. `aliases`: names left out, because they share the storage of another
    -> the name that is kept. `notes`: what a person should know, without the file's name.
    """

    tensors: tuple[TorchTensor, ...]
    step: int | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_torch_file(
    file: StoredFile, read_at: ReadAt, *, state_key: str | None = None, source: str | None = None
) -> TorchWeights:
    """The weights of a file that torch.save wrote. Reads its directory, its pickle and the headers of its records.

    state_key: where the state dict lies, its parts joined by dots; source: `raw` or `ema`, where the file holds both.
    Raises CheckpointError, which names the file, the tensor and the mend.
    """
    known = recognise([file.path.name])
    if known is not None and fnmatchcase(file.path.name, _ZERO):
        raise CheckpointError(f"is one of the {known.what}", file=file.path, hint=known.mend)
    archive = open_archive(file, read_at)
    try:
        root = _object(archive)
        chosen = choose_state_dict(root, file.path, state_key=state_key, source=source)
    except NoWeights as error:
        if known is None:
            raise
        raise CheckpointError(
            f"looks like {known.what}: it {error.message}", file=file.path, hint=known.mend
        ) from error
    views, notes = _views(file, chosen.entries)
    _refuse_parts(file, root, views)
    kept, aliases = _without_aliases(views)
    tensors = tuple(_tensor(archive, name, view) for name, view in kept.items())
    return TorchWeights(tensors, _recorded_step(root), aliases, (*chosen.notes, *notes))


def _object(archive: Archive) -> Any:
    try:
        return read_object(archive)
    except ForbiddenNames as error:
        raise _needs_more(archive.file, error.names) from error


def _needs_more(file: StoredFile, names: list[str]) -> NoWeights:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    what = f"needs more than weights to be read: it would import {listed(names[:5])}{more}"
    sharded = any(name.startswith(_SHARDED) for name in names)
    return NoWeights(what, file=file.path, hint=_GATHER if sharded else _SAVE_ALONE)


_SHARDED = "torch.distributed."
_GATHER = "it is one rank's part; save the whole: get_model_state_dict with StateDictOptions(full_state_dict=True)"
_SAVE_ALONE = (
    "load it where you trust it, and save the weights alone: torch.save(model.state_dict(), path); "
    "belay never runs what a file contains"
)


# ---- the names


def _views(file: StoredFile, entries: Entries) -> tuple[dict[str, View], list[str]]:
    """The tensors of a state dict under the names that the model itself has, and notes."""
    views: dict[str, View] = {}
    tensors = {name: value for name, value in entries.items() if isinstance(value, (View, Unreadable))}
    names, notes = plain_names(list(tensors))
    for name, value in zip(names, tensors.values(), strict=True):
        if name in views:
            raise CheckpointError(
                f"has {short(name)} twice, once with a prefix of torch.compile or DataParallel",
                file=file.path,
                tensor=name,
                hint="two models lie in one state dict; save the one to average by itself",
            )
        if isinstance(value, Unreadable):
            raise _not_plain(file, name, value.what)
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise _lie(file, name, "is not a name in Unicode")
        views[name] = value
    others = [name for name in entries if name not in tensors and not _expected(name)]
    if others:
        notes.append(f"leaves out what is no tensor: {listed(others)}")
    return views, notes


def _expected(name: str) -> bool:
    """Whether an entry that is no tensor belongs in a state dict: what modules keep for themselves."""
    return name == "_metadata" or name.endswith("_extra_state")


_WRAPPERS = re.compile(r"(?:module\.(?=.))*", re.DOTALL)  # matches every name, and leaves some of it


def plain_names(names: list[str]) -> tuple[list[str], list[str]]:
    """Names without what torch.compile and DataParallel put before them, one each, and notes that say so."""
    notes = []
    plain = [".".join(part for part in name.split(".") if part != "_orig_mod") or name for name in names]
    if plain != names:
        notes.append("names are taken without the _orig_mod. of torch.compile")
    wrappers = min((len(found[0]) for name in plain if (found := _WRAPPERS.match(name))), default=0)
    if wrappers:
        plain = [name[wrappers:] for name in plain]
        notes.append("names are taken without the module. of DataParallel")
    return plain, notes


def _without_aliases(views: dict[str, View]) -> tuple[dict[str, View], dict[str, str]]:
    """The tensors with each view of a storage once, and the other names for it."""
    first: dict[View, str] = {}
    aliases = {}
    for name, view in views.items():
        kept = first.setdefault(_normal(view), name)
        if kept != name:
            aliases[name] = kept
    return {name: view for name, view in views.items() if name not in aliases}, aliases


def _normal(view: View) -> View:
    """A view whose strides say nothing where there is one element."""
    return view._replace(strides=tuple(s if n > 1 else 0 for n, s in zip(view.shape, view.strides, strict=True)))


# ---- the places


def _tensor(archive: Archive, name: str, view: View) -> TorchTensor:
    file = archive.file
    dtype = DTYPES[CODES[view.dtype]] if view.dtype in CODES else BY_NAME.get(view.dtype)
    if dtype is None:
        raise _not_plain(file, name, f"of dtype {view.dtype}, which safetensors does not have")
    itemsize = dtype.bits // 8
    _check_bounds(file, name, view, itemsize)
    begin = archive.offset(f"data/{view.storage.key}")
    if 0 in view.shape:
        return TorchTensor(name, dtype.code, view.shape, Stored(file, begin))
    begin += view.offset * itemsize
    piece = Piece(file, begin, (0,) * len(view.shape), view.shape, _normal(view).strides)
    return TorchTensor(name, dtype.code, view.shape, simplest(view.shape, itemsize, (piece,)))


def _check_bounds(file: StoredFile, name: str, view: View, itemsize: int) -> None:
    """Raise CheckpointError unless every element of the view lies in its storage."""
    shape, strides = view.shape, view.strides
    # Bounded one by one, so that their products stay small whatever a file claims.
    if not all(0 <= n < 1 << 63 for n in (view.offset, *shape, *strides)):
        raise _lie(
            file, name, f"has the shape {short(shape)}, strides {short(strides)} and offset {short(view.offset)}"
        )
    elements = math.prod(shape)
    last = view.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if elements and (last + 1) * itemsize > view.storage.nbytes:
        raise _lie(
            file,
            name,
            f"is {shape_text(shape)} of {view.dtype} up to byte {(last + 1) * itemsize} "
            f"of a storage that has {view.storage.nbytes}",
        )
    if elements * itemsize > max(file.size, _LARGEST_VIEW):
        raise _lie(file, name, f"is {shape_text(shape)} of {view.dtype}, many times what the file holds")


def _lie(file: StoredFile, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"has a data.pkl that cannot be right: {short(name)} {what}", file=file.path, tensor=name, hint=COPY_AGAIN
    )


def _not_plain(file: StoredFile, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"has a tensor that belay does not read: {short(name)} is {what}",
        file=file.path,
        tensor=name,
        hint="save the checkpoint with a plain tensor in its place, or without it",
    )


# ---- what trainers record beside the weights


def _recorded_step(root: dict[Any, Any]) -> int | None:
    """The training step that Lightning or DeepSpeed recorded; others mean too many things by `step`."""
    if "pytorch-lightning_version" in root:
        step = root.get("global_step")
    elif _is_deepspeed(root):
        step = root.get("global_steps")
    else:
        return None
    return step if type(step) is int and 0 <= step < _LARGEST_STEP else None


def _is_deepspeed(root: dict[Any, Any]) -> bool:
    return "ds_version" in root and "module" in root


def _refuse_parts(file: StoredFile, root: dict[Any, Any], views: dict[str, View]) -> None:
    """Raise CheckpointError for DeepSpeed's file of one rank, where other ranks hold the rest of the weights."""
    if not _is_deepspeed(root):
        return
    ranks = root.get("mp_world_size")
    if type(ranks) is int and ranks > 1:
        raise CheckpointError(
            f"is the part of one of {ranks} model-parallel ranks",
            file=file.path,
            hint="put the ranks together first: ds_to_universal.py, or the converter of the training code",
        )
    for name, view in views.items():
        if 0 in view.shape:
            raise CheckpointError(
                f"holds no weights but placeholders ({short(name)}): they lie in shards of DeepSpeed ZeRO",
                file=file.path,
                tensor=name,
                hint="put them together first: python zero_to_fp32.py RUN OUT --safe_serialization",
            )
