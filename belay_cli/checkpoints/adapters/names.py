"""Adapters by the names of their tensors: the two factors of a low-rank update, and what is of other kinds.

Every library names the factors of LoRA (Hu et al., arXiv 2106.09685) in its own dialect: `DIALECTS` lists them. What
is stored beside them under the names of `_OTHER_KINDS` makes the update something else than a product of two factors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from belay_cli.checkpoints.checkpoint import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"


class Dialect(NamedTuple):
    """How one family of libraries names factors.

    `marker` is in every such name. `pattern` has four groups: what lies before, which kind of factor if there are
    several in one place, which of the two, and what lies after. `a` are the words for A, [r, in]; the others are B,
    [out, r]. Where `transposed`, a parameter by itself (no layer's `.weight`) is [in, r] or [r, out]. Where
    `alpha_is_rank`, that is what its libraries take alpha to be if none is stored.
    """

    marker: str
    pattern: re.Pattern[str]
    a: frozenset[str]
    transposed: bool = False
    alpha_is_rank: bool = False


_AFTER = r"((?:\.(?!bias$)[^.]+)?(?:\.weight)?)"  # nothing, .weight, .default.weight, .0.weight; a bias is no factor


def _dialect(marker: str, pattern: str, a: str, *, transposed: bool = False, alpha_is_rank: bool = False) -> Dialect:
    return Dialect(marker, re.compile(pattern, re.DOTALL), frozenset({a}), transposed, alpha_is_rank)


DIALECTS = (
    # peft (tuners/lora/layer.py), diffusers' save_lora_adapter, ai-toolkit: X.lora_A.weight, X.lora_A.default.weight,
    # X.lora_embedding_A; InternLM-XComposer2: X.Plora_A.weight. Parameters, X.lora_A: loralib (layers.py), LitGPT
    # (litgpt/lora.py), minLoRA, AdapterHub.
    _dialect("lora_", rf"((?:.*[._])?P?)lora_([a-z]+_)?([AB]){_AFTER}", "A"),
    # torchtune (modules/peft/lora.py): layers, X.lora_a.weight. mlx-lm (tuner/lora.py): parameters, X.lora_a [in, r].
    _dialect("lora_", rf"((?:.*[._])?)lora_([a-z]+_)?([ab]){_AFTER}", "a", transposed=True),
    # kohya's sd-scripts (networks/lora.py), LyCORIS (modules/locon.py), OneTrainer, ComfyUI: X.lora_down.weight.
    _dialect("lora_", rf"((?:.*[._])?)lora_()(down|up){_AFTER}", "down", alpha_is_rank=True),
    # diffusers before 0.26 (models/lora.py): X.to_q_lora.down.weight, X.lora.down.weight,
    # X.lora_linear_layer.down.weight; XLabs' x-flux: X.processor.qkv_lora1.down.weight.
    _dialect("lora", rf"((?:.*[._])?lora(?:_linear_layer)?\d*)\.()(down|up){_AFTER}", "down", alpha_is_rank=True),
    # NeMo 1 (megatron/adapters/parallel_adapters.py): adapter_layer.lora_kqv_adapter.linear_in.weight; NeMo 2 and
    # Megatron-Bridge (peft/lora.py): linear_qkv.adapter.linear_in.weight. NeMo's adapter_1 has an activation between
    # the two: it is a small network like any other, and averaged like one.
    _dialect("linear_", r"((?:.*\.)?(?:lora_\w{1,60}|adapter(?:_[a-z]\w{0,40})?)\.)linear_()(in|out)(\.weight)", "in"),
    # DeepSpeed-Chat (utils/module/lora.py): parameters, lora_right_weight [in, r] and lora_left_weight [r, out].
    _dialect("lora_", r"((?:.*[._])?)lora_()(right|left)(_weight)", "right", transposed=True),
    # cloneofsimo's lora (lora_diffusion/lora.py, save_safeloras): unet:0:down.
    _dialect(":", r"(.*:\d+:)()(down|up)()", "down"),
)

# What people call a kind of adapter, and parts of names that only this kind has.
# hada_, lokr_, oft_: LyCORIS (lycoris/modules) and peft; lora_mid: a LoCon in Tucker form, a product of three;
# dora_scale: LyCORIS and sd-scripts; the rest: peft (tuners/*/layer.py).
_OTHER_KINDS = {
    "LoHa": "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
    "LoKr": "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t1 lokr_t2",
    "OFT": "oft_blocks oft_diag oft_R oft_r oft_embedding_R",
    "BOFT": "boft_R boft_s",
    "DoRA": "dora_scale lora_magnitude_vector",
    "LoCon in Tucker form": "lora_mid",
    "AdaLoRA": "lora_E ranknum",
    "VeRA": "vera_lambda_b vera_lambda_d vera_A vera_B",
    "PVeRA": "pvera_lambda_b pvera_lambda_d pvera_A pvera_B",
    "RandLoRA": "randlora_lambda randlora_gamma randlora_A randlora_B",
    "VB-LoRA": "vblora_logits_A vblora_logits_B vblora_vector_bank",
    "HRA": "hra_u",
    "RoAd": "road_theta road_alpha",
    "DeLoRA": "delora_A delora_B delora_lambda delora_w_norm",
    "GraLoRA": "gralora_A gralora_B gralora_A_general gralora_B_general",
    "HiRA": "hira_A hira_B hira_embedding_A hira_embedding_B",
    "Poly": "poly_lora_A poly_lora_B poly_router",
    "Lily": "lily_A lily_B lily_router",
    "PSOFT": "psoft_R",
    "DEFT": "deft_P deft_R",
    "FRoD": "frod_lambda_l frod_lambda_s_values",
    "PEANuT": "peanut_A peanut_B peanut_encoders peanut_decoders",
    "supertuning": "supertuning_values supertuning_lora_A supertuning_lora_B",
    "AdaMSS": "adamss_A adamss_B adamss_newB",
}
_KIND_OF = {word: kind for kind, words in _OTHER_KINDS.items() for word in words.split()}

# The magnitudes of DoRA under names that say so only beside factors: mlx-lm, torchtune, NeMo 2.
_MAGNITUDES = ("m", "magnitude", "weight_magnitude")
# GLoRA of LyCORIS (modules/glora.py): four layers, W + b2 b1 + W a2 a1.
_GLORA = ("a1", "a2", "b1", "b2")


_WORDS = (*(dialect.marker for dialect in DIALECTS), *_KIND_OF, ".a1.weight")


class Factor(NamedTuple):
    """One factor of a low-rank update, by its name.

    `update` is what both factors of an update have in common; `module` is the name of what they belong to. `plain`: a
    parameter by itself, whose orientation is a convention of the dialect (`transposed` or not). `alpha_is_rank`: as
    the dialect has it.
    """

    name: str
    update: tuple[str, ...]
    is_a: bool
    module: str
    plain: bool
    transposed: bool
    alpha_is_rank: bool


def factor_of(name: str) -> Factor | None:
    """What a name says about a factor, None if it is the name of something else."""
    for number, dialect in enumerate(DIALECTS):
        if dialect.marker in name and (match := dialect.pattern.fullmatch(name)) and not _other_kind(name):
            before, kind, word, after = (group or "" for group in match.groups())
            plain = kind != "embedding_" and not after.endswith(".weight")
            update = (str(number), before, kind, after)
            conventions = dialect.transposed, dialect.alpha_is_rank
            return Factor(name, update, word in dialect.a, before.rstrip("._:"), plain, *conventions)
    return None


def may_be_of_adapters(names: Iterable[str]) -> bool:
    """Whether it is worth a look at each name: a model has ten thousand, and hardly ever one of these words in any."""
    text = "\n".join(names)
    return any(word in text for word in _WORDS)


def factors_in(names: Iterable[str]) -> Iterator[Factor]:
    """The factors among tensors' names."""
    return (factor for name in names if (factor := factor_of(name)))


def _other_kind(name: str) -> str | None:
    return next((_KIND_OF[part] for part in name.split(".") if part in _KIND_OF), None)


def kind_by_names(names: Mapping[str, Any]) -> str | None:
    """What people call adapters whose tensors say that their update is no product of two factors; else None."""
    if not may_be_of_adapters(names):
        return None
    for name in names:
        if kind := _other_kind(name):
            return kind
        if name.endswith(".a1.weight") and all(f"{name[:-9]}{part}.weight" in names for part in _GLORA):
            return "GLoRA"
    modules = {factor.module for factor in factors_in(names)}
    return "DoRA" if any(f"{module}.{word}" in names for module in modules for word in _MAGNITUDES) else None


def needs_choice(name: str) -> bool:
    """Whether the average of a tensor is one thing, and the average of the update that it is part of another."""
    return factor_of(name) is not None or _other_kind(name) is not None


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether there are factors of an adapter among the weights: their average is not the average of the updates.

    Also for a whole model that has them beside its weights, and for what has the configuration of an adapter.
    """
    directories = [part.directory for part in checkpoint.weights.components.values()]
    if any(directory and (directory / ADAPTER_CONFIG).is_file() for directory in directories):
        return True
    names = checkpoint.tensors
    return may_be_of_adapters(names) and (any(map(factor_of, names)) or kind_by_names(names) is not None)
