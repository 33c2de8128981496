"""The device that a replay runs on."""

from __future__ import annotations

import ctypes
import sys

from belay_cli.errors import DeviceError
from belay_cli.planning import Plan
from belay_cli.planning.gpu import gpu_pays

CPU = "cpu"


def find_device(plan: Plan, local: int | None = None) -> str:
    """`cpu` or `cuda:N`, for `auto` (CUDA where it pays and there is one), `cpu`, `cuda` or `cuda:N`.

    local: which of several processes of this machine asks, so that each takes a GPU of its own where none is named.
    Raises DeviceError if it is not there.
    """
    text = plan.options.device
    if text == CPU or (text == "auto" and not (gpu_pays(plan) and has_gpu())):
        return CPU
    import torch

    if not torch.cuda.is_available():
        if text == "auto":
            return CPU  # this build of torch knows no GPU
        raise DeviceError(f"--device {text}: this machine, or this build of torch, has no CUDA", hint="--device cpu")
    count = torch.cuda.device_count()
    number = int(text.partition(":")[2] or (torch.cuda.current_device() if local is None else local % count))
    if number >= count:
        raise DeviceError(f"--device {text}: there are {count} CUDA devices, counted from 0", hint="--device cuda:0")
    return f"cuda:{number}"


def has_gpu() -> bool:
    """Whether there is a GPU of NVIDIA's."""
    return gpu_count() > 0


def gpu_count() -> int:
    """How many GPUs their driver shows, 0 without it; it is asked itself, since torch takes a second to import."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    known = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if known else 0
