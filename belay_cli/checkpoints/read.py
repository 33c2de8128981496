"""The weights in one file or directory: which files of it, by which format, and what they mean. Headers only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from belay_cli.checkpoints.directory import (
    STANDARD_STEMS,
    WeightSet,
    choose_weights,
    is_ema_set,
    passed_over,
    weight_sets,
)
from belay_cli.checkpoints.meaning.understand import understand
from belay_cli.checkpoints.order.averages import ema_by_name, lies_among_emas
from belay_cli.checkpoints.order.ranks import refuse_parts_in, whole_alone
from belay_cli.checkpoints.weights import Opening, Weights
from belay_cli.errors import CheckpointError
from belay_cli.formats import directory_format, file_format
from belay_cli.formats.contents import Contents, NoWeights
from belay_cli.formats.foreign import no_weights, not_a_checkpoint, recognise
from belay_cli.formats.shards import check_index, shards_of
from belay_cli.storage.files import AnyPath

# The stem under which loaders look for safetensors, where torch files have another.
_STEMS = {"pytorch_model": "model"}

_ZERO = "zero_pp_rank_"  # every rank of ZeRO has such a file: the weights in it are placeholders


def read_file(path: AnyPath, opening: Opening) -> Weights:
    """The weights in one file. Raises CheckpointError."""
    found = file_format(path.suffix)
    if found is None:
        raise not_a_checkpoint(path)
    if _ZERO in path.name and (known := recognise([path.name])):
        raise CheckpointError(f"is one of the {known.what}", file=path, hint=known.mend)
    named_ema = _named_ema(path.parent, path.stem, opening)
    with _in_place_of_no_weights(path), found.read([path]) as contents:
        return understand(contents, opening, stem=path.stem, directory=None, named_ema=named_ema)


def read_directory(directory: AnyPath, opening: Opening) -> Weights:
    """The weights that lie in a directory itself. Raises CheckpointError."""
    whole = directory_format(directory)
    if whole is not None:
        with whole.read(directory) as contents:
            named_ema = _named_ema(directory, "", opening)
            return understand(contents, opening, stem="model", directory=directory, named_ema=named_ema)
    sets = weight_sets(directory)
    if not any(s.stem in STANDARD_STEMS for s in sets):
        entries = {s.entry.name for s in sets}
        if recognise(entries - whole_alone(entries)):
            raise no_weights(directory)  # rank files, which would be taken for several models
        refuse_parts_in(directory, entries)
    chosen = choose_weights(directory, sets, opening.source)
    if chosen is None:
        raise no_weights(directory)
    with _in_place_of_no_weights(chosen.entry), _read_set(chosen) as contents:
        stem = _STEMS.get(chosen.stem, chosen.stem)
        named_ema = _named_ema(directory, chosen.stem, opening, beside=is_ema_set(chosen))
        weights = understand(contents, opening, stem=stem, directory=directory, named_ema=named_ema)
    return replace(weights, notes=(*passed_over(chosen, sets), *weights.notes))


@contextlib.contextmanager
def _in_place_of_no_weights(path: AnyPath) -> Iterator[None]:
    """Where there are no weights, a file that is something foreign by its name is said to be that."""
    try:
        yield
    except NoWeights as error:
        known = recognise([path.name])
        if known is None:
            raise
        raise CheckpointError(f"looks like {known.what}: it {error.message}", file=path, hint=known.mend) from error


@contextlib.contextmanager
def _read_set(chosen: WeightSet) -> Iterator[Contents]:
    """What one file holds, or all shards under an index, which must agree."""
    found = file_format(chosen.suffix)
    assert found is not None  # noqa: S101 - sets are made of known suffixes
    if chosen.index is None:
        with found.read([chosen.entry]) as contents:
            yield contents
        return
    owners = shards_of(chosen.index, chosen.suffix)
    with found.read([chosen.directory / name for name in sorted(set(owners.values()))]) as contents:
        check_index(chosen.index, owners, contents.held())
        yield contents


def _named_ema(directory: AnyPath, stem: str, opening: Opening, *, beside: bool = False) -> str | None:
    """What in the names says that the weights are an EMA: NeMo's `-EMA.ckpt`, diffusers' `unet_ema/`.

    That of the directory counts for weights that lie in it under a name that says nothing. beside: whether something
    that lies beside them says it.
    """
    if opening.allow_averages and opening.source != "ema":
        return None
    if ema_by_name(stem):
        return "by the name of the file"
    if beside:
        return "by what lies beside it"
    says_nothing = stem in ("", *STANDARD_STEMS)
    own = says_nothing and ema_by_name(directory.absolute().name)
    among = lies_among_emas(directory if says_nothing else directory / stem)
    return "by the name of its directory" if own or among else None
