"""Directories of torch.distributed.checkpoint: byte for byte what torch itself loads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from belay_cli.storage.files import OpenFiles, Stored
from belay_cli.storage.pieces import StoredPieces
from tests.formats.dcp.files import MODEL, STATE, contents, loaded, plain, read, refused, save, saved_flat

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


# ---- what torch loads


def test_a_model_with_its_optimizer(tmp_path: Path) -> None:
    train = {"step": 7, "losses": [1.0, 2.0]}
    directory = save(tmp_path / "step-7", {"model": MODEL, "optim": STATE, "train_state": train})
    weights = read(directory)
    assert contents(weights) == plain(MODEL) == plain(loaded(directory)["model"])
    assert [file.path.name for file in weights.files] == [".metadata", "__0_0.distcp"]
    assert weights.notes == ()
    assert all(isinstance(tensor.stored, Stored) for tensor in weights.tensors)


DTYPES_OF_TORCH = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    grid = torch.arange(210.0).reshape(5, 6, 7)
    state = {str(dtype): torch.randint(0, 255, (48,), dtype=torch.uint8).view(dtype) for dtype in DTYPES_OF_TORCH[:4]}
    state |= {str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES_OF_TORCH[4:]}
    state |= {
        "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "counter": torch.tensor(7),
        "nothing": torch.zeros(0),
        "no rows": torch.zeros(0, 3, dtype=torch.float16),
        "no columns": torch.zeros(4, 0),
        "transposed": grid.permute(2, 0, 1),
        "a part": grid[1:4, ::2, 3],
        "repeated": torch.arange(4.0).expand(3, 4),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "a parameter": torch.nn.Parameter(grid.clone()),
        "large": torch.randn(300, 301),
    }
    directory = save(tmp_path / "x", state)
    assert contents(read(directory)) == plain(state) == plain(loaded(directory))


class App(dcp.stateful.Stateful):
    def state_dict(self) -> dict[str, Any]:
        return {"model": MODEL, "optim": STATE, "epoch": 2}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


EXTRA = {"norm._extra_state": b"abc", "head._extra_state": {"a": 1}}
NOTED = {
    "a Stateful": ({"app": App()}, []),
    "torchtitan": ({**MODEL, "optimizer": STATE, "dataloader": {"rank": torch.ones(2)}, "train_state": {"n": 1}}, []),
    "torchtitan before": ({"model": MODEL, "optimizer": STATE, "lr_scheduler": {"a": 1}}, []),
    "Lightning": ({"state_dict": MODEL, "optimizer_0": STATE}, []),
    "by itself": (MODEL, []),
    "in a wrapper": ({"model": {"model_state_dict": MODEL}}, []),
    "compiled": (
        {"model": {f"_orig_mod.{name}": value for name, value in MODEL.items()}},
        ["names are taken without the _orig_mod. of torch.compile"],
    ),
    "parallel": (
        {f"module.{name}": value for name, value in MODEL.items()},
        ["names are taken without the module. of DataParallel"],
    ),
    "states that are no tensors": (
        {"model": {**MODEL, **EXTRA, "version": 3}},
        [
            "leaves out 2 _extra_state, no tensors: norm._extra_state",
            "leaves out what is no tensor: version",
        ],
    ),
    "an EMA beside weights at the top": (
        {**MODEL, "ema": {name: value + 1 for name, value in MODEL.items()}},
        ["takes the weights at the top, not the EMA under ema"],
    ),
    "a random state": (
        {"model": MODEL, "rng_state": torch.ones(9)},
        [],
    ),
}


@pytest.mark.parametrize("layout", NOTED)
def test_where_trainers_put_the_model(tmp_path: Path, layout: str) -> None:
    state, notes = NOTED[layout]
    weights = read(save(tmp_path / "x", state))
    assert contents(weights) == plain(MODEL)
    assert list(weights.notes) == notes


@pytest.mark.parametrize("prefix", ["", "model.", "app.model."])
def test_names_without_a_record_of_their_keys(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in MODEL.items()}
    state |= {f"{prefix.removesuffix('model.')}optim.state.{name}": value for name, value in MODEL.items()}
    weights = read(saved_flat(tmp_path / "x", state))
    assert contents(weights) == plain(MODEL)
    assert "leaves out optim, by name a trainer's and not the model's" in weights.notes


def test_names_that_look_like_keys(tmp_path: Path) -> None:
    names = ("model.embed.weight", "model.sampler.weight", "model.optim.weight")
    state = {name: torch.full((2,), float(n)) for n, name in enumerate(names)}
    assert contents(read(save(tmp_path / "a", {"model": state}))) == plain(state)
    assert contents(read(save(tmp_path / "b", state))) == plain(state)
    short = {name.removeprefix("model."): value for name, value in state.items()}
    assert contents(read(saved_flat(tmp_path / "c", state))) == plain(short)
    assert contents(read(save(tmp_path / "d", {"scaler.weight": torch.ones(2)}))) == plain(
        {"scaler.weight": torch.ones(2)}
    )


def test_a_key_that_is_asked_for(tmp_path: Path) -> None:
    ema = {name: value + 1 for name, value in MODEL.items()}
    directory = save(tmp_path / "x", {"model": MODEL, "ema": {**ema, **EXTRA}, "sub": {"ema": ema}})
    error = refused(directory, "holds raw weights (model) and their EMA (ema)")
    assert error.hint.startswith("say which: --source raw or --source ema")
    assert contents(read(directory, source="raw")) == plain(MODEL)
    assert contents(read(directory, source="ema")) == plain(ema)
    assert contents(read(directory, state_key="model")) == plain(MODEL)
    weights = read(directory, state_key="ema")
    assert contents(weights) == plain(ema)
    assert weights.notes == ("leaves out 2 _extra_state, no tensors: norm._extra_state",)
    assert contents(read(directory, state_key="sub.ema")) == plain(ema)
    for key in ("other", "", "model.conv.weight", "mod"):
        refused(directory, f"holds no state dict under '{key}': weights lie under model, ema, sub.ema", state_key=key)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optimizer": {"w": torch.ones(2)}}, "holds no state dict; its keys are: optimizer"),
        ({"ema": {"w": torch.ones(2)}, "optimizer": {"w": torch.ones(2)}}, "holds only an average of weights (ema)"),
        (
            {"app": {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}}},
            "holds raw weights (app.model) and their EMA (app.ema)",
        ),
        ({"step": 3}, "holds no state dict; its keys are: step"),
        ({"g": {"w": torch.ones(2)}, "d": {"w": torch.ones(2)}}, "holds several state dicts: weights lie under g, d"),
    ],
)
def test_checkpoints_that_do_not_say_which_is_the_model(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    refused(save(tmp_path / "x", state), message)


def test_a_tensor_at_the_top_beside_the_model(tmp_path: Path) -> None:
    weights = read(save(tmp_path / "x", {"model": MODEL, "epoch": torch.ones(()), "codes": torch.ones(3)}))
    assert contents(weights) == plain(MODEL)
    assert weights.notes == ("leaves out what lies at the top, under no key of weights: codes",)


def test_an_ema_inside_the_names(tmp_path: Path) -> None:
    directory = save(tmp_path / "x", {"net.w": torch.ones(2), "model_ema.w": torch.zeros(2)})
    refused(directory, "holds raw weights (without model_ema.*) and their EMA (model_ema.*)")
    assert contents(read(directory, source="raw")) == plain({"net.w": torch.ones(2)})
    assert contents(read(directory, source="ema")) == plain({"net.w": torch.zeros(2)})


# ---- several processes


WORKER = """
    import sys, warnings
    import torch
    warnings.simplefilter("ignore")
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    rank, out = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def net():
        torch.manual_seed(0)
        linear = torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)
        return torch.nn.Sequential(*linear, torch.nn.BatchNorm1d(7), torch.nn.Conv2d(3, 3, 2))

    def stepped(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        model, state = get_state_dict(model, optimizer)
        return {"model": model, "optim": state, "train_state": {"step": 3}}

    sharded = net()
    fully_shard(sharded, mesh=mesh)
    dcp.save(stepped(sharded), checkpoint_id=f"{out}/fully_shard")
    older = FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=True)
    dcp.save({"app": stepped(older)}, checkpoint_id=f"{out}/fsdp")

    grid = torch.arange(35.0).reshape(5, 7)
    state = {
        "rows": distribute_tensor(grid, mesh, [Shard(0)]),
        "columns": distribute_tensor(grid, mesh, [Shard(1)]),
        "columns of bf16": distribute_tensor(grid.bfloat16(), mesh, [Shard(1)]),
        "one row": distribute_tensor(grid[:1], mesh, [Shard(0)]),
        "everywhere": distribute_tensor(grid, mesh, [Replicate()]),
        "inside": distribute_tensor(torch.arange(60).reshape(3, 4, 5), mesh, [Shard(1)]),
        "at the end": distribute_tensor(torch.arange(60).reshape(3, 4, 5), mesh, [Shard(2)]),
        "counter": torch.tensor(3),
    }
    for shape in ((2, 1), (1, 2)):
        both = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b"))
        state[f"both {shape}"] = distribute_tensor(grid, both, [Shard(0), Shard(1)])
    dcp.save(state, checkpoint_id=f"{out}/tensors")
    dcp.async_save({"model": state}, checkpoint_id=f"{out}/async").result()
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}
    if rank == 0:
        torch.save(whole, f"{out}/whole.pt")
        torch.save(net().state_dict(), f"{out}/net.pt")
    dist.barrier()
    dist.destroy_process_group()
