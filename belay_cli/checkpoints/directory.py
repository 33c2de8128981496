"""Directories: which files in them are weights, and the checkpoints inside a run. Opens nothing but indices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from belay_cli.checkpoints.json_file import read_json
from belay_cli.checkpoints.steps import last_integer, names_a_checkpoint, step_in_name
from belay_cli.checkpoints.storage import AnyPath
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError, UsageError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".tar")  # .tar is that of .pth.tar
DCP_METADATA = ".metadata"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors|\.bin)")

# The names under which libraries look for weights: transformers, diffusers, peft.
STANDARD_STEMS = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_model")

# What a trainer keeps beside the weights, in files or directories that look like some.
_STATE = re.compile(
    r"(.*[-_])?(optimizer|optim|scheduler|rng|random|scaler|sampler|training_args|trainer|dataloader|state_optim)"
    r"([-_.]?(states?|args|bin|params))*([-_]?\d+([-_]\d+)*)?(\.\w+)*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class WeightSet:
    """The weights of one model in a directory: a single file, or shards under an index. `suffix` is their format."""

    directory: AnyPath
    stem: str  # `model` in model.safetensors and in model-00001-of-00002.safetensors
    index: AnyPath | None
    suffix: str = SUFFIX

    @property
    def entry(self) -> AnyPath:
        """The file by which a loader finds the weights."""
        return self.index or self.directory / f"{self.stem}{self.suffix}"


def is_shard(path: AnyPath) -> bool:
    """Whether a file's name says that it is one of several."""
    return _SHARD.fullmatch(path.name) is not None


def weight_sets(directory: AnyPath) -> list[WeightSet]:
    """Every set of weights that lies in the directory itself, in name order: safetensors, or else torch files."""
    names = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    found = _sets(directory, names, (SUFFIX,))
    return found or _sets(directory, [name for name in names if not _STATE.fullmatch(name)], TORCH_SUFFIXES)


def _sets(directory: AnyPath, names: list[str], suffixes: tuple[str, ...]) -> list[WeightSet]:
    sets = []
    for suffix in suffixes:
        ending = f"{suffix}.index.json"
        indexed = {name.removesuffix(ending) for name in names if name.endswith(ending)}
        shards = {match[1] for name in names if (match := _SHARD.fullmatch(name)) and match[2] == suffix}
        single = {name.removesuffix(suffix) for name in names if name.endswith(suffix) and not _SHARD.fullmatch(name)}
        _refuse_halves(directory, suffix, single, indexed, shards)
        sets += [WeightSet(directory, stem, None, suffix) for stem in single]
        sets += [WeightSet(directory, stem, directory / f"{stem}{ending}", suffix) for stem in indexed]
    return sorted(sets, key=lambda s: (s.stem, s.suffix))


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


def choose_weights(directory: AnyPath) -> WeightSet | None:
    """The directory's one set of weights: the only one, or the one with the standard name; None if there is none."""
    sets = weight_sets(directory)
    standard = [s for s in sets if s.stem in STANDARD_STEMS] or sets
    if len(standard) > 1:
        names = ", ".join(s.entry.name for s in standard[:3]) + (" …" if len(standard) > 3 else "")
        raise CheckpointError(
            f"holds {len(standard)} sets of weights: {names}",
            file=directory,
            hint=f"give the files themselves as arguments: {directory}/*{standard[0].entry.suffix}",
        )
    return standard[0] if standard else None


def shards_of(index: AnyPath, suffix: str) -> dict[str, str]:
    """weight_map of an index: tensor name -> file name, each a file that is there, in the same directory."""
    owners = _read_index(index, suffix)
    named = set(owners.values())
    there = {entry.name for entry in index.parent.iterdir() if entry.is_file()}
    for name in sorted(named - there):
        raise CheckpointError(f"names the shard {name}, which is not there", file=index, hint="copy the missing shard")
    for name in sorted(there - named):
        if _beside(name, named):
            raise CheckpointError(
                f"does not name {name}, which lies beside the shards that it names",
                file=index,
                hint="index and shards come from different saves; copy the checkpoint again",
            )
    return owners


def _beside(name: str, shards: set[str]) -> bool:
    """Whether a file is by its name one more shard of the same number of them."""

    def family(shard: str) -> str:
        return re.sub(r"-\d{5}(?=-of-)", "", shard)

    return _SHARD.fullmatch(name) is not None and family(name) in set(map(family, shards))


def check_index(index: AnyPath, owners: dict[str, str], held: set[tuple[str, str]]) -> None:
    """Raise CheckpointError if index and shards disagree; held: (tensor, file) as the shards have it."""
    for name, owner in sorted(owners.items() - held):
        raise _index_lies(index, name, f"is not in {owner}")
    for name, owner in sorted(held - owners.items()):
        raise _index_lies(index, name, f"lies in {owner}, which the index does not say")


