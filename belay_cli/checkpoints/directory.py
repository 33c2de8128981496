"""Directories: which files in them are weights. Opens nothing but indices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from belay_cli.checkpoints.order.averages import LEAVE_OUT, average_by_name, ema_by_name
from belay_cli.checkpoints.order.ranks import refuse_parts, refuse_parts_in
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.formats import SUFFIX, TORCH_SUFFIXES, is_directory_format
from belay_cli.formats.shards import SHARD
from belay_cli.storage.files import AnyPath, is_plain_name, names_in

INDEX_SUFFIX = ".safetensors.index.json"
_VARIANT_INDEX = re.compile(r"(.+)(\.safetensors|\.bin)\.index(\.\w+)\.json")  # of diffusers and transformers

# The names under which libraries look for weights: transformers, diffusers, peft.
STANDARD_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")

# What a trainer keeps beside the weights, in files or directories that look like some.
STATE = re.compile(
    r"belay\.pt|"  # of belay_cli.training
    r"(.*[-_])?(optimizer|optim|scheduler|rng|random|scaler|sampler|train(?:ing)?_(?:args|state)|trainer|dataloader"
    r"|state_optim)"
    r"([-_.]?(states?|args|bin|params))*([-_]?\d+([-_]\d+)*)?(\.\w+)*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class WeightSet:
    """The weights of one model in a directory: a single file, or shards under an index. `suffix` is their format.

    `beside`: the names of all that lies in the directory.
    """

    directory: AnyPath
    stem: str  # `model` in model.safetensors and in model-00001-of-00002.safetensors
    index: AnyPath | None
    suffix: str = SUFFIX
    beside: frozenset[str] = frozenset()

    @property
    def entry(self) -> AnyPath:
        """The file by which a loader finds the weights."""
        return self.index or self.directory / f"{self.stem}{self.suffix}"


def weight_sets(directory: AnyPath) -> list[WeightSet]:
    """Every set of weights that lies in the directory itself, in name order: safetensors, or else torch files."""
    names = _plain_names(directory)
    return _sets(directory, names, names, (SUFFIX,)) or _torch_sets(directory, names)


def torch_sets(directory: AnyPath) -> list[WeightSet]:
    """Every set of weights in torch files that lies in the directory itself, in name order."""
    return _torch_sets(directory, _plain_names(directory))


def _torch_sets(directory: AnyPath, there: list[str]) -> list[WeightSet]:
    return _sets(directory, there, [name for name in there if not STATE.fullmatch(name)], TORCH_SUFFIXES)


def _plain_names(directory: AnyPath) -> list[str]:
    """Of what lies there and is not hidden."""
    return sorted(name for name in names_in(directory) if not name.startswith("."))


def _sets(directory: AnyPath, there: list[str], names: list[str], suffixes: tuple[str, ...]) -> list[WeightSet]:
    beside = frozenset(there)
    sets = []
    for suffix in suffixes:
        indexed = _indices(names, suffix)
        shards = {
            match[1] + (match[2] or "") for name in names if (match := SHARD.fullmatch(name)) and match[3] == suffix
        }
        single = {name.removesuffix(suffix) for name in names if name.endswith(suffix) and not SHARD.fullmatch(name)}
        _refuse_halves(directory, suffix, single, set(indexed), shards)
        sets += [WeightSet(directory, stem, None, suffix, beside) for stem in single]
        sets += [WeightSet(directory, stem, directory / index, suffix, beside) for stem, index in indexed.items()]
    return sorted(sets, key=lambda s: (s.stem, s.suffix))


def _indices(names: list[str], suffix: str) -> dict[str, str]:
    """stem -> the name of its index. The stem of a variant ends in the variant's name: model.fp16."""
    ending = f"{suffix}.index.json"
    found = {name.removesuffix(ending): name for name in names if name.endswith(ending)}
    for name in names:
        if (match := _VARIANT_INDEX.fullmatch(name)) and match[2] == suffix:
            found[match[1] + match[3]] = name
    return found


def _refuse_halves(directory: AnyPath, suffix: str, single: set[str], indexed: set[str], shards: set[str]) -> None:
    for stem in sorted(single & (indexed | shards)):
        raise CheckpointError(
            f"holds both {stem}{suffix} and shards of the same name",
            file=directory,
            hint="one of them is left over from an older save; remove it",
        )
    for stem in sorted(shards - indexed):
        raise CheckpointError(
            f"holds shards of {stem}{suffix} but no {stem}{suffix}.index.json",
            file=directory,
            hint="the save is incomplete; copy the index too",
        )


def choose_weights(directory: AnyPath, sets: list[WeightSet], source: str | None = None) -> WeightSet | None:
    """Of the sets in a directory the only one, or the one with the standard name; None if there is none.

    source: `ema` for that of an EMA beside raw weights. Raises CheckpointError if it is not clear which is meant.
    """
    sets = _of_source(directory, sets, source)
    standard = [s for s in sets if s.stem in STANDARD_STEMS] or sets
    if len(standard) > 1:
        names = ", ".join(s.entry.name for s in standard[:3]) + (" …" if len(standard) > 3 else "")
        refuse_parts_in(directory, [s.entry.name for s in standard])
        files = all(s.index is None for s in standard)
        raise CheckpointError(
            f"holds {len(standard)} sets of weights: {names}",
            file=directory,
            hint=f"give the files themselves as arguments: {directory}/*{standard[0].entry.suffix}"
            if files
            else "leave the one to be averaged in the directory, and move the others away",
        )
    return standard[0] if standard else None


