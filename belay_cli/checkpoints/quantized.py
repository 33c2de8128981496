"""Weights that are packed or scaled: their numbers mean nothing by themselves, and an average of them is noise.

They are known by the model's configuration, and where there is none, by names and dtypes that go together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from belay_cli.checkpoints.json_file import JsonError, read_json
from belay_cli.checkpoints.safetensors_header import Tensor
from belay_cli.checkpoints.storage import AnyPath

_LARGEST_CONFIG = 10_000_000  # bytes

# `quant_method` in config.json -> what people call it
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
    "modelopt": "ModelOpt",
}

# The last parts of names that only these formats use, and the dtypes they have there.
_PATTERNS = (
    ("GPTQ or AWQ", re.compile(r"(.*\.)?(qweight|qzeros)"), ("I32",)),
    ("bitsandbytes", re.compile(r".*\.(quant_state\.bitsandbytes__\w+|nested_absmax|nested_quant_map)"), None),
    ("bitsandbytes", re.compile(r".*\.(SCB|weight_format)"), None),
    ("compressed-tensors", re.compile(r".*\.(weight_packed|weight_zero_point)"), None),
    ("MXFP4", re.compile(r".*_(blocks|scales)"), ("U8",)),
    ("quanto", re.compile(r".*\.weight\._(data|scale)"), None),
    ("fp8 with scales", re.compile(r".*\.weight_scale(_inv)?"), None),
)


def packed(tensors: Mapping[str, Tensor], directory: AnyPath | None, exempt: Iterable[str]) -> tuple[str, str] | None:
    """What the weights are packed by, and a tensor that shows it; None if they are plain numbers.

    exempt: names of tensors that somebody has decided about, which show nothing.
    """
    spared = set(exempt)
    left = {name: tensor for name, tensor in tensors.items() if name not in spared}
    for name, tensor in left.items():
        for what, pattern, dtypes in _PATTERNS:
            if pattern.fullmatch(name) and (dtypes is None or tensor.dtype in dtypes):
                return what, name
    method = _configured(directory)
    integers = [name for name, t in left.items() if t.dtype in ("I8", "U8", "I32") and t.elements > 1 and t.shape]
    return (method, integers[0]) if method and integers else None


def _configured(directory: AnyPath | None) -> str | None:
    config = read_config(directory)
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    return _METHODS.get(str(method).lower(), str(method)[:40]) if method else None


def read_config(directory: AnyPath | None) -> Mapping[str, Any]:
    """config.json beside the weights; empty if there is none, or it is no object."""
    path = directory / "config.json" if directory else None
    if path is None or not path.is_file():
        return {}
    try:
        found = read_json(path, _LARGEST_CONFIG)
    except JsonError:
        return {}
    return found if isinstance(found, dict) else {}
