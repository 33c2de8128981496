"""What two real processes do, for test_distributed.py to look at: `python -m tests.training.ranks RANK DIRECTORY`.

Each scenario is a training that one process can do as well, on the whole batch; a result is what a rank saw of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from belay_cli.errors import UsageError
from belay_cli.training import Belay
from tests.training.models import data, network

RANKS, ROWS, STEPS = 2, 4, 6

# name -> optimizer, its options, Belay's options; the weights are float32, but for "narrow"
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any], dict[str, Any]]] = {
    "average": (SGD, {"lr": 0.05, "momentum": 0.9}, {"half_life": 5}),
    "inertia": (SGD, {"lr": 0.05}, {"half_life": 5, "inertia": 0.5, "feedback": 0.5}),
    "explicit": (SGD, {"lr": 0.05}, {"half_life": 5, "stiffness": 1.0, "implicit": False, "warmup": None}),
    "metric": (
        AdamW,
        {"lr": 0.01, "foreach": False, "eps": 1e-6},
        {"half_life": 5, "stiffness": 0.5, "metric": "optimizer"},
    ),
    "narrow": (SGD, {"lr": 0.05}, {"half_life": 5, "stiffness": 1.0}),
}


def dtype_of(kind: str) -> torch.dtype:
    return torch.bfloat16 if kind == "narrow" else torch.float32


class Uneven(nn.Module):
    """Five rows on two ranks, one row on two, and a parameter that is not sharded."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner = nn.Linear(3, 5)
        self.outer = nn.Linear(5, 1)
        self.whole = nn.Parameter(torch.ones(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g))
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.outer(self.inner(x).tanh()) * self.whole
        return result


def optimizer_of(kind: str, model: nn.Module) -> Optimizer:
    make, options, _ = KINDS[kind]
    return make(model.parameters(), **options)


def begin(kind: str, model: nn.Module) -> tuple[nn.Module, Optimizer, Belay]:
    optimizer = optimizer_of(kind, model)
    return model, optimizer, Belay(optimizer, model=model, **KINDS[kind][2])


def train(model: nn.Module, optimizer: Optimizer, steps: Iterable[int], rank: int | None = None) -> None:
    """On the rows of this rank, or on all of them."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        x, y = data(step, dtype, RANKS * ROWS)
        if rank is not None:
            x, y = (t[rank * ROWS : (rank + 1) * ROWS] for t in (x, y))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        for p in model.parameters() if rank is not None and not isinstance(model, DistributedDataParallel) else ():
            if not isinstance(p, DTensor) and p.grad is not None:  # FSDP leaves it alone
                dist.all_reduce(p.grad)
                p.grad /= RANKS
        optimizer.step()


def evaluated(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(data(99, next(model.parameters()).dtype)[0])
    return output


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def sharded(mesh: Any, dtype: torch.dtype = torch.float32) -> Uneven:
    model = Uneven(dtype)
    fully_shard(model.inner, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.whole})
    return model


def seen(model: nn.Module, belay: Belay) -> dict[str, Any]:
    """All that there is, with the parts of the other rank."""
    state = belay.state_dict()
    parts = {k: {n: whole(t) for n, t in state[k].items()} for k in ("average", "velocity", "carry")}
    return {**state, **parts, "x": {name: whole(p) for name, p in model.named_parameters()}}


# ---- data parallel


def parallel(kind: str, rank: int) -> dict[str, Any]:
    inner = network(dtype_of(kind))
    model, optimizer, belay = begin(kind, DistributedDataParallel(inner))
    train(model, optimizer, range(STEPS), rank)
    result = seen(inner, belay)
    before = evaluated(model)
    with belay.averaged():
        result["inside"] = evaluated(model)
    result["unchanged"] = torch.equal(evaluated(model), before)
    belay.save(f"parallel-{kind}.safetensors")
    return result


# ---- sharded


def cut(tensor: DTensor) -> tuple[Any, ...]:
    return tensor.placements, tensor.device_mesh, tensor.to_local().shape


def placed(model: nn.Module, belay: Belay) -> bool:
    """Whether each tensor of the state is a DTensor as its parameter is, cut in the same places."""
    state = belay.state_dict()
    named = dict(model.named_parameters())
    for part in ("average", "velocity", "carry"):
        for name, held in state[part].items():
            p = named[name]
            if not isinstance(p, DTensor):
                if type(held) is not torch.Tensor:
                    return False
            elif cut(held) != cut(p):
                return False
    return True


def fsdp(kind: str, rank: int, mesh: Any) -> dict[str, Any]:
    model, optimizer, belay = begin(kind, sharded(mesh, dtype_of(kind)))
    fresh = belay.state_dict()
    train(model, optimizer, range(STEPS), rank)
    result = seen(model, belay)
    result["keys"] = [list(fresh[part]) for part in ("average", "velocity", "carry")]
    result["placed"] = placed(model, belay)
    result["rows"] = {n: p.to_local().shape[0] for n, p in model.named_parameters() if isinstance(p, DTensor)}

    result["before"] = evaluated(model)  # of the root all is gathered now, and stays so
    with belay.averaged():
        result["inside"] = evaluated(model)
        result["stored inside"] = belay.averaged_state_dict()
        within = belay.state_dict()
        result["inside state"] = {name: whole(t) for name, t in within["average"].items()}
        result["inside again"] = evaluated(model)  # the last thing within, so that it is gathered when that ends
    result["after"] = evaluated(model)
    result["result"] = belay.averaged_state_dict()
    belay.save(f"fsdp-{kind}.safetensors", step=17)

    state: dict[str, Any] = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer),
        "belay": belay,
    }
    dcp.save(state, checkpoint_id=f"dcp-{kind}")
    train(model, optimizer, range(STEPS, 2 * STEPS), rank)
    result["straight"] = seen(model, belay)

    model, optimizer, belay = begin(kind, sharded(mesh, dtype_of(kind)))
    state = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer), "belay": belay}
    result["counted by reading"] = belay.steps
    dcp.load(state, checkpoint_id=f"dcp-{kind}")
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"])
    result["counted by loading"] = belay.steps
    train(model, optimizer, range(STEPS, 2 * STEPS), rank)
    result["resumed"] = seen(model, belay)
    return result


def while_gathered(rank: int, mesh: Any) -> dict[str, Any]:
    """Belay is made when an evaluation has just left the root's parameters gathered."""
    model = sharded(mesh)
    optimizer = optimizer_of("average", model)
    evaluated(model)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(STEPS), rank)
    return seen(model, belay)


