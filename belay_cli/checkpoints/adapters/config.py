"""What is recorded about an adapter beside its tensors: adapter_config.json, and the metadata of safetensors files.

It says of which kind an adapter is, and what scales its updates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from belay_cli.checkpoints.adapters.names import ADAPTER_CONFIG
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.errors import SeriesError, UsageError
from belay_cli.storage.files import AnyPath
from belay_cli.storage.json_file import JsonError, read_json

_LARGEST_CONFIG = 10_000_000  # bytes
_LARGEST_ALPHA = 1e9

# What a scaling depends on: all of it must be the same in every checkpoint. mlx-lm has its scale in lora_parameters.
_SCALING = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_parameters")

# Metadata of safetensors files: what diffusers writes as JSON (loaders/lora_base.py), and the last parts of the keys
# under which others write numbers (SimpleTuner: transformer.lora_alpha; sd-scripts: ss_network_alpha).
_JSON_METADATA = "lora_adapter_metadata"
_SCALING_METADATA = frozenset(
    {
        *("r", "rank", "lora_rank", "ss_network_dim", "network_dim"),
        *("alpha", "lora_alpha", "ss_network_alpha", "network_alpha"),
        *("use_rslora", "rank_pattern", "alpha_pattern", "lora_scale"),
    }
)

# Keys of a configuration that make the update something else than s·B·A, by what people call it.
_VARIANTS = {
    "use_dora": "DoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "target_parameters": "LoRA on single parameters (experts)",
}
# Types that change the model by something linear in every tensor they store: the plain average of these is exact.
_LINEAR = frozenset(
    {
        *("BEFT", "C3A", "CARTRIDGE", "FOURIERFT", "IA3", "LN_TUNING", "MISS", "P_TUNING", "PREFIX_TUNING"),
        *("PROMPT_TUNING", "SHIRA", "TINYLORA", "TRAINABLE_TOKENS", "WAVEFT"),
    }
)
# Ways to begin that take s·B₀·A₀ out of the base weights; peft repeats that when it loads, by the configuration's r.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
_PARTICULAR_ABOUT_RANKS = ("orthogonal", "mica")  # of which peft accepts some only, though nothing depends on them then


def _config_path(checkpoint: Checkpoint) -> AnyPath | None:
    """Where the configuration lies, if there is one: in the directory, or beside a file of this machine."""
    beside = checkpoint.path.parent if isinstance(checkpoint.path, Path) else None
    directory = checkpoint.directory or beside
    path = directory / ADAPTER_CONFIG if directory else None
    return path if path is not None and path.is_file() else None


def adapter_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """adapter_config.json beside the weights, empty if there is none. Raises SeriesError if it is damaged."""
    path = _config_path(checkpoint)
    if path is None:
        return {}
    try:
        found = read_json(path, _LARGEST_CONFIG)
    except JsonError:
        found = None
    if not isinstance(found, dict):
        raise SeriesError("is no configuration of an adapter", file=path, hint="save the adapter again")
    return found


def is_linear(checkpoint: Checkpoint) -> bool:
    """Whether an adapter is of a type whose update is linear in its tensors, so that their average is the update's."""
    if checkpoint.directory is None:
        return False
    config = adapter_config(checkpoint)
    # mlx-lm's fine_tune_type full: the weights themselves.
    return str(config.get("peft_type")).upper() in _LINEAR or config.get("fine_tune_type") == "full"


def recorded_kind(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str | None:
    """What an adapter is called whose configuration says that its update is no product of two factors; else None."""
    return next(filter(None, map(_kind_by_config, (config, *_metadata_configs(checkpoint)))), None)


def _kind_by_config(config: Mapping[str, Any]) -> str | None:
    if not config:
        return None
    mlx = config.get("fine_tune_type", "lora" if "lora_parameters" in config else None)  # the first versions have none
    named = config.get("peft_type", "LORA" if mlx in ("lora", "dora") else None)
    if str(named).upper() != "LORA":
        return shown(named)
    return "DoRA" if mlx == "dora" else next((name for key, name in _VARIANTS.items() if config.get(key)), None)


def _metadata_configs(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """The configurations that diffusers keeps in metadata, one a model of the pipeline."""
    models: dict[str, dict[str, Any]] = {}
    for key, value in _json_metadata(checkpoint).items():
        model, _, name = key.rpartition(".")
        models.setdefault(model, {"peft_type": "LORA"})[name] = value
    yield from models.values()


def _json_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in checkpoint.files:
        try:
            value = json.loads(file.metadata.get(_JSON_METADATA, "{}"))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise SeriesError(
                f"has {_JSON_METADATA} that is no configuration", file=file.path, hint="save the adapter again"
            )
        found |= value
    return found


def recorded_scales(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """What scales the updates of an adapter, as its configuration and its metadata have it, by name."""
    found = {key: config[key] for key in _SCALING if key in config}
    return found | metadata_scales(checkpoint)


def metadata_scales(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those that are recorded in the files of the weights themselves."""
    texts = {key: value for file in checkpoint.files for key, value in file.metadata.items()}
    found: dict[str, Any] = {k: v for k, v in texts.items() if k.rpartition(".")[2] in _SCALING_METADATA}
    return found | {k: v for k, v in _json_metadata(checkpoint).items() if k.rpartition(".")[2] in _SCALING}


def with_rank(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The configuration for factors of another rank, the scaling s as it was. Raises UsageError where r says more."""
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_THE_BASE):
        raise UsageError(
            f"--lora-rank: these adapters began with {begun}, which changes the base model by their rank",
            hint="leave it out: each update keeps its rank",
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UsageError(
            "--lora-rank sets one rank for all, and these adapters have several",
            hint="leave it out: each update keeps its rank",
        )
    mlx = config.get("lora_parameters")
    if isinstance(mlx, dict) and "scale" in mlx and "r" not in config:  # mlx-lm's scale is the whole of it
        return {**config, "lora_parameters": {**mlx, "rank": rank}}
    r, alpha = config.get("r"), config.get("lora_alpha")
    error = UsageError(f"--lora-rank needs r and lora_alpha in {ADAPTER_CONFIG}")
    if type(r) is not int or r < 1:
        raise error
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise error
    scaled = alpha * (math.sqrt(rank / r) if config.get("use_rslora") else rank / r)
    changed = {**config, "r": rank, "lora_alpha": int(scaled) if scaled == int(scaled) else scaled}
    return {**changed, "init_lora_weights": True} if begun in _PARTICULAR_ABOUT_RANKS else changed


def shown(value: Any) -> str:
    """A recorded value as text of a length that fits in a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
