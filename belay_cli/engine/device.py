"""The device that a replay runs on."""

from __future__ import annotations

import torch

from belay_cli.errors import DeviceError


def find_device(text: str) -> torch.device:
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`. Raises DeviceError if it is not there."""
    if text == "cpu" or (text == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {text}: this machine, or this build of torch, has no CUDA", hint="--device cpu")
    number = int(text.partition(":")[2] or torch.cuda.current_device())
    count = torch.cuda.device_count()
    if number >= count:
        raise DeviceError(f"--device {text}: there are {count} CUDA devices, counted from 0", hint="--device cuda:0")
    return torch.device("cuda", number)
