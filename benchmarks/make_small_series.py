"""Make a series of small checkpoints in Hub layout: many of them, or of many tensors."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def main() -> None:
    """Take the options and make the series."""
    parser = argparse.ArgumentParser(description="Make a series of small checkpoints, float32 or float16 by size.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoints", type=int, required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--elements", type=int, required=True, help="of a tensor")
    options = parser.parse_args()
    dtype = np.float16 if options.elements < 1024 else np.float32
    rng = np.random.default_rng(0)
    first = {f"layers.{k}.weight": rng.standard_normal(options.elements).astype(dtype) for k in range(options.tensors)}
    for i in range(options.checkpoints):
        directory = options.out / f"checkpoint-{(i + 1) * 100}"
        directory.mkdir(parents=True)
        moved = {name: values + dtype(i / 64) for name, values in first.items()}
        save_file(moved, directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
