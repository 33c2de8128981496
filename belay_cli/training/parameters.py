"""What is averaged, by name: names of a model or of an optimizer, and tensors as this process holds them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer

from belay_cli.errors import UsageError

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")  # of torch.compile, and of activation checkpointing


def innermost_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, inside the wrappers of accelerate and Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):  # DeepSpeed's
        raise UsageError(f"a {type(optimizer).__name__} is no torch.optim.Optimizer, whose step could be followed")
    return optimizer


def innermost_model(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UsageError(
            "the model is sharded by the first FSDP, whose parameters are not those of its state dict",
            hint="take FSDP2: torch.distributed.fsdp.fully_shard, fsdp_version 2 of accelerate",
        )
    return model


def plain_name(name: str) -> str:
    """A parameter's name without the parts that wrappers put into it."""
    for part in _WRAPPERS:
        name = name.replace(part, "")
    return name


def trained(optimizer: Optimizer, model: nn.Module | None) -> Iterator[tuple[str, int, nn.Parameter]]:
    """Name, group and parameter of all that the optimizer trains now; frozen ones are left out.

    The names are the model's, or those that the optimizer was made with (`named_parameters()`), or, where there are
    none, places in the optimizer. A shared parameter has its first name. Raises UsageError for a parameter that is not
    the model's.
    """
    names = {} if model is None else {p: plain_name(name) for name, p in model.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        given = group.get("param_names")
        for i, parameter in enumerate(group["params"]):
            if not parameter.requires_grad:
                continue
            if model is not None and parameter not in names:
                raise UsageError(
                    f"parameter {i} of group {index} of the optimizer is not one of the model's",
                    hint="give the model that the optimizer was made for",
                )
            place = given[i] if given else f"param_groups.{index}.{i}"
            yield names.get(parameter, plain_name(place)), index, parameter


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, sharing its memory; complex numbers as pairs of real ones."""
    part = tensor.detach()
    if hasattr(part, "to_local"):
        with torch.no_grad():
            part = part.to_local()
    return torch.view_as_real(part) if part.is_complex() else part


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether other processes hold other parts of it (a DTensor)."""
    return hasattr(tensor, "to_local")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the average of a parameter: its own, and float32 at least."""
    return torch.promote_types(dtype, torch.float32)
