"""What the configurations beside the weights say about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from belay_cli.errors import CheckpointError
from belay_cli.storage.files import AnyPath
from belay_cli.storage.json_file import read_json

_LARGEST_CONFIG = 10_000_000  # bytes

# `quant_method` -> what people call it
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8 with scales",
    "fbgemm_fp8": "fp8 with scales",
    "mxfp4": "MXFP4",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "torchao": "torchao",
    "quanto": "quanto",
    "higgs": "HIGGS",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "bitnet": "BitNet",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "modelopt": "ModelOpt",
    "exl2": "exllamav2",
    "exl3": "exllamav3",
    "quip": "QuIP#",
    "quark": "Quark",
    "fp_quant": "FP-Quant",
    "mlx": "MLX",
}

# Keys of config.json, there or in the part of it about one of several models -> who writes them without a method
_KEYS = {
    "quantization_config": "quantization",
    "quantization": "MLX",
    "compression_config": "compressed-tensors",
}

# Files that say it by being there, with the key that must hold something in them -> who writes them
_FILES = {
    "hf_quant_config.json": ("quantization", "ModelOpt"),
    "quantize_config.json": ("bits", "GPTQ"),
    "quant_config.json": ("w_bit", "AWQ"),
}


def read_config(directory: AnyPath | None, name: str = "config.json") -> Mapping[str, Any]:
    """A configuration beside the weights; empty if there is none, or it is no object."""
    path = directory / name if directory else None
    if path is None or not path.is_file():
        return {}
    try:
        found = read_json(path, _LARGEST_CONFIG)
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) else {}


def quantization(directory: AnyPath | None) -> str | None:
    """What the configurations say that the weights are quantized by, as people call it; None if they do not."""
    for config in _sections(read_config(directory)):
        for key, writer in _KEYS.items():
            if isinstance(found := config.get(key), dict) and found:
                return _method(found) or writer
    for name, (key, writer) in _FILES.items():
        if read_config(directory, name).get(key):
            return writer
    return None


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and those inside it, as that of the text model of several."""
    yield config
    yield from (value for value in config.values() if isinstance(value, dict))


def _method(settings: Mapping[str, Any]) -> str | None:
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    method = settings.get("quant_method")
    return _METHODS.get(str(method).lower(), str(method)[:40]) if method else None
