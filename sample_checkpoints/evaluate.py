"""Held-out loss and accuracy of weights of the sample run: its checkpoints, or averages of them.

    python sample_checkpoints/evaluate.py belay-average.safetensors sample_checkpoints/run/*.safetensors

Needs torch and safetensors, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from model import DigitsNet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

HELD_OUT = Path(__file__).resolve().parent / "held_out.pt"


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description="Held-out loss and accuracy of weights of the sample run.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a safetensors file")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()

    results = {file: evaluate(file) for file in options.files}
    if options.json:
        named = {file: {"loss": loss, "accuracy": accuracy} for file, (loss, accuracy) in results.items()}
        print(json.dumps(named, indent=2, ensure_ascii=False))
        return
    width = max(len("file"), *map(len, results))
    print(f"{'file':<{width}}    loss  accuracy")
    for file, (loss, accuracy) in results.items():
        print(f"{file:<{width}}  {loss:.4f}  {accuracy:8.2%}")


def evaluate(path: str | os.PathLike[str]) -> tuple[float, float]:
    """Mean cross-entropy on the held-out images, and the part of them that is recognised, 0 to 1."""
    logits, labels = logits_of(load_file(path))
    return cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def loss_of(weights: Mapping[str, Tensor]) -> tuple[float, float]:
    """The same cross-entropy of a state dict, and its standard error over the images."""
    losses = cross_entropy(*logits_of(weights), reduction="none").double()
    return losses.mean().item(), (losses.std() / len(losses) ** 0.5).item()


def logits_of(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [797, 10] of the held-out images, and their labels [797]."""
    model = DigitsNet()
    model.load_state_dict(weights)
    model.eval()
    images, labels = held_out()
    with torch.inference_mode():
        return model(images), labels


@cache
def held_out() -> tuple[Tensor, Tensor]:
    """images: [797, 8, 8] uint8, 0 to 16; labels: [797] int64. No training run of this folder has seen them."""
    data = torch.load(HELD_OUT, weights_only=True)
    return data["images"], data["labels"].long()


if __name__ == "__main__":
    main()
