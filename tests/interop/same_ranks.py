"""A training on three real processes, sharded, that goes on from an average in the files of its last checkpoint.

`python -m tests.interop.same_ranks RANK DIRECTORY`, for test_same_fsdp.py to look at.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import AdamW
from torch.utils._pytree import tree_map

RANKS, ROWS = 3, 4
SAVED, MORE = (2, 4, 6), 5  # steps
LAYOUTS = ("nested", "torchtitan")

Losses = list[float]


class Network(nn.Module):
    """Rows that three processes cannot share evenly, one row, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 7)
        self.inner = nn.Linear(7, 5)
        self.head = nn.Linear(5, 1)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.inner(self.embed(x).tanh()).tanh())
        return result


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(RANKS * ROWS, 6, generator=g)
    return x, x.prod(1, keepdim=True)


def sharded(mesh: DeviceMesh) -> nn.Module:
    model = Network()
    for part in (model.embed, model.inner, model):
        fully_shard(part, mesh=mesh)
    return model


def optimizer_of(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model: nn.Module, optimizer: AdamW, steps: Iterable[int], rank: int | None = None) -> Losses:
    """On the rows of this rank, or on all of them; the losses are those of all rows."""
    losses = []
    for step in steps:
        x, y = data(step)
        own = slice(None) if rank is None else slice(rank * ROWS, (rank + 1) * ROWS)
        optimizer.zero_grad()
        loss = (model(x[own]) - y[own]).square().mean()
        loss.backward()
        optimizer.step()
        loss = loss.detach()
        if rank is not None:
            dist.all_reduce(loss)
            loss /= RANKS
        losses.append(float(loss))
    return losses


class TrainState(Stateful):
    """What a trainer counts, saved as bytes."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "losses": [1.0, 2.0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def state_of(layout: str, model: nn.Module, optimizer: AdamW, counted: TrainState) -> dict[str, Any]:
    """As a trainer hands it to dcp: nested, or the model's weights at the top as torchtitan has them."""
    flat = StateDictOptions(flatten_optimizer_state_dict=layout == "torchtitan")
    weights, state = get_state_dict(model, optimizer, options=flat)
    if layout == "nested":
        return {"model": weights, "optim": state, "train_state": counted}
    return {**weights, "optimizer": state, "train_state": counted}


def put_back(layout: str, model: nn.Module, optimizer: AdamW, state: dict[str, Any]) -> None:
    flat = StateDictOptions(flatten_optimizer_state_dict=layout == "torchtitan")
    others = ("optimizer", "train_state")
    weights = state["model"] if layout == "nested" else {k: v for k, v in state.items() if k not in others}
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=state["optim" if layout == "nested" else "optimizer"],
        options=flat,
    )


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def saved(layout: str, step: int, state: dict[str, Any], rank: int, pair: DeviceMesh) -> None:
    """The first checkpoint is cut for two processes, the second is whole, the last is as the training has it."""
    where = f"{layout}/step-{step}"
    if step == SAVED[-1]:
        dcp.save(state, checkpoint_id=where)
        return
    full = tree_map(whole, state)
    if step == SAVED[0] and rank < 2:
        cut = tree_map(
            lambda v: distribute_tensor(v, pair, [Shard(0)]) if isinstance(v, torch.Tensor) and v.dim() else v, full
        )
        dcp.save(cut, checkpoint_id=where, process_group=pair.get_group())
    elif step == SAVED[1] and rank == 0:
        dcp.save(full, checkpoint_id=where, no_dist=True)
    dist.barrier()


def scenario(layout: str, rank: int, mesh: DeviceMesh, pair: DeviceMesh) -> dict[str, Any]:
    model, counted = sharded(mesh), TrainState()
    optimizer = optimizer_of(model)
    first = 0
    for step in SAVED:
        train(model, optimizer, range(first, step), rank)
        counted.step = first = step
        saved(layout, step, state_of(layout, model, optimizer, counted), rank, pair)
    straight = train(model, optimizer, range(SAVED[-1], SAVED[-1] + MORE), rank)
    if rank == 0:
        from belay_cli import average

        run = [f"{layout}/step-{step}" for step in SAVED]
        average(run, f"{layout}/same", method="uniform", format="same")
        average(run, f"{layout}/plain", method="uniform")
    dist.barrier()

    model, counted = sharded(mesh), TrainState()
    optimizer = optimizer_of(model)
    state = state_of(layout, model, optimizer, counted)
    dcp.load(state, checkpoint_id=f"{layout}/same")
    put_back(layout, model, optimizer, state)
    loaded = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    losses = train(model, optimizer, range(SAVED[-1], SAVED[-1] + MORE), rank)
    after = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    rows = {name: p.to_local().shape[0] for name, p in model.named_parameters() if isinstance(p, DTensor)}
    return {
        "straight": straight,
        "loaded": loaded,
        "losses": losses,
        "after": after,
        "rows": rows,
        "counted": counted.step,
        "seen": int(model.get_buffer("seen")),
    }


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.chdir(directory)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=RANKS)
    mesh, pair = init_device_mesh("cpu", (RANKS,)), DeviceMesh("cpu", [0, 1])
    torch.save({layout: scenario(layout, rank, mesh, pair) for layout in LAYOUTS}, f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
