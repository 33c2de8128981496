"""Make a synthetic series in Hub layout: OUT/checkpoint-100, -200, …, each model.safetensors and config.json.

The tensors have the names and shapes of a small Llama. At the defaults a checkpoint has 290 M parameters and takes
579 MB, the series 6.95 GB. The same options give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch

HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2816, 32000
STEPS_APART = 100
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}

_SPREAD, _NOISE = 0.02, 0.002  # of the weights, and of what a checkpoint adds to them
_POOL = 1 << 22  # elements
_BLOCK = 1 << 20

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(layers: int) -> Shapes:
    """Every tensor of a Llama with tied embeddings."""
    matrices = {
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        **{f"self_attn.{letter}_proj": (HIDDEN, HIDDEN) for letter in "koqv"},
    }
    shapes: Shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (HIDDEN,)
        for name, shape in matrices.items():
            shapes[f"{prefix}.{name}.weight"] = shape
    return shapes


def config(layers: int, dtype: str) -> dict[str, object]:
    """What transformers, and tools that ask it for the architecture, need in order to load a checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": dtype,
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HIDDEN // 64,
        "num_key_value_heads": HIDDEN // 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def checkpoint_bytes(layers: int, dtype: str = "bfloat16") -> int:
    """The size of one model.safetensors."""
    shapes = tensor_shapes(layers)
    return len(_header(shapes, dtype)) + _elements(shapes) * _dtype(dtype).itemsize


def make_series(out: Path, *, checkpoints: int, layers: int, dtype: str = "bfloat16") -> None:
    """Write the series. Takes the memory of a few blocks, whatever the size of the model."""
    shapes = tensor_shapes(layers)
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    for i in range(checkpoints):
        step = (i + 1) * STEPS_APART
        directory = out / f"checkpoint-{step}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config(layers, dtype), indent=2) + "\n")
        with open(directory / "model.safetensors", "wb") as file:
            file.write(_header(shapes, dtype))
            for name, shape in shapes.items():
                for block in _blocks(pool, name, math.prod(shape), step):
                    file.write(block.to(_dtype(dtype)).view(torch.uint8).numpy().data)


def _blocks(pool: torch.Tensor, name: str, elements: int, step: int) -> Iterator[torch.Tensor]:
    """A tensor's values at a step: what all checkpoints share, and a little of their own.

    Both are windows onto one pool of normal numbers: drawing fresh ones for gigabytes would take minutes.
    """
    for start in range(0, elements, _BLOCK):
        n = min(_BLOCK, elements - start)
        noise = _window(pool, n, f"{name} {start} {step}") * _NOISE
        shared = torch.ones(n) if "norm" in name else _window(pool, n, f"{name} {start}") * _SPREAD
        yield shared + noise


def _window(pool: torch.Tensor, n: int, seed: str) -> torch.Tensor:
    offset = random.Random(seed).randrange(len(pool) - n)
    return pool[offset : offset + n]


def _header(shapes: Shapes, dtype: str) -> bytes:
    """The head of a safetensors file: the length of the JSON as u64, and the JSON, padded with spaces to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _dtype(dtype).itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def main() -> None:
    """Take the options and make the series."""
    parser = argparse.ArgumentParser(description="Make a synthetic Llama-named series in Hub layout.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    make_series(options.out, checkpoints=options.checkpoints, layers=options.layers, dtype=options.dtype)
    size = checkpoint_bytes(options.layers, options.dtype)
    print(
        f"{options.out}: {options.checkpoints} checkpoints of {_elements(tensor_shapes(options.layers)) / 1e6:.1f} M "
        f"parameters, {size / 1e6:.1f} MB each, {options.checkpoints * size / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