"""


def test_shards_of_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    workers = [subprocess.Popen([sys.executable, script, str(rank), tmp_path]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    net, whole = plain(torch.load(tmp_path / "net.pt")), plain(torch.load(tmp_path / "whole.pt"))
    for name, expected in (("fully_shard", net), ("fsdp", net), ("tensors", whole), ("async", whole)):
        weights = read(tmp_path / name)
        assert contents(weights) == expected
        assert {file.path.name for file in weights.files} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    pieces = {tensor.name: tensor.stored for tensor in read(tmp_path / "fully_shard").tensors}
    assert [piece.sizes for piece in pieces["0.weight"].pieces] == [(3, 6), (2, 6)]
    assert isinstance(pieces["1.weight"], Stored)  # one row: nothing of it for the second process
    columns = {tensor.name: tensor.stored for tensor in read(tmp_path / "tensors").tensors}["columns"]
    assert isinstance(columns, StoredPieces)
    with OpenFiles(2) as files:
        for begin in range(0, 140, 12):
            buffer = bytearray(min(24, 140 - begin))
            columns.read_into(files, memoryview(buffer), begin)
            assert bytes(buffer) == whole["columns"][2][begin : begin + 24]


# ---- what is read


def test_a_large_directory_is_read_at_its_headers(tmp_path: Path) -> None:
    state = {f"layers.{n}.weight": torch.randn(150, 150) for n in range(20)} | {"small": torch.ones(3)}
    directory = save(tmp_path / "x", {"model": state, "optim": {"w": torch.randn(1000, 1000)}})
    with open(directory / "__0_0.distcp", "r+b") as file:
        file.truncate(1 << 40)
    log: list[tuple[str, int, int]] = []
    tracemalloc.start()
    try:
        weights = read(directory, log)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert contents(weights) == plain(state)
    assert peak < 8 << 20
    assert len([entry for entry in log if entry[0] != ".metadata"]) <= 2 * 21
    assert sum(count for _, _, count in log) < 21 * 71_000


def test_torch_is_not_imported(tmp_path: Path) -> None:
    directory = save(tmp_path / "x", {"model": MODEL})
    program = (
        "import sys; from pathlib import Path; from belay_cli.checkpoints import open_checkpoint;"
        f"assert len(open_checkpoint(Path(sys.argv[1])).tensors) == {len(MODEL)}; sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(directory)]
    assert subprocess.run(command, timeout=60).returncode == 0
