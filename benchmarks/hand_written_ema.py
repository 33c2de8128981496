"""The loop that people write for themselves: load whole files, keep the EMA as a float32 state dict, save it.

usage: hand_written_ema.py RUN OUT.safetensors DECAY
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(run: Path, out: Path, decay: float) -> None:
    """Average the checkpoints of a run, one tick each, in the order of their steps."""
    directories = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    ema: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for directory in directories:
        for name, weight in load_file(directory / "model.safetensors").items():
            if name in ema:
                ema[name].lerp_(weight.float(), 1 - decay)
            else:
                ema[name], dtypes[name] = weight.float(), weight.dtype
    save_file({name: weight.to(dtypes[name]) for name, weight in ema.items()}, out, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
