"""Configurations that are copied with an edit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from belay_cli import average
from belay_cli.planning.configs import untrue_metadata, with_dtype
from belay_cli.planning.options import PlanOptions
from tests.conftest import Ran

FLOATS = ["float64", "float32", "bfloat16", "float16"]


def run_with(config: bytes | None, name: str = "config.json", directory: Path = Path("run")) -> Path:
    for step in (100, 200):
        (directory / f"checkpoint-{step}").mkdir(parents=True)
        save_file({"w": torch.full((3, 3), float(step))}, directory / f"checkpoint-{step}/model.safetensors")
        if config is not None:
            (directory / f"checkpoint-{step}" / name).write_bytes(config)
    return directory


def written(config: bytes, dtype: Any, name: str = "config.json") -> bytes:
    average([run_with(config, name)], "out", dtype=dtype)
    return Path("out", name).read_bytes()


def test_config_json_says_what_the_weights_are() -> None:
    config = {
        "z": 1,
        "dtype": "float32",
        "a": {"torch_dtype": "torch.float16", "b": [1.5, None, "float32"], "é": "dtype"},
        "text_config": {"vision": {"dtype": "half"}},
        "quantization_config": {"dtype": "float32", "bnb_4bit_compute_dtype": "float32"},
    }
    expected = {
        "z": 1,
        "dtype": "bfloat16",
        "a": {"torch_dtype": "torch.bfloat16", "b": [1.5, None, "float32"], "é": "dtype"},
        "text_config": {"vision": {"dtype": "bfloat16"}},
        "quantization_config": {"dtype": "float32", "bnb_4bit_compute_dtype": "float32"},
    }
    found = written(json.dumps(config).encode(), "bfloat16")
    assert found == (json.dumps(expected, indent=2, ensure_ascii=False) + "\n").encode()


@pytest.mark.parametrize(
    "config, dtype",
    [
        (b'{ "dtype":"float32" }', "same"),
        (b'{ "dtype":"bfloat16", "b": 1e5 }', "bfloat16"),
        (b'{ "hidden_size":8 }', "bfloat16"),
        (b'{ "dtype":"auto", "torch_dtype": null }', "bfloat16"),
        (b'{ "dtype":"int8", "torch_dtype": 5 }', "bfloat16"),
        (b"[1, 2]", "bfloat16"),
        (b"no JSON", "bfloat16"),
        (b'\xef\xbb\xbf{ "a": "\\ud800" }', "bfloat16"),
    ],
)
def test_every_other_config_stays_byte_for_byte(config: bytes, dtype: str) -> None:
    assert written(config, dtype) == config


@pytest.mark.parametrize("name", ["params.json", "lit_config.json", "generation_config.json", "config.yaml"])
def test_no_other_file_is_edited(name: str) -> None:
    assert written(b'{"dtype": "float32"}', "bfloat16", name) == b'{"dtype": "float32"}'


def test_half_a_character_stays_one() -> None:
    assert json.loads(written(b'{"dtype": "float32", "a": "\\ud800"}', "float16")) == {
        "dtype": "float16",
        "a": "\ud800",
    }


def test_several_parts_have_one_dtype_each() -> None:
    config = {"torch_dtype": {"text_config": "float32", "": "float16", "codec": 5}}
    assert with_dtype(config, "bfloat16") == {"torch_dtype": {"text_config": "bfloat16", "": "bfloat16", "codec": 5}}


def test_a_config_of_any_depth_is_edited_to_a_depth() -> None:
    config: dict[str, Any] = {"dtype": "float32"}
    for _ in range(200):
        config = {"inner": config}
    found = with_dtype(config, "float16")
    for _ in range(200):
        found = found["inner"]
    assert found == {"dtype": "float32"}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(FLOATS),
    lambda inner: st.dictionaries(st.sampled_from(["dtype", "torch_dtype", "a", "é"]), inner) | st.lists(inner),
)


@given(st.dictionaries(st.sampled_from(["dtype", "torch_dtype", "a", "text_config"]), _VALUES), st.sampled_from(FLOATS))
def test_an_edit_keeps_keys_and_order_and_is_made_once(config: dict[str, Any], dtype: str) -> None:
    edited = with_dtype(config, dtype)
    assert list(edited) == list(config)
    assert with_dtype(edited, dtype) == edited
    for key, value in config.items():
        if value in FLOATS:
            assert edited[key] == (dtype if key in ("dtype", "torch_dtype") else value)


def test_verify_and_the_planned_sizes_hold(belay: Callable[..., Ran]) -> None:
    run = run_with(b'{"dtype": "float32"}')
    ran = belay("average", run, "-o", "out", "--dtype", "bfloat16", "--json")
    sizes = {Path(file["path"]).name: file["bytes"] for file in ran.json["files"]}
    assert sizes == {path.name: path.stat().st_size for path in Path("out").iterdir() if path.is_file()}
    assert belay("verify", "out").code == 0


def test_transformers_loads_the_dtype_that_was_asked_for() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for step in (100, 200):
        torch.manual_seed(step)
        LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(f"run/checkpoint-{step}")
    average(["run"], "out", dtype="bfloat16")
    model = LlamaForCausalLM.from_pretrained("out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "options, names",
    [
        (PlanOptions(), set()),
        (PlanOptions(dtype="float16"), {"dtype", "torch_dtype"}),
        (PlanOptions(lora="delta", lora_rank=4), {"ss_network_dim", "ss_network_alpha"}),
    ],
)
def test_metadata_that_an_option_makes_untrue(options: PlanOptions, names: set[str]) -> None:
    assert untrue_metadata(options) == names
