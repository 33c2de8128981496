"""Second opinions on averages of adapters: what diffusers and peft load from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Ran

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = (100, 200, 300)
WEIGHTS = (0.25, 0.25, 0.5)
RANK = 2


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(12, 16)
        self.second = torch.nn.Linear(16, 10)


def filled(model: Any, seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model


def updates(model: Any) -> dict[str, torch.Tensor]:
    from peft.tuners.lora import LoraLayer

    return {
        name: module.get_delta_weight(next(iter(module.lora_A))).detach().double().flatten(1)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def best(matrix: torch.Tensor) -> Any:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ vt[:RANK]


def close(found: dict[str, torch.Tensor], parts: list[dict[str, torch.Tensor]]) -> None:
    """Whether every update is the best of its rank to the average of the parts'."""
    assert found.keys() == parts[0].keys()
    for name, update in found.items():
        exact = best(torch.as_tensor(sum(c * part[name] for c, part in zip(WEIGHTS, parts, strict=True))))
        assert torch.linalg.matrix_norm(update - exact) <= 1e-6 * torch.linalg.matrix_norm(exact), name


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=4,
    )


def diffusers_adapter(seed: int) -> Any:
    from peft import LoraConfig

    model = unet()
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_v", "conv1"]))
    return filled(model, seed)


def test_diffusers_loads_the_average_of_its_adapters(belay: Callable[..., Ran]) -> None:
    paths = []
    for seed, step in enumerate(STEPS):
        diffusers_adapter(seed).save_lora_adapter(f"checkpoint-{step}")
        paths.append(f"checkpoint-{step}")
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    model = unet()
    model.load_lora_adapter(load_file("out.safetensors"), prefix=None)
    close(updates(model), [updates(diffusers_adapter(seed)) for seed in range(3)])


def test_diffusers_reads_the_average_of_kohyas_adapters_with_their_alpha(belay: Callable[..., Ran]) -> None:
    """Names as sd-scripts' networks/lora.py has them, read by diffusers' own converter."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

    def read(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converted, alphas = _convert_non_diffusers_lora_to_diffusers(dict(state))
        (alpha,) = alphas.values()
        down, up = (next(v for k, v in converted.items() if f".{side}.weight" in k).double() for side in ("down", "up"))
        return {"q": alpha / down.shape[0] * up @ down}

    parts = []
    for seed, step in enumerate(STEPS):
        g = torch.Generator().manual_seed(seed)
        state = {
            f"{name}.lora_down.weight": torch.randn(RANK, 6, generator=g),
            f"{name}.lora_up.weight": torch.randn(5, RANK, generator=g),
            f"{name}.alpha": torch.tensor(3.0),
        }
        save_file(state, f"step_{step}.safetensors")
        parts.append(read(state))
    paths = [f"step_{step}.safetensors" for step in STEPS]
    ran = belay("average", *paths, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    close(read(load_file("out.safetensors")), parts)


def peft_model(seed: int, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(**{"r": RANK, "lora_alpha": 6, "target_modules": ["first", "second"], **options})
    return filled(get_peft_model(Net(), config), seed)


@pytest.fixture
def peft_files() -> list[str]:
    """The files alone are given; the configuration lies beside each."""
    for seed, step in enumerate(STEPS):
        peft_model(seed).save_pretrained(f"checkpoint-{step}")
    return [f"checkpoint-{step}/adapter_model.safetensors" for step in STEPS]


def test_the_configuration_beside_a_file_of_peft_counts(peft_files: list[str], belay: Callable[..., Ran]) -> None:
    from peft import PeftModel

    ran = belay("average", *peft_files, "-o", "out.safetensors", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    shutil.copytree("checkpoint-300", "loaded")
    shutil.copy("out.safetensors", "loaded/adapter_model.safetensors")
    close(updates(PeftModel.from_pretrained(Net(), "loaded")), [updates(peft_model(seed)) for seed in range(3)])
    path = Path("checkpoint-100/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 1}))
    ran = belay("average", *peft_files, "-o", "other.safetensors", "--lora", "delta")
    said = "has lora_alpha 1; in checkpoint-300/adapter_model.safetensors it is 6, so their updates are scaled"
    assert (ran.code, said in ran.err) == (1, True), ran.err


def test_a_file_of_peft_without_its_configuration_is_refused(peft_files: list[str], belay: Callable[..., Ran]) -> None:
    for step in STEPS:
        Path(f"checkpoint-{step}/adapter_config.json").unlink()
    ran = belay("average", *peft_files, "-o", "out.safetensors", "--lora", "delta")
    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == [
        "belay: checkpoint-100/adapter_model.safetensors: is an adapter without its adapter_config.json, which says "
        "how its updates are scaled",
        "       give the directory that holds both, or average the factors: --lora factors",
    ]


def test_the_rank_of_a_file_by_itself_cannot_change(peft_files: list[str], belay: Callable[..., Ran]) -> None:
    ran = belay("average", *peft_files, "-o", "out.safetensors", "--lora", "delta", "--lora-rank", "4")
    assert (ran.code, "no adapter_config.json goes with the output" in ran.err) == (2, True)


def test_the_bias_of_a_factor_is_no_factor(belay: Callable[..., Ran]) -> None:
    for seed, step in enumerate(STEPS):
        peft_model(seed, lora_bias=True).save_pretrained(f"run/checkpoint-{step}")
    ran = belay("average", "run", "-o", "out", "--unit", "checkpoint", "--lora", "delta")
    assert ran.code == 0, ran.err
    name = "base_model.model.first.lora_B.bias"
    states = [load_file(f"run/checkpoint-{step}/adapter_model.safetensors") for step in STEPS]
    exact: Any = sum(c * state[name].double() for c, state in zip(WEIGHTS, states, strict=True))
    assert torch.equal(load_file("out/adapter_model.safetensors")[name], exact.float())
    assert belay("verify", "out").code == 0
