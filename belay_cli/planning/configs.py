"""Configurations that are copied with an edit, because they say what the written weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.config import read_config
from belay_cli.checkpoints.weights import inside
from belay_cli.errors import SeriesError
from belay_cli.planning.adapters import edited_config
from belay_cli.planning.options import PlanOptions

CONFIG = "config.json"
_KEYS = ("dtype", "torch_dtype")  # of transformers, since 4.56 and before
_FLOATS = frozenset({"float64", "double", "float32", "float", "bfloat16", "float16", "half"})
_OTHERS = frozenset({"quantization_config", "compression_config"})  # these have dtypes of computations
_DEEPEST = 32  # configurations in configurations


def edited_configs(series: Series, options: PlanOptions, copies: Sequence[str]) -> dict[str, bytes]:
    """The copies that are written with another content, by their names."""
    return {**edited_config(series, options.lora_rank, copies), **_with_dtype(series, options.dtype, copies)}


def untrue_metadata(options: PlanOptions) -> set[str]:
    """Metadata of the checkpoints that says what the options change."""
    ranks = {"ss_network_dim", "ss_network_alpha"} if options.lora_rank is not None else set()
    return ranks | (set(_KEYS) if options.dtype != "same" else set())


def _with_dtype(series: Series, dtype: str, copies: Sequence[str]) -> dict[str, bytes]:
    """config.json of every model for weights of another dtype; nothing if it says no dtype, or that one."""
    found = {}
    for folder, part in series.last.weights.components.items() if dtype != "same" else ():
        name = inside(folder, CONFIG)
        config = read_config(part.directory) if name in copies else {}
        edited = with_dtype(config, dtype)
        if edited != config:
            found[name] = _text(edited)
    return found


def with_dtype(config: Mapping[str, Any], dtype: str, depth: int = _DEEPEST) -> dict[str, Any]:
    """A configuration, and those inside it, whose floating point dtype is this one wherever they state any."""
    edited = dict(config)
    for key, value in config.items():
        if key in _KEYS:
            edited[key] = _renamed(value, dtype)
        elif isinstance(value, dict) and key not in _OTHERS and depth > 0:
            edited[key] = with_dtype(value, dtype, depth - 1)
    return edited


def _renamed(value: Any, dtype: str) -> Any:
    """`float32` and `torch.float32` as the other dtype; of several parts (a dict) each. All else as it is."""
    if isinstance(value, dict):
        return {part: _renamed(inner, dtype) if isinstance(inner, str) else inner for part, inner in value.items()}
    if isinstance(value, str) and value.removeprefix("torch.") in _FLOATS:
        return ("torch." if value.startswith("torch.") else "") + dtype
    return value


def _text(config: Mapping[str, Any]) -> bytes:
    """As transformers writes it; with escapes only where JSON held half a character, which UTF-8 cannot."""
    try:
        return (json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    except ValueError as error:
        hint = "mend it, or keep its dtype: leave --dtype out"
        raise SeriesError("a configuration holds NaN or infinity, which are no JSON", hint=hint) from error
