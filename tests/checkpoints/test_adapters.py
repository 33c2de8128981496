"""Which tensors are factors of an update, by every library's names; and what is none."""

from __future__ import annotations

import time
from typing import Any

import pytest

from belay_cli.checkpoints.adapters.lora import Pair, pairs_in
from belay_cli.checkpoints.adapters.names import factor_of, kind_by_names, needs_choice
from belay_cli.errors import SeriesError
from belay_cli.formats.contents import Tensor

# A, B
FACTORS = [
    # peft: tuners/lora/layer.py, as saved, as it is in the model, and of an embedding
    ("base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"),
    ("base_model.model.q_proj.lora_A.default.weight", "base_model.model.q_proj.lora_B.default.weight"),
    ("base_model.model.embed.lora_embedding_A", "base_model.model.embed.lora_embedding_B"),
    ("base_model.model.embed.lora_embedding_A.default", "base_model.model.embed.lora_embedding_B.default"),
    # diffusers: loaders/lora_base.py; ai-toolkit
    ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "unet.down_blocks.0.attentions.0.to_q.lora_B.weight"),
    ("diffusion_model.blocks.0.qkv.lora_A.weight", "diffusion_model.blocks.0.qkv.lora_B.weight"),
    # diffusers before peft: models/lora.py, models/attention_processor.py
    ("unet.mid_block.attn1.processor.to_q_lora.down.weight", "unet.mid_block.attn1.processor.to_q_lora.up.weight"),
    ("unet.mid_block.ff.net.0.proj.lora.down.weight", "unet.mid_block.ff.net.0.proj.lora.up.weight"),
    ("text_encoder.mlp.fc1.lora_linear_layer.down.weight", "text_encoder.mlp.fc1.lora_linear_layer.up.weight"),
    # XLabs' x-flux
    ("double_blocks.0.processor.qkv_lora1.down.weight", "double_blocks.0.processor.qkv_lora1.up.weight"),
    # sd-scripts: networks/lora.py, and networks/lora_flux.py with split_dims
    ("lora_unet_down_blocks_0_proj_in.lora_down.weight", "lora_unet_down_blocks_0_proj_in.lora_up.weight"),
    ("lora_unet_double_blocks_0_qkv.lora_down.0.weight", "lora_unet_double_blocks_0_qkv.lora_up.0.weight"),
    # ComfyUI
    ("diffusion_model.blocks.0.qkv.lora_down.weight", "diffusion_model.blocks.0.qkv.lora_up.weight"),
    # mlx-lm: tuner/lora.py
    ("model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"),
    # torchtune: modules/peft/lora.py
    ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),
    # loralib: layers.py; LitGPT: litgpt/lora.py; AdapterHub
    ("h.0.attn.lora_A", "h.0.attn.lora_B"),
    ("transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"),
    ("bert.encoder.layer.0.query.loras.task.lora_A", "bert.encoder.layer.0.query.loras.task.lora_B"),
    ("lora_A", "lora_B"),
    ("c_attn_lora_A.weight", "c_attn_lora_B.weight"),
    # InternLM-XComposer2: modeling_internlm2.py
    ("model.layers.0.attention.wo.Plora_A.weight", "model.layers.0.attention.wo.Plora_B.weight"),
    # NeMo 1: megatron/adapters/parallel_adapters.py; NeMo 2 and Megatron-Bridge: peft/lora.py, peft/canonical_lora.py
    (
        "model.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight",
        "model.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_out.weight",
    ),
    ("decoder.layers.0.linear_qkv.adapter.linear_in.weight", "decoder.layers.0.linear_qkv.adapter.linear_out.weight"),
    ("linear_qkv.adapter.adapter_q.linear_in.weight", "linear_qkv.adapter.adapter_q.linear_out.weight"),
    # DeepSpeed-Chat: utils/module/lora.py
    ("layers.0.q_proj.lora_right_weight", "layers.0.q_proj.lora_left_weight"),
    # cloneofsimo's lora: lora_diffusion/lora.py
    ("unet:0:down", "unet:0:up"),
]


def tensors(**shapes: Any) -> dict[str, Tensor]:
    return {name: Tensor(name, "F32", tuple(shape), 0, 4) for name, shape in shapes.items()}


@pytest.mark.parametrize(("a", "b"), FACTORS)
def test_both_factors_are_known_and_belong_together(a: str, b: str) -> None:
    one, other = factor_of(a), factor_of(b)
    assert one is not None and other is not None
    assert (one.is_a, other.is_a) == (True, False)
    assert one.update == other.update
    assert kind_by_names(dict.fromkeys((a, b))) is None