def two_meshes(rank: int, mesh: Any) -> dict[str, Any]:
    """A part is sharded over the ranks, the rest over a mesh of two dimensions, and one parameter not at all."""
    parts = Uneven()
    fully_shard(parts.inner, mesh=mesh)
    fully_shard(
        parts,
        mesh=init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("copies", "shards")),
        ignored_params={parts.whole},
    )
    model, optimizer, belay = begin("average", parts)
    get_optimizer_state_dict(model, optimizer)
    counted = belay.steps
    train(model, optimizer, range(STEPS), rank)
    return {**seen(model, belay), "counted by reading": counted, "placed": placed(model, belay)}


def by_the_first_fsdp(rank: int, mesh: Any) -> dict[str, Any]:
    model = FullyShardedDataParallel(network(torch.float32), device_id=torch.device("cpu"))
    try:
        Belay(optimizer_of("average", model), model=model, half_life=5)
    except UsageError as error:
        return {"refused": str(error), "hint": error.hint}
    return {}


def without_a_model(rank: int, mesh: Any) -> dict[str, Any]:
    model = sharded(mesh)
    optimizer = optimizer_of("average", model)
    belay = Belay(optimizer, half_life=5)
    train(model, optimizer, range(1), rank)
    before = evaluated(model)
    try:
        belay.eval()
    except UsageError as error:
        return {"refused": str(error), "hint": error.hint, "unchanged": torch.equal(evaluated(model), before)}
    return {}


def first_step_at_rate_zero(rank: int, mesh: Any) -> dict[str, Any]:
    """One gradient is not 0, on one rank, and both count the step."""
    model, optimizer, belay = begin("average", sharded(mesh))
    optimizer.param_groups[0]["lr"] = 0.0
    counted = []
    for value in (0.0, 1.0):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        grad = model.get_parameter("inner.weight").grad
        if isinstance(grad, DTensor) and rank == 1:
            grad.to_local()[-1, -1] = value
        optimizer.step()
        counted.append(belay.steps)
    return {"counted": counted}


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.chdir(directory)
    # A file rather than a port, which somebody else might take in between.
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    scenarios: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"parallel {kind}": partial(parallel, kind, rank) for kind in KINDS},
        **{f"fsdp {kind}": partial(fsdp, kind, rank, mesh) for kind in KINDS},
        "while gathered": partial(while_gathered, rank, mesh),
        "two meshes": partial(two_meshes, rank, mesh),
        "by the first FSDP": partial(by_the_first_fsdp, rank, mesh),
        "without a model": partial(without_a_model, rank, mesh),
        "rate zero": partial(first_step_at_rate_zero, rank, mesh),
    }
    results = {name: scenario() for name, scenario in scenarios.items()}
    torch.save(results, directory / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
