"""LoRA: the pairs of factors whose product is an update, and what scales the product.

An update is s·B·A, s = lora_alpha / r (Hu et al., arXiv 2106.09685), or lora_alpha / √r for rsLoRA (Kalajdzievski,
arXiv 2312.03732). Checkpoints of one run share s, so an average of updates is s times the average of the products,
whether s is known or not: loralib, torchtune, LitGPT, NeMo and DeepSpeed-Chat have it in their code only, and older
diffusers (loaders/lora_pipeline.py) and sd-scripts (networks/lora.py) take alpha = r where none is stored. Where
something of s is recorded, in a configuration, in metadata or as a tensor (`alpha`), it must be the same everywhere.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from belay_cli.checkpoints.adapters.config import adapter_config, recorded_kind, recorded_scales, shown
from belay_cli.checkpoints.adapters.names import ADAPTER_CONFIG, Factor, factor_of, factors_in, kind_by_names
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.errors import SeriesError
from belay_cli.formats.contents import Tensor
from belay_cli.formats.text import shape_text
from belay_cli.storage.files import OpenFiles

_PEFT = "base_model.model."  # what peft puts before every name
MERGE = "merge each adapter into its model and average the models, or --lora factors"

# The last part of the name of a tensor beside factors that scales their product, whole or as alpha / r, and how its
# number is stored.
_ALPHAS = ("alpha", "lora_alpha", "network_alpha")
_SCALES = (*_ALPHAS, "lora_scale", "lora_scaling")
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


class Pair(NamedTuple):
    """Names of the factors of one update: a is [r, in …], b is [out, r …].

    For a dialect that stores them transposed, [in, r] and [r, out], the roles are changed: `b` is the first, `a` the
    second, and b·a is the transpose of the update. The average of transposes is the transpose of the average.
    """

    a: str
    b: str


def update_pairs(
    checkpoints: Sequence[Checkpoint], tensors: Mapping[str, Tensor], averaged: Callable[[str], bool]
) -> tuple[Pair, ...]:
    """The factors of every update of a series of LoRA adapters of which something is averaged.

    Raises SeriesError, by name, for adapters whose update is no product of two factors, and for a series whose
    adapters are scaled differently.
    """
    peft, by_names = any(name.startswith(_PEFT) for name in tensors), kind_by_names(tensors)
    configs = [adapter_config(checkpoint) for checkpoint in checkpoints]
    for checkpoint, config in zip(checkpoints, configs, strict=True):
        if peft and not config:
            raise _without_config(checkpoint)
        if what := recorded_kind(checkpoint, config) or by_names:
            raise SeriesError(
                f"is an adapter of the kind {what}, whose update is no product B·A", file=checkpoint.path, hint=MERGE
            )
    pairs = pairs_in(tensors, checkpoints[-1], averaged)
    _check_scales(checkpoints, configs, scale_names(tensors))
    return pairs


def _without_config(checkpoint: Checkpoint) -> SeriesError:
    """Adapters of peft have many kinds with the same names, which only their configuration tells apart."""
    return SeriesError(
        f"is an adapter without its {ADAPTER_CONFIG}, which says how its updates are scaled",
        file=checkpoint.path,
        hint="give the directory that holds both, or average the factors: --lora factors",
    )


# ---- the factors


def pairs_in(
    tensors: Mapping[str, Tensor], last: Checkpoint, averaged: Callable[[str], bool] = lambda name: True
) -> tuple[Pair, ...]:
    """The factors of every update of which something is averaged; SeriesError names those that make no product."""
    found: dict[tuple[str, ...], list[Factor]] = {}
    for factor in factors_in(tensors):
        found.setdefault(factor.update, []).append(factor)
    wanted = (factors for factors in found.values() if any(averaged(factor.name) for factor in factors))
    return tuple(_pair(factors, tensors, last) for factors in wanted)


def _pair(factors: Sequence[Factor], tensors: Mapping[str, Tensor], last: Checkpoint) -> Pair:
    a, b = sorted(factors, key=lambda factor: not factor.is_a) if len(factors) == 2 else (factors[0], None)
    if b is None:
        raise SeriesError(f"holds {a.name!r} without the other factor", file=last.path, tensor=a.name)
    usual, changed = Pair(a.name, b.name), Pair(b.name, a.name)
    if a.plain:
        found = _oriented(*((changed, usual) if a.transposed else (usual, changed)), tensors)
    else:
        found = usual if _is_product(usual, tensors) else None
    if found is None:
        raise SeriesError(
            f"{a.name!r} and {b.name!r} are no factors of one product (experts, or a grouped convolution?)",
            file=last.path,
            tensor=a.name,
            hint=MERGE,
        )
    return found


def _is_product(pair: Pair, tensors: Mapping[str, Tensor]) -> bool:
    a, b = tensors[pair.a].shape, tensors[pair.b].shape
    return len(a) >= 2 and len(b) >= 2 and a[0] == b[1] and math.prod(b[2:]) == 1 and 0 not in (*a, *b)


def _oriented(own: Pair, other: Pair, tensors: Mapping[str, Tensor]) -> Pair | None:
    """Parameters by themselves, which others than the dialect's library store the other way round: the shapes decide.

    None if they make no product, or one of a rank above the sides of the update: then they are stacked or grouped.
    """
    if any(len(tensors[name].shape) == 3 for name in own):
        return None
    found = own if _is_product(own, tensors) else other
    if not _is_product(found, tensors):
        return None
    rank, out = tensors[found.a].shape[0], tensors[found.b].shape[0]
    into = tensors[found.a].elements // rank
    return found if rank <= (max(out, into) if found is own else min(out, into)) else None


# ---- the scales


def _check_scales(
    checkpoints: Sequence[Checkpoint], configs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
    """Raise SeriesError unless all that is recorded of the scales, and the tensors `names`, are the same everywhere."""
    last = checkpoints[-1]
    told, stored = recorded_scales(last, configs[-1]), _stored_scales(last, names)
    for checkpoint, config in zip(checkpoints[:-1], configs[:-1], strict=True):
        found = recorded_scales(checkpoint, config)
        for key in (*told, *(key for key in found if key not in told)):
            if (found.get(key) or None) != (told.get(key) or None):
                raise _scaled_differently(checkpoint, key, found.get(key), last, told.get(key))
        for name, value in _stored_scales(checkpoint, names).items():
            if value != stored.get(name):
                raise _scaled_differently(checkpoint, name, value, last, stored.get(name), tensor=name)


def _scaled_differently(
    checkpoint: Checkpoint, key: str, value: Any, last: Checkpoint, expected: Any, *, tensor: str | None = None
) -> SeriesError:
    return SeriesError(
        f"has {key} {shown(value)}; in {last.name} it is {shown(expected)}, so their updates are scaled differently",
        file=checkpoint.path,
        tensor=tensor,
        hint="average adapters of one configuration",
    )


def scale_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that scale the product of factors beside them."""
    modules = {module for factor in factors_in(tensors) for module in _modules(factor)}
    found = (name.rpartition(".") for name in tensors)
    return [f"{module}.{word}" for module, dot, word in found if dot and word in _SCALES and module in modules]


