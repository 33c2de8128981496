"""The line that loads an output is run, by the libraries themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from belay_cli.show.loading import Loader, find_loader, infer_library, load_line
from tests.conftest import make_files, shard, tensors


def run_line(line: str) -> Any:
    """What a person gets who imports the library and enters the line."""
    library = line.partition(".")[0]
    names = {"Path": Path, "safetensors": safetensors}
    if library.isidentifier() and library != "safetensors":
        names[library] = pytest.importorskip(library)
    return eval(line, names)


def test_a_single_file() -> None:
    (path,) = make_files(Path("a dir"), steps=(1,), name='x"{}.safetensors')
    assert load_line(path) == 'safetensors.torch.load_file("a dir/x\\"1.safetensors")'
    assert run_line(load_line(path)).keys() == tensors().keys()


def test_a_directory_without_a_configuration() -> None:
    Path("out").mkdir()
    save_file(tensors(), "out/model.safetensors")
    assert load_line(Path("out")) == 'safetensors.torch.load_file("out/model.safetensors")'


def test_shards_without_a_configuration() -> None:
    parts = tensors()
    shard(Path("out"), [{"seen": parts.pop("seen")}, parts])
    line = load_line(Path("out"))
    assert line == (
        '{name: w for file in Path("out").rglob("*.safetensors") '
        "for name, w in safetensors.torch.load_file(file).items()}"
    )
    assert run_line(line).keys() == tensors().keys()


def test_several_models_without_a_configuration() -> None:
    for folder in ("unet", "text_encoder"):
        (Path("out") / folder).mkdir(parents=True)
        save_file({"w": torch.ones(2)}, Path("out") / folder / "model.safetensors")
    assert run_line(load_line(Path("out"))).keys() == {
        "out/unet/model.safetensors",
        "out/text_encoder/model.safetensors",
    }


@pytest.mark.filterwarnings("ignore")
def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=7, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained("out")
    assert load_line(Path("out")) == 'transformers.AutoModelForCausalLM.from_pretrained("out")'
    assert type(run_line(load_line(Path("out")))).__name__ == "GPT2LMHeadModel"


@pytest.mark.filterwarnings("ignore")
def test_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=1).save_pretrained("out")
    assert load_line(Path("out")) == 'diffusers.AutoencoderKL.from_pretrained("out")'
    assert type(run_line(load_line(Path("out")))).__name__ == "AutoencoderKL"


@pytest.mark.parametrize(
    ("copies", "config", "expected"),
    [
        ([], {}, None),
        ([], {"architectures": ["LlamaForCausalLM"]}, None),  # of transformers' own, or of something like it
        (["adapter_config.json"], {"task_type": "SEQ_CLS"}, Loader("peft", "AutoPeftModelForSequenceClassification")),
        ([], {"peft_type": "LORA"}, Loader("peft", "AutoPeftModel")),
        (["modules.json"], {}, Loader("sentence_transformers", "SentenceTransformer")),
        ([], {"_class_name": "UNet2DModel"}, Loader("diffusers", "UNet2DModel")),
        ([], {"_class_name": "x; import os", "_diffusers_version": "1"}, None),
        ([], {"architectures": ["Own"], "transformers_version": "5"}, Loader("transformers", "Own")),
        (
            [],
            {"architectures": ["Own"], "transformers_version": "5", "auto_map": {}},
            Loader("transformers", "AutoModel", own_code=True),
        ),
    ],
)
def test_what_loads_what(copies: list[str], config: dict[str, Any], expected: Loader | None) -> None:
    assert find_loader(copies, config) == expected


def test_a_call_per_library() -> None:
    assert Loader("peft", "AutoPeftModel").call("ORG/NAME") == 'AutoPeftModel.from_pretrained("ORG/NAME")'
    assert Loader("sentence_transformers", "SentenceTransformer").call("x") == 'SentenceTransformer("x")'
    trusted = 'AutoModel.from_pretrained("x", trust_remote_code=True)'
    assert Loader("transformers", "AutoModel", own_code=True).call("x") == trusted


def test_a_damaged_configuration_is_none() -> None:
    Path("out").mkdir()
    save_file(tensors(), "out/model.safetensors")
    for text in ("{", "[]", "[" * 100_000):
        Path("out/config.json").write_text(text)
        assert load_line(Path("out")) == 'safetensors.torch.load_file("out/model.safetensors")'
    config = {"architectures": ["BertModel"], "transformers_version": "5"}
    Path("out/config.json").write_text(json.dumps(config))
    assert load_line(Path("out")) == 'transformers.AutoModel.from_pretrained("out")'
    assert infer_library([], config) == "transformers"
