"""LoRA adapters (PEFT): which tensors are the two factors of one update, and what scales their product.

An update is s·B·A, s = lora_alpha / r (Hu et al., arXiv 2106.09685), or lora_alpha / √r for rsLoRA (Kalajdzievski,
arXiv 2312.03732). Checkpoints of one run share s, so an average of updates is s times the average of the products;
where they do not, it is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.json_file import JsonError, read_json
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.errors import SeriesError, UsageError

ADAPTER_CONFIG = "adapter_config.json"
_LARGEST_CONFIG = 10_000_000  # bytes
_LARGEST_ALPHA = 1e9

_FACTOR = re.compile(r"(.*)\.lora_(?:embedding_)?(A|B)((?:\.[^.]+)?(?:\.weight)?)")
_MAGNITUDE = re.compile(r".*\.lora_magnitude_vector(\..*)?")

# What a scaling depends on: all of it must be the same in every checkpoint.
_SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")

# Keys of a configuration that make the update something else than s·B·A, by what people call it.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "target_parameters": "LoRA on single parameters (experts)",
}
# Types that change the model by something linear in every tensor they store: the plain average of these is exact.
_LINEAR = frozenset(
    {
        *("BEFT", "C3A", "CARTRIDGE", "FOURIERFT", "IA3", "LN_TUNING", "MISS", "P_TUNING", "PREFIX_TUNING"),
        *("PROMPT_TUNING", "SHIRA", "TINYLORA", "TRAINABLE_TOKENS", "WAVEFT"),
    }
)
# Ways to begin that take s·B₀·A₀ out of the base weights; peft repeats that when it loads, by the configuration's r.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
_PARTICULAR_ABOUT_RANKS = ("orthogonal", "mica")  # of which peft accepts some only, though nothing depends on them then
_MERGE = "merge each adapter into its model and average the models, or --lora factors"


class Pair(NamedTuple):
    """Names of the factors of one update: a is [r, in …], b is [out, r …]."""

    a: str
    b: str


def adapter_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """adapter_config.json beside the weights. Raises SeriesError if it is none, or is not there."""
    path = checkpoint.directory / ADAPTER_CONFIG if checkpoint.directory else None
    if path is None or not path.is_file():
        raise SeriesError(
            f"is an adapter without its {ADAPTER_CONFIG}, which says how its updates are scaled",
            file=checkpoint.path,
            hint="give the directory that holds both, or average the factors: --lora factors",
        )
    try:
        found = read_json(path, _LARGEST_CONFIG)
    except JsonError:
        found = None
    if not isinstance(found, dict):
        raise SeriesError("is no configuration of an adapter", file=path, hint="save the adapter again")
    return found


def is_linear(checkpoint: Checkpoint) -> bool:
    """Whether an adapter is of a type whose update is linear in its tensors, so that their average is the update's."""
    path = checkpoint.directory / ADAPTER_CONFIG if checkpoint.directory else None
    known = path is not None and path.is_file()
    return known and str(adapter_config(checkpoint).get("peft_type")).upper() in _LINEAR


def update_pairs(checkpoints: Sequence[Checkpoint], tensors: Mapping[str, Tensor]) -> tuple[Pair, ...]:
    """The factors of every update of a series of LoRA adapters.

    Raises SeriesError, by name, for adapters whose update is no product of two factors, and for a series whose
    adapters are scaled differently.
    """
    configs = [adapter_config(checkpoint) for checkpoint in checkpoints]
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        _refuse_others(checkpoint, config)
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        for key in _SCALING:
            if (config.get(key) or None) != (configs[-1].get(key) or None):
                raise SeriesError(
                    f"has {key} {_shown(config.get(key))}; in {checkpoints[-1].name} it is "
                    f"{_shown(configs[-1].get(key))}, so their updates are scaled differently",
                    file=checkpoint.path,
                    hint="average adapters of one configuration",
                )
    return _pairs(checkpoints[-1], tensors)


def _refuse_others(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        what = f"of the kind {_shown(kind)}"
    elif any(_MAGNITUDE.fullmatch(name) for name in checkpoint.tensors):
        what = "of the kind DoRA"
    else:
        what = next((f"of the kind {name}" for key, name in _VARIANTS.items() if config.get(key)), "")
    if what:
        raise SeriesError(f"is an adapter {what}, whose update is no product B·A", file=checkpoint.path, hint=_MERGE)


def _pairs(last: Checkpoint, tensors: Mapping[str, Tensor]) -> tuple[Pair, ...]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in tensors:
        if match := _FACTOR.fullmatch(name):
            found.setdefault((match[1], match[3]), {})[match[2]] = name
    pairs = []
    for names in found.values():
        if names.keys() != {"A", "B"}:
            (name,) = names.values()
            raise SeriesError(f"holds {name!r} without the other factor", file=last.path, tensor=name)
        a, b = tensors[names["A"]].shape, tensors[names["B"]].shape
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or math.prod(b[2:]) != 1 or 0 in (*a, *b):
            raise SeriesError(
                f"{names['A']!r} and {names['B']!r} are no factors of one product (experts, or a grouped convolution?)",
                file=last.path,
                tensor=names["A"],
                hint=_MERGE,
            )
        pairs.append(Pair(names["A"], names["B"]))
    return tuple(pairs)


def with_rank(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The configuration for factors of another rank, the scaling s as it was. Raises UsageError where r says more."""
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_THE_BASE):
        raise UsageError(
            f"--lora-rank: these adapters began with {begun}, which changes the base model by their rank",
            hint="leave it out: each update keeps its rank",
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UsageError(
            "--lora-rank sets one rank for all, and these adapters have several",
            hint="leave it out: each update keeps its rank",
        )
    r, alpha = config.get("r"), config.get("lora_alpha")
    error = UsageError(f"--lora-rank needs r and lora_alpha in {ADAPTER_CONFIG}")
    if type(r) is not int or r < 1:
        raise error
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise error
    scaled = alpha * (math.sqrt(rank / r) if config.get("use_rslora") else rank / r)
    changed = {**config, "r": rank, "lora_alpha": int(scaled) if scaled == int(scaled) else scaled}
    return {**changed, "init_lora_weights": True} if begun in _PARTICULAR_ABOUT_RANKS else changed


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