def _modules(factor: Factor) -> tuple[str, ...]:
    """What a factor belongs to; to_q.lora.down is scaled by to_q.alpha too."""
    parent, _, own = factor.module.rpartition(".")
    return (factor.module, parent) if "lora" in own else (factor.module,)


def gain(tensors: Mapping[str, Tensor], pair: Pair, rank: int) -> float:
    """What B·A is multiplied by in factors of another rank, so that alpha / rank times it is what alpha / r was.

    That is rank / r where alpha is a tensor beside them, which stays. Else it is 1: a configuration says alpha, and is
    written anew, or alpha is the rank.
    """
    factor, r = factor_of(pair.a), tensors[pair.a].shape[0]
    if factor is None or rank == r:
        return 1.0
    return rank / r if _stores_alpha(tensors, factor) else 1.0


def knows_alpha(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors themselves say what alpha of every update is."""
    return all(factor.alpha_is_rank or _stores_alpha(tensors, factor) for factor in factors_in(tensors))


def _stores_alpha(tensors: Mapping[str, Tensor], factor: Factor) -> bool:
    return any(f"{module}.{word}" in tensors for module in _modules(factor) for word in _ALPHAS)


def _stored_scales(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, float]:
    """The numbers in these tensors: a few bytes each are read. Raises SeriesError for what is no number."""
    found = {}
    with OpenFiles(limit=1) as files:
        for name in names:
            tensor = checkpoint.tensors.get(name)
            if tensor is None:  # it is dropped, or taken from the last
                continue
            if tensor.elements != 1 or tensor.dtype not in (*_NUMBERS, "BF16"):
                raise SeriesError(
                    f"{name!r} is {shape_text(tensor.shape)}, and the scale of an update is one number",
                    file=checkpoint.path,
                    tensor=name,
                    hint=MERGE,
                )
            buffer = bytearray(tensor.nbytes)
            checkpoint.stored(name).read_into(files, memoryview(buffer), 0)
            found[name] = _number(buffer, tensor.dtype)
    return found


def _number(buffer: bytearray, dtype: str) -> float:
    """One number; bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        buffer, dtype = bytearray(2) + buffer, "F32"
    (value,) = struct.unpack(_NUMBERS[dtype], buffer)
    return float(value)