def _index_lies(index: AnyPath, tensor: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"does not fit its shards: {tensor!r} {where}",
        file=index,
        tensor=tensor,
        hint="index and shards come from different saves; copy the checkpoint again",
    )


def _read_index(path: AnyPath, suffix: str) -> dict[str, str]:
    index = read_json(path)
    owners = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(owners, dict) or not owners or not all(isinstance(name, str) for name in owners.values()):
        raise CheckpointError("has no weight_map from tensor names to file names", file=path)
    for tensor, name in owners.items():
        if not is_plain_name(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"puts {tensor!r} into {name!r}, which is not a {suffix} file of this directory",
                file=path,
                tensor=tensor,
                hint="the index is damaged, or not to be trusted; copy the checkpoint again",
            )
    return owners


def is_plain_name(name: str) -> bool:
    """Whether a name stays inside its directory, on any system."""
    return name not in ("", ".", "..") and not any(c in name for c in '/\\:"\0\n')


def is_dcp(directory: AnyPath) -> bool:
    """Whether the directory is one of torch.distributed.checkpoint, whole or not."""
    return (directory / DCP_METADATA).is_file() or any(directory.glob("*.distcp"))


def checkpoints_inside(directory: AnyPath) -> tuple[list[AnyPath], list[str]]:
    """The checkpoints of a run directory, in the order of their integers, and the weights beside them, left out.

    They are sub-directories named as checkpoints, else several files with steps.
    """
    sets = _sets_or_none(directory)
    inside = [entry for entry in directory.iterdir() if entry.is_dir() and names_a_checkpoint(entry.name)]
    if not inside:
        inside = [s.entry for s in sets if s.index is None and step_in_name(s.stem) is not None]
        if inside:  # last.ckpt and its like record their step
            inside += [s.entry for s in sets if s.suffix == ".ckpt" and s.entry not in inside]
    if len(inside) < 2 and not any(entry.is_dir() for entry in inside):
        return [], []
    left_out = [s.entry.name for s in sets if s.entry not in inside]
    return sorted(inside, key=lambda entry: (_number(entry), entry.name)), left_out


def _number(entry: AnyPath) -> int:
    name = entry.name if entry.is_dir() else entry.stem
    step = step_in_name(name)
    return step if step is not None else last_integer(name) or 0


def _sets_or_none(directory: AnyPath) -> list[WeightSet]:
    try:
        return weight_sets(directory)
    except CheckpointError:
        return []  # said when the directory itself is opened


def find_weights(directory: AnyPath, opening: Opening) -> tuple[AnyPath, list[str]]:
    """The directory that holds the weights: this one, or one inside it; and the EMA twins passed over.

    `checkpoint-500/unet` beside `checkpoint-500/unet_ema` is the raw model and its EMA: the raw one is taken, unless
    --subfolder or --source says otherwise. Raises CheckpointError if it is not clear which model is meant.
    """
    if opening.subfolder is not None:
        return _subfolder(directory, opening.subfolder), []
    if _holds_weights(directory):
        return directory, []
    holders = _holders(directory)
    raw = [entry for entry in holders if not entry.name.endswith("_ema")]
    if opening.source == "ema" and raw != holders:
        raw = [entry for entry in holders if entry not in raw]
    if len(raw) > 1:
        raise CheckpointError(
            f"holds several models: {', '.join(entry.name for entry in raw)}",
            file=directory,
            hint=f"choose one of them: --subfolder {raw[0].name}",
        )
    return (raw[0], [entry.name for entry in holders if entry not in raw]) if raw else (directory, [])


def _subfolder(directory: AnyPath, name: str) -> AnyPath:
    parts = name.strip("/").split("/")
    if not all(map(is_plain_name, parts)):
        raise UsageError(f"--subfolder {name} is no folder inside a checkpoint")
    inner = directory.joinpath(*parts)
    if not inner.is_dir() or not _holds_weights(inner):
        choices = [entry.name for entry in _holders(directory)]
        raise CheckpointError(
            f"holds no weights in {name}",
            file=directory,
            hint=f"it has weights in: {', '.join(choices)}" if choices else "leave --subfolder out",
        )
    return inner


def _holders(directory: AnyPath) -> list[AnyPath]:
    entries = sorted((entry for entry in directory.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return [entry for entry in entries if not _STATE.fullmatch(entry.name) and _holds_weights(entry)]


def _holds_weights(directory: AnyPath) -> bool:
    try:
        return bool(weight_sets(directory)) or is_dcp(directory)
    except CheckpointError:
        return True  # broken ones, which are reported when they are opened
