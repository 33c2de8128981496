"""A series of adapters in every dialect: refused until somebody chooses, then the exact average of the updates.

The layouts are written by hand after the sources named at each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import Ran

COUNT = 3
WEIGHTS = (0.25, 0.25, 0.5)  # of three checkpoints at the default half-life
UNDECIDED = (
    "is an adapter: the average of its factors A and B is not the average of the updates B·A\n"
    "       --lora delta averages the updates, kept low-rank; --lora factors averages A and B as they are\n"
)

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Names of the factors of one update and their shapes; `update` makes B·A of the two.

    `beside`: what lies beside them, the same in every checkpoint.
    """

    a: str
    b: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    update: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    beside: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def usual(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)


def mlx(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The delta of LoRALinear.fuse of mlx_lm/tuner/lora.py."""
    return b.T @ a.T


LINEAR = ((2, 6), (5, 2))
LAYOUTS = {
    # sd-scripts, networks/lora.py: LoRAModule, scale alpha / lora_dim
    "kohya": Layout(
        "lora_unet_mid_block_attn1_to_q.lora_down.weight",
        "lora_unet_mid_block_attn1_to_q.lora_up.weight",
        LINEAR,
        usual,
        {"lora_unet_mid_block_attn1_to_q.alpha": torch.tensor(1.0)},
        {"ss_network_alpha": "1.0", "ss_network_dim": "2", "ss_network_module": "networks.lora"},
    ),
    "kohya-conv": Layout(
        "lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight", ((2, 3, 3, 3), (5, 2, 1, 1)), usual
    ),
    # XLabs' x-flux, and diffusers before 0.26, models/attention_processor.py: LoRAAttnProcessor
    "xlabs": Layout(
        "double_blocks.0.processor.qkv_lora1.down.weight",
        "double_blocks.0.processor.qkv_lora1.up.weight",
        LINEAR,
        usual,
    ),
    "diffusers-old": Layout(
        "unet.up.attn2.processor.to_out_lora.down.weight",
        "unet.up.attn2.processor.to_out_lora.up.weight",
        LINEAR,
        usual,
    ),
    "diffusers-lora": Layout("text_encoder.q.lora.down.weight", "text_encoder.q.lora.up.weight", LINEAR, usual),
    # diffusers, loaders/lora_base.py: write_lora_layers
    "diffusers-new": Layout(
        "transformer.blocks.0.attn.to_k.lora_A.weight",
        "transformer.blocks.0.attn.to_k.lora_B.weight",
        LINEAR,
        usual,
        {},
        {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})},
    ),
    "ai-toolkit": Layout(
        "diffusion_model.blocks.0.q.lora_A.weight",
        "diffusion_model.blocks.0.q.lora_B.weight",
        LINEAR,
        usual,
        {"diffusion_model.blocks.0.q.alpha": torch.tensor(8, dtype=torch.int64)},
    ),
    # mlx_lm/tuner/lora.py: lora_a [in, r], lora_b [r, out]; of an embedding too
    "mlx": Layout(
        "model.layers.3.self_attn.v_proj.lora_a", "model.layers.3.self_attn.v_proj.lora_b", ((6, 2), (2, 5)), mlx
    ),
    "mlx-square": Layout("model.layers.3.mlp.up.lora_a", "model.layers.3.mlp.up.lora_b", ((6, 2), (2, 6)), mlx),
    # torchtune, modules/peft/lora.py: LoRALinear
    "torchtune": Layout("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight", LINEAR, usual),
    # loralib/layers.py: Linear; litgpt/lora.py: LoRALinear; with the frozen weight beside them
    "loralib": Layout("h.0.mlp.lora_A", "h.0.mlp.lora_B", LINEAR, usual, {"h.0.mlp.weight": torch.ones(5, 6)}),
    # NeMo, megatron/adapters/parallel_adapters.py: ParallelLinearAdapter
    "nemo": Layout(
        "layers.0.adapter_layer.lora_kqv_adapter.linear_in.weight",
        "layers.0.adapter_layer.lora_kqv_adapter.linear_out.weight",
        LINEAR,
        usual,
    ),
    # DeepSpeed-Chat, utils/module/lora.py: weight += scaling · (left.t() @ right.t())
    "deepspeed-chat": Layout(
        "layers.0.q.lora_right_weight",
        "layers.0.q.lora_left_weight",
        ((6, 2), (2, 5)),
        lambda right, left: left.t() @ right.t(),
    ),
    # lora_diffusion/lora.py: save_safeloras
    "cloneofsimo": Layout("unet:0:down", "unet:0:up", LINEAR, usual),
}


def state(layout: Layout, seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=g) for shape in layout.shapes)
    return {layout.a: a, layout.b: b, **layout.beside}


def write(layout: Layout, suffix: str = "safetensors", **metadata: str) -> list[str]:
    paths = [f"step_{(i + 1) * 100}.{suffix}" for i in range(COUNT)]
    for seed, path in enumerate(paths):
        if suffix == "safetensors":
            save_file(state(layout, seed), path, metadata={**layout.metadata, **metadata})
        else:
            torch.save(state(layout, seed), path)
    return paths


def update(layout: Layout, found: State) -> torch.Tensor:
    """s·B·A in float64, s by the alpha that is stored, as its library has it."""
    alpha = next((float(value) for name, value in found.items() if name.endswith("alpha")), None)
    scale = 1.0 if alpha is None else alpha / found[layout.a].shape[0]
    return scale * layout.update(found[layout.a].double(), found[layout.b].double())


def exact(layout: Layout) -> torch.Tensor:
    return torch.as_tensor(sum(c * update(layout, state(layout, seed)) for seed, c in enumerate(WEIGHTS)))


def verified(belay: Callable[..., Any], output: str, paths: list[str]) -> bool:
    ran = belay("verify", output, "--sample", "all", *(word for path in paths for word in ("--checkpoints", path)))
    return bool(ran.code == 0)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(a - b) / torch.linalg.matrix_norm(b))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_without_a_choice_it_is_refused(name: str, suffix: str, belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS[name], suffix)
    ran = belay("average", *paths, "-o", "out.safetensors")
    assert (ran.code, ran.err) == (1, f"belay: {paths[-1]}: {UNDECIDED}")
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_delta_is_the_best_of_its_rank(name: str, suffix: str, belay: Callable[..., Ran]) -> None:
    layout = LAYOUTS[name]
    paths = write(layout, suffix)
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    found = load_file("out.safetensors")
    u, s, vt = torch.linalg.svd(exact(layout), full_matrices=False)
    assert error(update(layout, found), (u[:, :2] * s[:2]) @ vt[:2]) < 1e-6
    for name, value in layout.beside.items():
        assert torch.equal(found[name], value)
    assert verified(belay, "out.safetensors", paths)


@pytest.mark.parametrize("name", LAYOUTS)
def test_delta_is_exact_where_the_rank_is_enough(name: str, belay: Callable[..., Ran]) -> None:
    """Every checkpoint has the same B, so that their average has the rank of one."""
    layout = LAYOUTS[name]
    same = state(layout, 0)[layout.b]
    paths = []
    for seed in range(COUNT):
        paths.append(f"step_{seed + 1}.safetensors")
        save_file({**state(layout, seed), layout.b: same}, paths[-1])
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    expected: Any = sum(c * update(layout, {**state(layout, seed), layout.b: same}) for seed, c in enumerate(WEIGHTS))
    assert error(update(layout, load_file("out.safetensors")), expected) < 1e-6
    assert verified(belay, "out.safetensors", paths)


@pytest.mark.parametrize("name", LAYOUTS)
def test_factors_are_averaged_as_they_are(name: str, belay: Callable[..., Ran]) -> None:
    layout = LAYOUTS[name]
    paths = write(layout)
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "factors")
    assert ran.code == 0
    assert "warning: these are adapters: their factors A and B are averaged apart" in ran.err
    found = load_file("out.safetensors")
    for factor in (layout.a, layout.b):
        expected: Any = sum(c * state(layout, seed)[factor].double() for seed, c in enumerate(WEIGHTS))
        assert torch.equal(found[factor], expected.float())
    assert verified(belay, "out.safetensors", paths)


@pytest.mark.parametrize("name", ["kohya", "kohya-conv", "xlabs", "diffusers-old", "ai-toolkit"])
def test_a_larger_rank_is_exact_where_the_tensors_say_alpha(name: str, belay: Callable[..., Ran]) -> None:
    layout = LAYOUTS[name]
    paths = write(layout)
    options = ("--unit", "checkpoint", "--lora", "delta", "--lora-rank", "6")
    ran = belay("average", *paths, "-o", "out.safetensors", *options)
    assert ran.code == 0, ran.err
    found = load_file("out.safetensors")
    assert found[layout.a].shape[0] == found[layout.b].shape[1] == 6
    assert error(update(layout, found), exact(layout)) < 1e-6
    assert verified(belay, "out.safetensors", paths)


@pytest.mark.parametrize("name", ["torchtune", "mlx", "loralib", "nemo"])
def test_another_rank_is_refused_where_the_scale_lies_in_code(name: str, belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS[name])
    ran = belay("average", *paths, "-o", "out.safetensors", "--lora", "delta", "--lora-rank", "4")
    assert (ran.code, ran.err) == (
        2,
        "belay: --lora-rank: the scale of the updates depends on the rank, and no adapter_config.json goes with the "
        "output\n       give directories that hold one, and a directory for the output; or leave it out\n",
    )


def test_another_rank_is_refused_where_the_metadata_says_the_scale(belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS["diffusers-new"])
    ran = belay("average", *paths, "-o", "out.safetensors", "--lora", "delta", "--lora-rank", "4")
    assert ran.code == 2
    assert "--lora-rank: the scale of these adapters lies in 'transformer.r', for the rank that they have" in ran.err


# ---- scales that differ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_another_alpha_in_one_checkpoint_is_refused(dtype: torch.dtype, suffix: str, belay: Callable[..., Ran]) -> None:
    layout = LAYOUTS["kohya"]
    alpha = "lora_unet_mid_block_attn1_to_q.alpha"
    paths = []
    for seed, value in enumerate((1, 4, 1)):
        paths.append(f"step_{seed + 1}.{suffix}")
        found = {**state(layout, seed), alpha: torch.tensor(value, dtype=dtype)}
        save_file(found, paths[-1]) if suffix == "safetensors" else torch.save(found, paths[-1])
    ran = belay("average", *paths, "-o", "out.safetensors", "--lora", "delta")
    assert (ran.code, ran.err.splitlines()[-2:]) == (
        1,
        [
            f"belay: {paths[1]}: has {alpha} 4.0; in {paths[2]} it is 1.0, so their updates are scaled differently",
            "       average adapters of one configuration",
        ],
    )


def test_an_alpha_of_several_numbers_is_no_scale(belay: Callable[..., Ran]) -> None:
    layout = LAYOUTS["kohya"]
    alpha = "lora_unet_mid_block_attn1_to_q.alpha"
    for seed in range(COUNT):
        save_file({**state(layout, seed), alpha: torch.ones(2)}, f"step_{seed + 1}.safetensors")
    ran = belay("average", *sorted(map(str, Path().glob("*"))), "-o", "out.safetensors", "--lora", "delta")
    assert (ran.code, f"'{alpha}' is 2, and the scale of an update is one number" in ran.err) == (1, True)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("ss_network_alpha", ("8", "16"), 'has ss_network_alpha "8"; in step_2.safetensors it is "16"'),
        ("transformer.lora_alpha", ("8", "16"), 'has transformer.lora_alpha "8"; in step_2.safetensors it is "16"'),
        ("lora_alpha", ("8", "16"), 'has lora_alpha "8"; in step_2.safetensors it is "16"'),
        (
            "lora_adapter_metadata",
            (json.dumps({"unet.lora_alpha": 8}), json.dumps({"unet.lora_alpha": 16})),
            "has unet.lora_alpha 8; in step_2.safetensors it is 16, so their updates are scaled differently",
        ),
    ],
)
def test_scales_in_metadata_must_agree(key: str, values: tuple[str, str], said: str, belay: Callable[..., Ran]) -> None:
    for seed, value in enumerate(values):
        save_file(state(LAYOUTS["ai-toolkit"], seed), f"step_{seed + 1}.safetensors", metadata={key: value})
    ran = belay("average", "step_1.safetensors", "step_2.safetensors", "-o", "out.safetensors", "--lora", "delta")
    assert (ran.code, said in ran.err) == (1, True), ran.err


@pytest.mark.parametrize("text", ["[", "[1]", "[" * 100_000, '"x"'])
def test_damaged_metadata_is_refused(text: str, belay: Callable[..., Ran]) -> None:
    for seed in range(2):
        metadata = {"lora_adapter_metadata": text}
        save_file(state(LAYOUTS["ai-toolkit"], seed), f"step_{seed + 1}.safetensors", metadata=metadata)
    ran = belay("average", "step_1.safetensors", "step_2.safetensors", "-o", "out.safetensors", "--lora", "delta")
    assert ran.code == 1
    assert "step_1.safetensors: has lora_adapter_metadata that is no configuration" in ran.err


def test_dora_in_metadata_is_refused_by_name(belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS["ai-toolkit"], lora_adapter_metadata=json.dumps({"unet.use_dora": True}))
    ran = belay("average", *paths, "-o", "out.safetensors", "--lora", "delta")
    assert (ran.code, "is an adapter of the kind DoRA, whose update is no product B·A" in ran.err) == (1, True)


# ---- mlx-lm's directories


def mlx_run(**config: Any) -> None:
    for seed in range(COUNT):
        directory = Path(f"run/checkpoint-{(seed + 1) * 100}")
        directory.mkdir(parents=True)
        save_file(state(LAYOUTS["mlx"], seed), directory / "adapters.safetensors")
        whole = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}, **config}
        (directory / "adapter_config.json").write_text(json.dumps(whole))


def test_mlx_directories_keep_their_configuration_and_their_rank_can_change(belay: Callable[..., Ran]) -> None:
    mlx_run()
    ran = belay("average", "run", "-o", "out", "--unit", "checkpoint", "--lora", "delta", "--lora-rank", "5")
    assert ran.code == 0, ran.err
    layout = LAYOUTS["mlx"]
    assert error(update(layout, load_file("out/adapters.safetensors")), exact(layout)) < 1e-6
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["lora_parameters"] == {"rank": 5, "scale": 20.0, "dropout": 0.0}
    assert belay("verify", "out").code == 0


def test_mlx_scales_that_differ_are_refused(belay: Callable[..., Ran]) -> None:
    mlx_run()
    path = Path("run/checkpoint-100/adapter_config.json")
    path.write_text(path.read_text().replace("20.0", "10.0"))
    ran = belay("average", "run", "-o", "out", "--lora", "delta")
    assert (ran.code, "has lora_parameters" in ran.err, "scaled differently" in ran.err) == (1, True, True)


def test_mlx_dora_is_refused_and_its_full_weights_need_no_choice(belay: Callable[..., Ran]) -> None:
    mlx_run(fine_tune_type="dora")
    ran = belay("average", "run", "-o", "out", "--lora", "delta")
    assert (ran.code, "is an adapter of the kind DoRA, whose update is no product" in ran.err) == (1, True)
    for seed in range(COUNT):
        directory = Path(f"run/checkpoint-{(seed + 1) * 100}")
        save_file({"model.norm.weight": torch.full((3,), float(seed))}, directory / "adapters.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    assert belay("average", "run", "-o", "out").code == 0


# ---- what is no product


def others(seed: int) -> dict[str, State]:
    def x(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    pair = {"x.lora_down.weight": x(2, 6), "x.lora_up.weight": x(5, 2), "x.alpha": torch.tensor(1.0)}
    return {
        # LyCORIS, modules/loha.py, lokr.py, diag_oft.py, boft.py, locon.py (use_tucker, weight_decompose), glora.py
        "LoHa": {f"x.hada_w{i}_{side}": x(5, 2) if side == "a" else x(2, 6) for i in (1, 2) for side in "ab"},
        "LoKr": {"x.lokr_w1": x(2, 2), "x.lokr_w2_a": x(3, 2), "x.lokr_w2_b": x(2, 3)},
        "OFT": {"x.oft_blocks": x(2, 3, 3)},
        "DoRA": {**pair, "x.dora_scale": x(5, 1)},
        "LoCon in Tucker form": {**pair, "x.lora_mid.weight": x(2, 2, 3, 3)},
        "GLoRA": {"x.a1.weight": x(2, 6), "x.a2.weight": x(6, 2), "x.b1.weight": x(2, 6), "x.b2.weight": x(5, 2)},
        # peft, tuners/boft/layer.py, vera/layer.py, adalora/layer.py
        "BOFT": {"x.boft_R": x(2, 2, 3, 3), "x.boft_s": x(5, 1)},
        "VeRA": {"x.vera_lambda_b": x(5), "x.vera_lambda_d": x(2)},
        "AdaLoRA": {"x.lora_A": x(2, 6), "x.lora_B": x(5, 2), "x.lora_E": x(2, 1)},
    }


@pytest.mark.parametrize("kind", others(0))
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_other_kinds_are_refused_by_name_until_their_tensors_are_asked_for(
    kind: str, suffix: str, belay: Callable[..., Ran]
) -> None:
    paths = [f"step_{seed + 1}.{suffix}" for seed in range(COUNT)]
    for seed, path in enumerate(paths):
        found = others(seed)[kind]
        save_file(found, path) if suffix == "safetensors" else torch.save(found, path)
    merge = "       merge each adapter into its model and average the models, or --lora factors"
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint")
    assert (ran.code, ran.err) == (
        1,
        f"belay: {paths[-1]}: is an adapter of the kind {kind}: the average of its tensors is not the average of the "
        f"updates that they stand for\n{merge} averages the tensors as they are\n",
    )
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    what = f"belay: {paths[0]}: is an adapter of the kind {kind}, whose update is no product B·A\n{merge}\n"
    assert (ran.code, ran.err) == (1, what)
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "factors")
    assert ran.code == 0
    assert f"warning: these are adapters of the kind {kind}: their tensors are averaged apart" in ran.err
    found = load_file("out.safetensors")
    for name, value in found.items():
        expected: Any = sum(c * others(seed)[kind][name].double() for seed, c in enumerate(WEIGHTS))
        assert torch.equal(value, expected.float()), name
    assert verified(belay, "out.safetensors", paths)


# ---- a whole model that has an adapter


def test_the_base_weights_of_a_whole_model_are_averaged_beside_the_updates(belay: Callable[..., Ran]) -> None:
    """As loralib leaves it without lora_state_dict: `weight` is of the layer, lora_A and lora_B beside it."""
    layout = LAYOUTS["loralib"]
    paths = []
    for seed in range(COUNT):
        paths.append(f"step_{seed + 1}.pt")
        torch.save({**state(layout, seed), "h.0.ln.weight": torch.full((4,), float(seed))}, paths[-1])
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    found = load_file("out.safetensors")
    assert torch.equal(found["h.0.ln.weight"], torch.full((4,), 1.25))
    assert verified(belay, "out.safetensors", paths)


@pytest.mark.parametrize("policy", ["--drop", "--last"])
def test_no_choice_is_needed_where_no_factor_is_averaged(policy: str, belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS["loralib"])
    ran = belay("average", *paths, "-o", "out.safetensors", policy, "*.lora_*")
    assert ran.code == 0, ran.err
    assert "these are adapters" not in ran.err
    assert verified(belay, "out.safetensors", paths)


def test_the_metadata_of_the_record_says_how_it_was_averaged(belay: Callable[..., Ran]) -> None:
    paths = write(LAYOUTS["kohya"])
    assert belay("average", *paths, "-o", "out.safetensors", "--lora", "delta").code == 0
    with safe_open("out.safetensors", framework="pt") as file:
        assert file.metadata()["belay.lora"] == "delta"


def test_what_makes_no_product_can_be_taken_from_the_last(belay: Callable[..., Ran]) -> None:
    """LitGPT's qkv in two groups beside a plain projection (litgpt/lora.py: LoRAQKVLinear)."""
    layout, paths = LAYOUTS["loralib"], []
    for seed in range(COUNT):
        g = torch.Generator().manual_seed(seed)
        grouped = {"h.0.qkv.lora_A": torch.randn(4, 6, generator=g), "h.0.qkv.lora_B": torch.randn(10, 2, generator=g)}
        paths.append(f"step_{seed + 1}.safetensors")
        save_file({**state(layout, seed), **grouped}, paths[-1])
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert (ran.code, "'h.0.qkv.lora_A' and 'h.0.qkv.lora_B' are no factors of one product" in ran.err) == (1, True)
    options = ("--unit", "checkpoint", "--lora", "delta", "--last", "*.qkv.lora_*")
    ran = belay("average", *paths, "-o", "out.safetensors", *options)
    assert ran.code == 0, ran.err
    assert torch.equal(load_file("out.safetensors")["h.0.qkv.lora_A"], grouped["h.0.qkv.lora_A"])
    assert verified(belay, "out.safetensors", paths)


def test_a_learned_scale_of_the_model_is_no_scale_of_an_update(belay: Callable[..., Ran]) -> None:
    paths = []
    for seed in range(COUNT):
        paths.append(f"step_{seed + 1}.safetensors")
        save_file({**state(LAYOUTS["loralib"], seed), "h.0.alpha": torch.tensor([float(seed)])}, paths[-1])
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    assert load_file("out.safetensors")["h.0.alpha"].item() == 1.25
