"""What trainers save, by layout: the table by which every format is held to the same decision.

A new layout, or a format that can hold it, is proved by a row here: `saved` is what lies in one checkpoint, `options`
how it is opened, and `expected` the tensors that are meant, or the message of the refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def model(seed: int, kind: str = "raw") -> Tensors:
    """The weights of a small model; the EMA and another model hold other values under the same names."""
    g = torch.Generator().manual_seed(1000 * ["raw", "ema", "other"].index(kind) + seed)
    return {
        "embed.weight": torch.randn(7, 3, generator=g),
        "block.0.weight": torch.randn(3, 3, generator=g).to(torch.bfloat16),
        "block.0.bias": torch.randn(3, generator=g),
        "seen": torch.tensor(seed),
    }


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@dataclass(frozen=True)
class Layout:
    """`flat`: one dict of names to tensors, which every format can hold."""

    saved: Callable[[int], dict[str, Any]]
    expected: Callable[[int], Tensors] | str
    options: Mapping[str, Any] = field(default_factory=dict)
    flat: bool = True


def raw(seed: int) -> Tensors:
    return model(seed)


def ema(seed: int) -> Tensors:
    return model(seed, "ema")


def _both(name: str, saved: Callable[[int], dict[str, Any]], where: tuple[str, str], **more: Any) -> dict[str, Layout]:
    """Raw weights and their EMA: refused until it is said which is meant, and each of them then."""
    prefix = more.pop("names", "")
    return {
        name: Layout(saved, f"holds raw weights ({where[0]}) and their EMA ({where[1]})", **more),
        f"{name}, raw": Layout(saved, lambda n: under(prefix, model(n)), {"source": "raw"}, **more),
        f"{name}, ema": Layout(saved, lambda n: under(prefix, model(n, "ema")), {"source": "ema"}, **more),
    }


def _undotted(n: int) -> Tensors:
    """Latent diffusion's LitEma keeps its EMA in buffers, whose names have no dots (ldm/modules/ema.py)."""
    return {f"model_ema.{name.replace('.', '')}": value for name, value in model(n, "ema").items()}


