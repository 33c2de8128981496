"""What `belay inspect` says was recognised, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.conftest import Ran


def said(belay: Callable[..., Any], *arguments: str) -> list[dict[str, str]]:
    ran = belay("inspect", *arguments, "--json")
    return [entry["recognised"] for entry in ran.json["checkpoints"]]


def test_a_torch_file_with_an_ema(belay: Callable[..., Ran]) -> None:
    weight = torch.zeros(3, 2)
    for step in (1, 2):
        named = {"_orig_mod.a.weight": weight + step, "_orig_mod.b.weight": weight + step}
        named["_orig_mod.c.weight"] = named["_orig_mod.a.weight"]
        torch.save({"model": named, "model_ema": named, "iteration": step}, f"{step}.pt")
    expected = {
        "format": "a torch file",
        "state dict": "model",
        "weights": "raw; the other: model_ema",
        "names": "names are taken without the _orig_mod. of torch.compile",
        "shared": "c.weight is a.weight",
        "step": "recorded as iteration",
    }
    assert said(belay, "1.pt", "2.pt", "--source", "raw") == [expected, expected]


def test_adapters(belay: Callable[..., Ran]) -> None:
    factors = {"lora_down": torch.ones(2, 6), "lora_up": torch.ones(5, 2)}
    save_file({f"unet.x.{name}.weight": value for name, value in factors.items()}, "x-000001.safetensors")
    (found,) = said(belay, "x-000001.safetensors")
    assert found["adapter"] == "LoRA, 1 update, by unet.x.lora_down.weight"
    Path("ia3").mkdir()
    save_file({"l.ia3_l": torch.ones(2)}, "ia3/adapter_model.safetensors")
    Path("ia3/adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    (found,) = said(belay, "ia3")
    assert found["adapter"] == "by adapter_config.json"


def test_packed_numbers(belay: Callable[..., Ran]) -> None:
    save_file({"l.qweight": torch.ones(4, 4, dtype=torch.int32), "l.scales": torch.ones(4)}, "step_1.safetensors")
    (found,) = said(belay, "step_1.safetensors")
    assert found["packed"] == "GPTQ or AWQ, by l.qweight"
    assert found["step"] == "by its name"


def test_it_is_said_once_for_checkpoints_of_which_it_is_the_same(belay: Callable[..., Ran]) -> None:
    for step in (1, 2, 3):
        save_file({"w": torch.zeros(2) + step}, f"step_{step}.safetensors")
    torch.save({"model": {"w": torch.zeros(2)}}, "step_4.pt")
    out = belay("inspect", *(f"step_{n}.safetensors" for n in (1, 2, 3)), "step_4.pt").out
    assert (
        "recognised in step_1.safetensors, step_2.safetensors, step_3.safetensors:\n  format      safetensors\n" in out
    )
    assert "recognised in step_4.pt:\n  format      a torch file\n" in out
