"""Weights that are packed or scaled: their numbers mean nothing by themselves, and an average of them is noise.

Three things show them: names that only such formats have, integers that lie beside scales, and integers where a
configuration says that the model is quantized. The scales of a packed weight are no weights either: they are refused
too where only the packed numbers are exempt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from belay_cli.checkpoints.config import quantization
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import DTYPES
from belay_cli.storage.files import AnyPath

# What packed numbers are stored in. Counters and indices are int64 as a rule, and masks bool.
NARROW_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")
_SMALL_FLOATS = tuple(code for code, dtype in DTYPES.items() if dtype.name.startswith("float") and dtype.bits < 16)
_QUANTIZED = (*NARROW_INTEGERS, "I64", *_SMALL_FLOATS)


class Packed(NamedTuple):
    """What weights are packed by, a tensor that shows it, and whether it could be a buffer of a plain model."""

    what: str
    tensor: str
    doubtful: bool = False


class _Sign(NamedTuple):
    """The last part of a name that shows a format; the dtypes it has there (None: any); what must lie beside it."""

    what: str
    part: re.Pattern[str]
    dtypes: tuple[str, ...] | None = None
    beside: frozenset[str] = frozenset()  # one of them


# The names are those that AutoGPTQ, AutoAWQ, bitsandbytes, compressed-tensors, gpt-oss, torchao (flattened for
# safetensors), HQQ, exllamav2 and v3, AQLM, QuIP#, VPTQ, Marlin
# and SpQR write.
_SIGNS = (
    _Sign("GPTQ or AWQ", re.compile("qweight|qzeros"), _QUANTIZED),
    _Sign("bitsandbytes", re.compile(r"bitsandbytes__\w+|nested_absmax|nested_quant_map|SCB|weight_format")),
    _Sign("bitsandbytes", re.compile("absmax"), None, frozenset({"quant_map"})),
    _Sign("compressed-tensors", re.compile("weight_packed")),
    _Sign("MXFP4", re.compile(".*_(blocks|scales)"), ("U8",)),
    _Sign("torchao", re.compile(r"_\w+_qdata|\w+:_?q?data"), _QUANTIZED),
    _Sign("HQQ", re.compile("W_q"), _QUANTIZED),
    _Sign("HQQ", re.compile("W_q"), None, frozenset({"zero", "nbits", "group_size", "meta"})),
    _Sign("exllamav3", re.compile("trellis"), _QUANTIZED),
    _Sign("exllamav2", re.compile("q_(weight|scale|groups|perm|invperm)"), _QUANTIZED),
    _Sign("AQLM", re.compile("codes"), NARROW_INTEGERS, frozenset({"codebooks"})),
    _Sign("QuIP#", re.compile(r"Qidxs(_\w+)?"), _QUANTIZED),
    _Sign("VPTQ", re.compile("indices"), NARROW_INTEGERS, frozenset({"centroids"})),
    _Sign("Marlin", re.compile("B"), ("I32",), frozenset({"s"})),
    _Sign("SpQR", re.compile("dense_weights"), _QUANTIZED),
)
_QUANTO = re.compile(r"(?:.*\.)?weight\._(?:data|scale|shift)")
_WEIGHT_SCALE = re.compile("weight_scale(?:_inv)?")

# The last parts of what packed numbers are unpacked by.
_SCALE = re.compile(
    r"scales?|biases|zeros?|zero_points?|absmax|quant_map|g_idx|lut\w*|lookup_table|codebooks?|centroids|tables2?"
    r"|_?\w{0,40}_(?:global_)?(?:scales?|zero_points?|zeros)(?:_inv|_2)?"
    r"|scale_(?:inv|weight|input)|\w{0,40}scaling_factors?|\w+:_?(?:scale|zero_point)"
    r"|_(?:scale|double_scale|zero_point|amax|shift)|q_(?:scale_max|groups|perm|invperm)"
    r"|s|s[uv]h?|S[UV]|Wscale|SCB|qzeros"
)
_OF_PLAIN_MODELS = re.compile("(?:logit|layer|residual|norm|attn|softmax)_scales?")

# Buffers of plain models, by the last word of their names. GPT-2's mask is called bias.
_BUFFER = re.compile(
    "(?:.*_)?(?:mask|bias|index|indices|idx|ids?|positions?|tracked|buffer|maps?|counts?|counter|steps?|images?"
    r"|pixels?|offsets?|vocab|enabled|labels?|tokens?|table|tril|triu|causal)(?:_?\d+)?",
    re.IGNORECASE,
)

# What lies between a module's name and the parts of its packed weight.
_INNER = (".quant_state", ".weight_quantizer", ".weight")

Parts = Mapping[str, Tensor]  # of one module, by the last parts of their names


def packed(tensors: Mapping[str, Tensor], directory: AnyPath | None, exempt: Iterable[str]) -> Packed | None:
    """What the weights are packed by, and a tensor that shows it; None if they are plain numbers.

    exempt: names of tensors that somebody has decided about, which are not refused.
    """
    method = quantization(directory)
    spared = set(exempt)
    modules = [parts for parts in _modules(tensors).values() if not _is_plain(parts)]
    return next(
        (
            found
            for evidence in (_named, _scaled, _configured)
            for parts in modules
            for found in evidence(parts, method)
            if found.tensor not in spared
        ),
        None,
    )


def _is_plain(parts: Parts) -> bool:
    """Whether a module has nothing but a weight and a bias of plain floating point, as nearly all have."""
    return all(part in ("weight", "bias") and DTYPES[tensor.dtype].averageable for part, tensor in parts.items())


def _modules(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        for inner in _INNER:
            module = module.removesuffix(inner)
        modules.setdefault(module, {})[part] = tensor
    return modules


def _named(parts: Parts, method: str | None) -> Iterator[Packed]:
    """A module that its names show: the parts that do, then all else in it that means nothing without them."""
    shown = {part: what for part, tensor in parts.items() if (what := _sign(part, tensor, parts))}
    shown = shown or {part: what for part in parts if (what := _sign_of_scales(part, parts))}
    if shown:
        what = next(iter(shown.values()))
        rest = [part for part in parts if part not in shown and (part == "weight" or _SCALE.fullmatch(part))]
        yield from (Packed(what, parts[part].name) for part in [*shown, *rest])


def _sign(part: str, tensor: Tensor, parts: Parts) -> str | None:
    for sign in _SIGNS:
        of_it = sign.dtypes is None or tensor.dtype in sign.dtypes
        if of_it and sign.part.fullmatch(part) and (not sign.beside or sign.beside & parts.keys()):
            return sign.what
    return "quanto" if part.startswith("_") and _QUANTO.fullmatch(tensor.name) else None


def _sign_of_scales(part: str, parts: Parts) -> str | None:
    """Beside a plain weight, scales and zero points are what training with simulated quantization learns."""
    weight = parts.get("weight")
    if weight is not None and weight.dtype not in _SMALL_FLOATS:
        return None
    if _WEIGHT_SCALE.fullmatch(part):
        return "fp8 with scales"
    return "compressed-tensors" if part == "weight_zero_point" else None


def _scaled(parts: Parts, method: str | None) -> Iterator[Packed]:
    """Integers that lie beside scales; if they are called a weight, the scales with them, or alone."""
    for part, tensor in parts.items():
        scales = _scales_of(part, parts) if _may_be_packed(part, tensor) else []
        if scales:
            doubtful = method is None and "weight" not in part and tensor.dtype != "U32"
            what = method or f"quantization, with scales in {scales[0].name!r}"
            yield Packed(what, tensor.name, doubtful)
            yield from (Packed(what, scale.name) for scale in scales if not doubtful)
        elif part == "weight" and _may_be_packed(part, tensor) and tensor.dtype in NARROW_INTEGERS:
            yield Packed(
                method or f"quantization, as its {DTYPES[tensor.dtype].name} says", tensor.name, method is None
            )


def _may_be_packed(part: str, tensor: Tensor) -> bool:
    narrow = tensor.dtype in NARROW_INTEGERS or tensor.dtype in _SMALL_FLOATS
    many = tensor.elements > 1 and (len(tensor.shape) > 1 or "weight" in part)
    return narrow and many and not _SCALE.fullmatch(part) and not _BUFFER.fullmatch(part)


def _scales_of(part: str, parts: Parts) -> list[Tensor]:
    """What may unpack a part, with what is called a scale first."""
    found = [
        other
        for other in parts
        if other != part
        and (_SCALE.fullmatch(other) or other in (f"{part}_s", f"{part}_absmax"))
        and not _OF_PLAIN_MODELS.fullmatch(other)
    ]
    return [parts[other] for other in sorted(found, key=lambda other: "scale" not in other)]


def _configured(parts: Parts, method: str | None) -> Iterator[Packed]:
    """Integers, where a configuration says that the weights are quantized."""
    if method:
        for part, tensor in parts.items():
            narrow = tensor.dtype in NARROW_INTEGERS and tensor.shape and tensor.elements > 1
            if narrow and not _SCALE.fullmatch(part) and not _BUFFER.fullmatch(part):
                yield Packed(method, tensor.name)