FLAT: dict[str, Layout] = {
    "plain": Layout(raw, raw),
    "plain, raw asked for": Layout(raw, raw, {"source": "raw"}),
    "plain, ema asked for": Layout(raw, "holds no EMA", {"source": "ema"}),
    "torch.compile": Layout(lambda n: under("_orig_mod.", model(n)), raw),
    "torch.compile inside": Layout(
        lambda n: {name.replace("block.", "block._orig_mod."): value for name, value in model(n).items()}, raw
    ),
    "DataParallel": Layout(lambda n: under("module.", model(n)), raw),
    "DataParallel of a compiled model": Layout(lambda n: under("module._orig_mod.", model(n)), raw),
    "FSDP": Layout(lambda n: under("_fsdp_wrapped_module.", model(n)), raw),
    "twice, with and without a prefix": Layout(
        lambda n: model(n) | under("_orig_mod.", model(n)), "twice, once with a prefix of torch.compile"
    ),
    **_both("ema.", lambda n: model(n) | under("ema.", model(n, "ema")), ("without ema.*", "ema.*")),
    **_both(
        "model. and model_ema.",
        lambda n: under("model.", model(n)) | under("model_ema.", model(n, "ema")),
        ("without model_ema.*", "model_ema.*"),
        names="model.",
    ),
    **_both(
        "net. and net_ema.",
        lambda n: under("net.", model(n)) | under("net_ema.", model(n, "ema")),
        ("without net_ema.*", "net_ema.*"),
        names="net.",
    ),
    **_both(
        "LitEma",
        lambda n: under("model.", model(n)) | _undotted(n) | {"model_ema.decay": torch.tensor(0.9)},
        ("without model_ema.*", "model_ema.*"),
        names="model.",
    ),
    **_both(
        "ema-pytorch",
        lambda n: (
            under("online_model.", model(n))
            | under("ema_model.", model(n, "ema"))
            | {"initted": torch.tensor(True), "step": torch.tensor(n)}
        ),
        ("without ema_model.*", "ema_model.*"),
    ),
    **_both(
        "an EMA in a wrapper",
        lambda n: under("model.", model(n)) | under("model_ema.module.", model(n, "ema")),
        ("without model_ema.*", "model_ema.*"),
        names="model.",
    ),
    **_both(
        "a compiled model and its AveragedModel",
        lambda n: (
            under("model._orig_mod.", model(n))
            | under("swa_model.module.", model(n, "ema"))
            | {"swa_model.n_averaged": torch.tensor(n)}
        ),
        ("without swa_model.*", "swa_model.*"),
        names="model.",
    ),
    **_both(
        "an EMA beside a wrapped model",
        lambda n: under("_orig_mod.", model(n)) | under("ema.", model(n, "ema")),
        ("without ema.*", "ema.*"),
    ),
    **_both(
        "an EMA under the same wrapper",
        lambda n: under("module.", model(n)) | under("module.ema.", model(n, "ema")),
        ("without ema.*", "ema.*"),
    ),
    **_both(
        "ema-pytorch inside a module",
        lambda n: (
            under("net.", model(n)) | under("ema.online_model.", model(n)) | under("ema.ema_model.", model(n, "ema"))
        ),
        ("without ema.*", "ema.*"),
        names="net.",
    ),
    **_both(
        "an EMA further in",
        lambda n: under("diffusion.model.", model(n)) | under("diffusion.ema.", model(n, "ema")),
        ("without diffusion.ema.*", "diffusion.ema.*"),
        names="diffusion.model.",
    ),
    "two EMAs": Layout(
        lambda n: model(n) | under("ema_fast.", model(n, "ema")) | under("ema_slow.", model(n, "other")),
        "holds several EMAs of the same weights (ema_fast.*, ema_slow.*)",
        {"source": "ema"},
    ),
    "two EMAs, one by its prefix": Layout(
        lambda n: model(n) | under("ema_fast.", model(n, "ema")) | under("ema_slow.", model(n, "other")),
        ema,
        {"state_key": "ema_fast"},
    ),
    "what only the EMA has": Layout(
        lambda n: model(n) | under("ema.", model(n, "ema")) | {"ema.extra": torch.full((2,), float(n))},
        lambda n: model(n, "ema") | {"extra": torch.full((2,), float(n))},
        {"source": "ema"},
    ),
    "only an AveragedModel under DataParallel": Layout(
        lambda n: under("module.module.", model(n, "ema")) | {"module.n_averaged": torch.tensor(n)},
        "holds only an average of weights (with n_averaged)",
    ),
    "AveragedModel": Layout(
        lambda n: under("module.", model(n, "ema")) | {"n_averaged": torch.tensor(n)},
        "holds only an average of weights (with n_averaged)",
    ),
    "AveragedModel, ema": Layout(
        lambda n: under("module.", model(n, "ema")) | {"n_averaged": torch.tensor(n)}, ema, {"source": "ema"}
    ),
    "only an EMA": Layout(lambda n: under("ema_model.", model(n)), "holds only an average of weights (ema_model.*)"),
    "a module that is called ema": Layout(
        lambda n: model(n) | {"ema_gate.weight": torch.full((2,), float(n))},
        lambda n: model(n) | {"ema_gate.weight": torch.full((2,), float(n))},
    ),
    "a prefix that is asked for": Layout(
        lambda n: under("generator.", model(n)) | under("discriminator.", model(n, "other")),
        raw,
        {"state_key": "generator"},
    ),
    "a prefix that is not there": Layout(raw, "holds no state dict under 'unet'", {"state_key": "unet"}),
    "an EMA by its prefix": Layout(
        lambda n: model(n) | under("ema.", model(n, "ema")), ema, {"state_key": "ema"}
    ),
}  # fmt: skip