_NON_EMA = ".non_ema"  # latent diffusion releases: the plain name is the EMA's where this lies beside it


def _of_source(directory: AnyPath, sets: list[WeightSet], source: str | None) -> list[WeightSet]:
    """The sets of raw weights, or those of an EMA."""
    if source == "ema" and not any(is_ema_set(s) for s in sets):
        sets = [*sets, *torch_sets(directory)] if sets and sets[0].suffix == SUFFIX else sets
    emas = [s for s in sets if is_ema_set(s)]
    raws = [s for s in sets if s not in emas]
    if not emas or not raws:
        return sets
    if source is None and any(s.stem.endswith(_NON_EMA) for s in raws):
        raw = next(s for s in raws if s.stem.endswith(_NON_EMA))
        raise CheckpointError(
            f"holds raw weights ({raw.entry.name}) and their EMA ({emas[0].entry.name})",
            file=directory,
            hint="say which: --source raw or --source ema",
        )
    return emas if source == "ema" else raws


def is_ema_set(weights: WeightSet) -> bool:
    """Whether a set of weights is an EMA by its name, or by that of the raw weights beside it."""
    twin = f"{weights.stem}{_NON_EMA}{weights.suffix}"
    return bool(ema_by_name(weights.stem)) or not weights.beside.isdisjoint((twin, f"{twin}.index.json"))


def passed_over(chosen: WeightSet, sets: list[WeightSet]) -> list[str]:
    """Notes about the same weights in another precision, as model.fp16.safetensors, and about an EMA or its twin."""
    others = [s for s in sets if s.entry != chosen.entry]
    named = [s for s in others if s.stem.startswith(f"{chosen.stem}.") or is_ema_set(s) != is_ema_set(chosen)]
    return [f"takes {chosen.entry.name}, not {s.entry.name}" for s in named]


def find_weights(directory: AnyPath, opening: Opening) -> tuple[AnyPath, list[str]]:
    """The directory that holds the weights: this one, or one inside it; and the EMA twins passed over.

    `checkpoint-500/unet` beside `checkpoint-500/unet_ema` is the raw model and its EMA: the raw one is taken, unless
    --subfolder or --source says otherwise. Raises CheckpointError if it is not clear which model is meant.
    """
    if opening.subfolder is not None:
        return subfolder(directory, opening.subfolder), []
    if holds_weights(directory):
        return directory, []
    found = holders(directory)
    raw = raw_or_ema(directory, found, opening)
    refuse_parts_in(directory, [entry.name for entry in raw])
    if len(raw) > 1:
        raise CheckpointError(
            f"holds several models: {', '.join(entry.name for entry in raw)}",
            file=directory,
            hint=f"choose one of them: --subfolder {raw[0].name}; or take all of them: --subfolder all",
        )
    return (raw[0], [entry.name for entry in found if entry not in raw]) if raw else (directory, [])


def raw_or_ema(directory: AnyPath, found: list[AnyPath], opening: Opening) -> list[AnyPath]:
    """Of the folders with weights in a directory those that are no EMA by their name; with --source ema, the others.

    Raises CheckpointError if there are only EMAs, and nobody asked for them.
    """
    emas = [entry for entry in found if ema_by_name(entry.name)]
    raw = [entry for entry in found if entry not in emas and not average_by_name(entry.name)]
    if opening.source == "ema":
        return emas or raw
    if found and not raw and not opening.allow_averages:
        raise CheckpointError(
            f"holds only {'an EMA' if emas else 'an average'} of weights, in {(emas or found)[0].name}",
            file=directory,
            hint="leave it out, or average EMAs on purpose: --source ema" if emas else LEAVE_OUT,
        )
    return raw or found


def subfolder(directory: AnyPath, name: str) -> AnyPath:
    """The folder of this name, which holds weights. Raises CheckpointError, and UsageError if it lies elsewhere."""
    parts = name.strip("/").split("/")
    if not all(map(is_plain_name, parts)):
        raise UsageError(f"--subfolder {name} is no folder inside a checkpoint")
    inner = directory.joinpath(*parts)
    if not inner.is_dir() or not holds_weights(inner):
        choices = [entry.name for entry in holders(directory)]
        raise CheckpointError(
            f"holds no weights in {name}",
            file=directory,
            hint=f"it has weights in: {', '.join(choices)}" if choices else "leave --subfolder out",
        )
    refuse_parts([inner])
    return inner


def holders(directory: AnyPath) -> list[AnyPath]:
    """The directories inside it that hold weights, in name order; not those of a trainer's state."""
    entries = sorted((entry for entry in directory.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return [entry for entry in entries if not STATE.fullmatch(entry.name) and holds_weights(entry)]


def holds_weights(directory: AnyPath) -> bool:
    """Whether weights lie in a directory itself, whole or not."""
    try:
        return bool(weight_sets(directory)) or is_directory_format(directory)
    except CheckpointError:
        return True  # broken ones, which are reported when they are opened