def test_factors_of_two_updates_do_not_belong_together() -> None:
    factors = [factor_of(name) for pair in FACTORS for name in pair]
    updates = {factor and factor.update for factor in factors}
    assert None not in updates
    assert len(updates) == len(FACTORS)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "lora_unet_proj_in.alpha",
        "base_model.model.q_proj.lora_B.bias",  # the bias of peft's lora_bias: linear by itself
        "conv_down.weight",
        "up.weight",
        "encoder.linear_in.weight",
        "layers.0.adapter_layer.adapter_1.linear_in.weight",  # NeMo's bottleneck, with an activation within
        "explora_a.weight",
        "flora.weight",
        "down_blocks.0.down.weight",
        "road_head.weight",
        "poly_head.weight",
        "ia3_l",  # scales activations: linear
    ],
)
def test_what_is_no_factor(name: str) -> None:
    assert factor_of(name) is None
    assert not needs_choice(name)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_proj.hada_w1_a", "lora_unet_proj.hada_w1_b", "lora_unet_proj.alpha"], "LoHa"),
        (["base_model.model.q.hada_t1"], "LoHa"),
        (["lycoris_layers_0.lokr_w1", "lycoris_layers_0.lokr_w2_a"], "LoKr"),
        (["lora_unet_proj.oft_blocks"], "OFT"),
        (["base_model.model.q.oft_R.weight"], "OFT"),
        (["base_model.model.q.boft_R"], "BOFT"),
        (["x.lora_down.weight", "x.lora_up.weight", "x.dora_scale"], "DoRA"),
        (["x.lora_A.weight", "x.lora_B.weight", "x.lora_magnitude_vector"], "DoRA"),
        (["x.lora_A.weight", "x.lora_B.weight", "x.lora_magnitude_vector.default.weight"], "DoRA"),
        (["q_proj.lora_a", "q_proj.lora_b", "q_proj.m"], "DoRA"),  # mlx-lm: tuner/dora.py
        (["q.lora_a.weight", "q.lora_b.weight", "q.magnitude"], "DoRA"),  # torchtune: modules/peft/dora.py
        (["x.lora_down.weight", "x.lora_mid.weight", "x.lora_up.weight"], "LoCon in Tucker form"),
        (["q.lora_A", "q.lora_B", "q.lora_E"], "AdaLoRA"),
        (["q.vera_lambda_d", "q.vera_lambda_b"], "VeRA"),
        (["x.a1.weight", "x.a2.weight", "x.b1.weight", "x.b2.weight", "x.alpha"], "GLoRA"),
        (["x.a1.weight", "x.a2.weight"], None),
        (["m", "q.weight", "q.magnitude"], None),
    ],
)
def test_the_kinds_that_are_no_product(names: list[str], kind: str | None) -> None:
    assert kind_by_names(dict.fromkeys(names)) == kind


@pytest.mark.parametrize(("a", "b"), [([2, 6], [5, 2]), ([2, 5], [5, 2]), ([4, 4], [4, 4]), ([1, 3], [5, 1])])
def test_loralib_stores_a_as_rank_by_inputs(a: list[int], b: list[int]) -> None:
    assert pairs_in(tensors(**{"q.lora_A": a, "q.lora_B": b}), NOWHERE) == (Pair("q.lora_A", "q.lora_B"),)


@pytest.mark.parametrize(("a", "b"), [([6, 2], [2, 5]), ([5, 2], [2, 5]), ([4, 4], [4, 4]), ([3, 1], [1, 3])])
def test_mlx_stores_a_as_inputs_by_rank(a: list[int], b: list[int]) -> None:
    assert pairs_in(tensors(**{"q.lora_a": a, "q.lora_b": b}), NOWHERE) == (Pair("q.lora_b", "q.lora_a"),)


def test_shapes_that_go_together_one_way_only_decide_it() -> None:
    assert pairs_in(tensors(**{"q.lora_a": [2, 6], "q.lora_b": [5, 2]}), NOWHERE) == (Pair("q.lora_a", "q.lora_b"),)


class At:
    path = "x.safetensors"


AT: Any = At()
NOWHERE: Any = None  # the checkpoint is asked for its name only by errors


@pytest.mark.parametrize(
    ("names", "a", "b"),
    [
        (("q.lora_A", "q.lora_B"), [6, 8], [24, 2]),  # three groups of rank 2: loralib's MergedLinear, LitGPT's qkv
        (("q.lora_A", "q.lora_B"), [6, 8], [8, 2]),  # the same where the outputs are as many as the inputs
        (("q.lora_A", "q.lora_B"), [6, 4], [4, 2]),
        (("q.lora_a", "q.lora_b"), [4, 2, 6], [4, 5, 2]),  # mlx-lm's experts
        (("q.lora_gate_a", "q.lora_gate_b"), [4, 6, 2], [4, 2, 5]),  # torchtune's experts
        (("q.lora_a", "q.lora_b"), [3, 5], [5, 3]),  # a rank above both sides, or A and B the other way round
        (("q.lora_A.weight", "q.lora_B.weight"), [4, 6], [5, 2]),  # a grouped convolution
        (("q.lora_a.weight", "q.lora_b.weight"), [6, 2], [2, 5]),
        (("q.lora_A.weight", "q.lora_B.weight"), [0, 6], [5, 0]),
    ],
)
def test_factors_of_no_product_are_refused_by_name(names: tuple[str, str], a: list[int], b: list[int]) -> None:
    with pytest.raises(SeriesError) as raised:
        pairs_in(tensors(**dict(zip(names, (a, b), strict=True))), AT)
    assert str(raised.value) == (
        f"x.safetensors: {names[0]!r} and {names[1]!r} are no factors of one product (experts, or a grouped "
        "convolution?)"
    )
    assert raised.value.hint == "merge each adapter into its model and average the models, or --lora factors"


def test_one_factor_alone_is_refused() -> None:
    with pytest.raises(SeriesError, match=r"holds 'q\.lora_up\.weight' without the other factor"):
        pairs_in(tensors(**{"q.lora_up.weight": [2, 2]}), AT)


@pytest.mark.parametrize(
    "name",
    [
        "lora_" * 100_000,
        "lora_A." * 100_000,
        "lora_down.x" * 100_000,
        "lora_aaaa." * 100_000 + "linear_in",
        "lora" + "1" * 500_000,
        "adapter_a" * 100_000 + ".linear_in.weight.x",
        "1:" * 200_000,
        "lora_" + "a" * 500_000,
        "." * 500_000 + "lora_",
    ],
)
def test_hostile_names_take_no_time(name: str) -> None:
    start = time.perf_counter()
    factor_of(name)
    needs_choice(name)
    assert time.perf_counter() - start < 5