NESTED: dict[str, Layout] = {
    **{
        key: Layout(lambda n, key=key: {key: model(n), "optimizer": optimizer(), "epoch": n}, raw)  # type: ignore[misc]
        for key in ("state_dict", "model", "model_state_dict", "module", "net", "params")
    },
    "model.state_dict": Layout(lambda n: {"model": {"state_dict": model(n)}}, raw),
    "an application": Layout(lambda n: {"app": {"model": model(n), "optim": optimizer()}}, raw),
    "at the top, beside an optimizer": Layout(lambda n: model(n) | {"optimizer": optimizer()}, raw),
    "compiled, under a key": Layout(lambda n: {"model": under("_orig_mod.", model(n))}, raw),
    "a key that is asked for": Layout(
        lambda n: {"nets": {"g": model(n), "d": model(n, "other")}}, raw, {"state_key": "nets.g"}
    ),
    "several": Layout(
        lambda n: {"g": model(n), "d": model(n, "other")}, "holds several state dicts: weights lie under g, d"
    ),
    "g, d and g_ema": Layout(
        lambda n: {"g": model(n), "d": model(n, "other"), "g_ema": model(n, "ema")},
        "holds several state dicts: g, d, and an EMA g_ema",
    ),
    "g, d and g_ema, raw": Layout(
        lambda n: {"g": model(n), "d": model(n, "other"), "g_ema": model(n, "ema")},
        "holds several state dicts: g, d, and an EMA g_ema",
        {"source": "raw"},
    ),
    "g, d and g_ema, ema": Layout(
        lambda n: {"g": model(n), "d": model(n, "other"), "g_ema": model(n, "ema")}, ema, {"source": "ema"}
    ),
    "a key beside the EMA": Layout(
        lambda n: {"model": model(n), "ema": model(n, "ema")}, "holds no EMA", {"state_key": "model", "source": "ema"}
    ),
    **_both("model and ema", lambda n: {"model": model(n), "ema": model(n, "ema")}, ("model", "ema")),
    **_both(
        "timm", lambda n: {"state_dict": model(n), "state_dict_ema": model(n, "ema")}, ("state_dict", "state_dict_ema")
    ),
    **_both("BasicSR", lambda n: {"params": model(n), "params_ema": model(n, "ema")}, ("params", "params_ema")),
    **_both("icefall", lambda n: {"model": model(n), "model_avg": model(n, "ema")}, ("model", "model_avg")),
    **_both("YOLOX", lambda n: {"model": model(n), "ema": {"module": model(n, "ema")}}, ("model", "ema.module")),
    **_both(
        "Lightning", lambda n: {"state_dict": model(n, "ema"), "current_model_state": model(n)},
        ("current_model_state", "state_dict"),
    ),
    **_both(
        "mmengine",
        lambda n: {
            "state_dict": model(n, "ema"),
            "ema_state_dict": {"steps": torch.tensor(n)} | under("module.", model(n)),
        },
        ("ema_state_dict", "state_dict"),
    ),
    "only under the key of an EMA": Layout(
        lambda n: {"params_ema": model(n)}, "holds only an average of weights (params_ema)"
    ),
    "weights at the top, an EMA under a key": Layout(lambda n: model(n) | {"ema": model(n, "ema")}, raw),
    "weights at the top, an EMA under a key, ema": Layout(
        lambda n: model(n) | {"ema": model(n, "ema")}, ema, {"source": "ema"}
    ),
    "weights at the top, an EMA under a key, raw": Layout(
        lambda n: model(n) | {"ema": model(n, "ema")}, raw, {"source": "raw"}
    ),
    "weights whose names hold a trainer's words, at the top": Layout(
        lambda n: under("upscaler.0.", model(n)) | {"att.time_decay": torch.ones(2), "optimizer": optimizer()},
        lambda n: under("upscaler.0.", model(n)) | {"att.time_decay": torch.ones(2)},
    ),
    "an upscaler": Layout(
        lambda n: {"upscaler": model(n), "optimizer": optimizer()},
        "holds no state dict under a usual key: weights lie under upscaler",
    ),
    "an EMA without the buffers": Layout(
        lambda n: {"model": model(n) | {"mean": torch.full((2,), float(n))}, "ema": model(n, "ema")},
        lambda n: model(n, "ema") | {"mean": torch.full((2,), float(n))},
        {"source": "ema"},
    ),
    "an EMA deeper": Layout(
        lambda n: {"model": model(n), "extra_state": {"ema": model(n, "ema")}},
        "holds no EMA under a usual key; one lies under extra_state.ema",
        {"source": "ema"},
    ),
    "an EMA deeper, by its key": Layout(
        lambda n: {"model": model(n), "extra_state": {"ema": model(n, "ema")}}, ema, {"state_key": "extra_state.ema"}
    ),
    "an EMA without names": Layout(
        lambda n: {"model": model(n), "ema": {"shadow_params": list(model(n, "ema").values())}},
        "holds ",  # in DCP the places in a list are keys
        {"source": "ema"},
    ),
    "nothing but an optimizer": Layout(lambda n: {"optimizer": optimizer()}, "holds no state dict; its keys are"),
}  # fmt: skip
