"""Directories of torch.distributed.checkpoint: byte for byte what torch itself loads, and nothing executed."""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict

from belay_cli.checkpoints.meaning.understand import understand
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError
from belay_cli.formats.dcp import metadata as dcp_metadata
from belay_cli.formats.dcp import read_dcp
from belay_cli.formats.dtypes import DTYPES
from belay_cli.storage.files import OpenFiles, Stored, StoredFile, open_file
from belay_cli.storage.pieces import StoredPieces
from tests.reading import plainly

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

OTHER_NAMES = {torch.float8_e4m3fn: "float8_e4m3", torch.float8_e8m0fnu: "float8_e8m0"}


# ---- reading, and the oracle


def read(directory, log=None, **options):
    """What belay finds in the directory; `log` takes (file, offset, count) of every read."""
    with contextlib.ExitStack() as opened:

        def opens(name):
            file = opened.enter_context(open_file(Path(directory, name)))

            def read_at(offset, count):
                if log is not None:
                    log.append((name, offset, count))
                return file.read_at(offset, count)

            return StoredFile(Path(directory, name), file.size), read_at

        with read_dcp(Path(directory), opens) as found:
            weights = understand(found, Opening(**options), stem="model", directory=Path(directory), named_ema=None)
        return plainly(weights, Path(directory))


def contents(weights):
    """Name -> dtype, shape, bytes."""
    found = {}
    with OpenFiles(4) as files:
        for tensor in weights.tensors:
            count = DTYPES[tensor.dtype].bits // 8
            for n in tensor.shape:
                count *= n
            buffer = bytearray(count)
            tensor.stored.read_into(files, memoryview(buffer), 0)
            found[tensor.name] = (DTYPES[tensor.dtype].name, tensor.shape, bytes(buffer))
    return found


def plain(tensors):
    """The same of tensors of torch."""
    return {
        name: (
            OTHER_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")),
            tuple(tensor.shape),
            tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def loaded(directory):
    """The whole checkpoint as torch loads it, nested as it was saved."""
    file = io.BytesIO()
    dcp_to_torch_save(directory, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def refused(directory, message, *, file=None, tensor=None, **options):
    """It is refused in these words, and the error says where and what to do."""
    with pytest.raises(CheckpointError) as caught:
        read(directory, **options)
    error = caught.value
    assert message in error.message, error.message
    assert Path(error.file).name == (file or Path(directory).name)
    assert error.tensor == tensor
    assert error.hint and "\n" not in error.message + error.hint and len(error.message) < 500
    return error


# ---- what to save


class Net(torch.nn.Module):
    """Parameters, buffers, and a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5, dtype=torch.bfloat16)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)).bfloat16())


def trained():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return net, optimizer


NET, OPTIMIZER = trained()
MODEL, STATE = get_state_dict(NET, OPTIMIZER)


def save(directory, state, **options):
    dcp.save(state, checkpoint_id=directory, no_dist=True, **options)
    return directory


def saved_flat(directory, state):
    """As planners save that know no nested keys."""
    return save(directory, state, planner=DefaultSavePlanner(flatten_state_dict=False))


# ---- what torch loads


def test_a_model_with_its_optimizer(tmp_path):
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


def test_every_dtype_and_layout(tmp_path):
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
    def state_dict(self):
        return {"model": MODEL, "optim": STATE, "epoch": 2}

    def load_state_dict(self, state):
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
def test_where_trainers_put_the_model(tmp_path, layout):
    state, notes = NOTED[layout]
    weights = read(save(tmp_path / "x", state))
    assert contents(weights) == plain(MODEL)
    assert list(weights.notes) == notes


@pytest.mark.parametrize("prefix", ["", "model.", "app.model."])
def test_names_without_a_record_of_their_keys(tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in MODEL.items()}
    state |= {f"{prefix.removesuffix('model.')}optim.state.{name}": value for name, value in MODEL.items()}
    weights = read(saved_flat(tmp_path / "x", state))
    assert contents(weights) == plain(MODEL)
    assert "leaves out optim, by name a trainer's and not the model's" in weights.notes


def test_names_that_look_like_keys(tmp_path):
    names = ("model.embed.weight", "model.sampler.weight", "model.optim.weight")
    state = {name: torch.full((2,), float(n)) for n, name in enumerate(names)}
    assert contents(read(save(tmp_path / "a", {"model": state}))) == plain(state)
    assert contents(read(save(tmp_path / "b", state))) == plain(state)
    short = {name.removeprefix("model."): value for name, value in state.items()}
    assert contents(read(saved_flat(tmp_path / "c", state))) == plain(short)
    assert contents(read(save(tmp_path / "d", {"scaler.weight": torch.ones(2)}))) == plain(
        {"scaler.weight": torch.ones(2)}
    )


def test_a_key_that_is_asked_for(tmp_path):
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
def test_checkpoints_that_do_not_say_which_is_the_model(tmp_path, state, message):
    refused(save(tmp_path / "x", state), message)


def test_a_tensor_at_the_top_beside_the_model(tmp_path):
    weights = read(save(tmp_path / "x", {"model": MODEL, "epoch": torch.ones(()), "codes": torch.ones(3)}))
    assert contents(weights) == plain(MODEL)
    assert weights.notes == ("leaves out what lies at the top, under no key of weights: codes",)


def test_an_ema_inside_the_names(tmp_path):
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


def test_shards_of_two_processes(tmp_path):
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


def test_a_large_directory_is_read_at_its_headers(tmp_path):
    state = {f"layers.{n}.weight": torch.randn(150, 150) for n in range(20)} | {"small": torch.ones(3)}
    directory = save(tmp_path / "x", {"model": state, "optim": {"w": torch.randn(1000, 1000)}})
    with open(directory / "__0_0.distcp", "r+b") as file:
        file.truncate(1 << 40)
    log = []
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


def test_torch_is_not_imported(tmp_path):
    directory = save(tmp_path / "x", {"model": MODEL})
    program = (
        "import sys; from pathlib import Path; from belay_cli.checkpoints import open_checkpoint;"
        f"assert len(open_checkpoint(Path(sys.argv[1])).tensors) == {len(MODEL)}; sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(directory)]
    assert subprocess.run(command, timeout=60).returncode == 0


# ---- other writers


def rewritten(directory, change, protocol=4):
    """Change the object in .metadata by torch's own classes."""
    path = directory / ".metadata"
    found = pickle.loads(path.read_bytes())
    change(found)
    path.write_bytes(pickle.dumps(found, protocol))
    return directory


def test_the_classes_of_other_writers(tmp_path):
    directory = rewritten(save(tmp_path / "a", MODEL), lambda _: None, protocol=2)
    text = (directory / ".metadata").read_bytes()
    own = b"ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n"
    assert own in text
    other = text.replace(own, b"colmo_core.distributed.checkpoint.filesystem\n_StorageInfo\n")
    (directory / ".metadata").write_bytes(other)
    assert contents(read(directory)) == plain(MODEL)
    place, older = b"torch.distributed.checkpoint", b"torch.distributed._shard.sharded_tensor"
    other = text.replace(place + b".metadata\nTensorProperties\n", older + b".metadata\nTensorProperties\n")
    other = other.replace(place + b".metadata\n_MEM_FORMAT_ENCODING\n", older + b".metadata\nMEM_FORMAT_ENCODING\n")
    assert other.count(older) == 2
    (directory / ".metadata").write_bytes(other)
    assert contents(read(directory)) == plain(MODEL)


class ByName(pickle.Pickler):
    """Members of enumerations as Python 3.11.0 pickled them."""

    def reducer_override(self, value):
        if isinstance(value, metadata._MEM_FORMAT_ENCODING):
            return getattr, (type(value), value.name)
        return NotImplemented


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_enumerations_of_python_3_11(tmp_path, protocol):
    directory = save(tmp_path / "x", MODEL)
    found = pickle.loads((directory / ".metadata").read_bytes())
    with open(directory / ".metadata", "wb") as file:
        ByName(file, protocol).dump(found)
    assert contents(read(directory)) == plain(MODEL)


def test_files_with_several_writers_and_strange_names(tmp_path):
    state = {
        "ü.weight": torch.ones(2),
        "a/b\\c": torch.zeros(3),
        "": torch.ones(1),
        ".": torch.ones(4),
        "x" * 5000: MODEL["conv.bias"],
    }
    writer = filesystem.FileSystemWriter(tmp_path / "x", thread_count=3, single_file_per_rank=False)
    save(tmp_path / "x", {"model": state}, storage_writer=writer)
    weights = read(tmp_path / "x")
    assert contents(weights) == plain(state)
    assert len(weights.files) == 6


# ---- what is refused


def test_saves_that_did_not_finish(tmp_path):
    directory = save(tmp_path / "x", {"model": MODEL})
    (directory / ".metadata").rename(tmp_path / "metadata")
    error = refused(directory, "holds *.distcp files but no .metadata")
    assert error.hint == "the save did not finish; leave the checkpoint out"
    (tmp_path / "metadata").rename(directory / ".metadata")
    (directory / "__0_0.distcp").unlink()
    first = next(iter(pickle.loads((directory / ".metadata").read_bytes()).storage_data)).fqn
    message = f"puts {first!r} into __0_0.distcp, which is not there"
    refused(directory, message, file=".metadata", tensor=first)
    (directory / "__0_0.distcp").mkdir()
    refused(directory, message, file=".metadata", tensor=first)


def place_of(found, name="w"):
    return next(index for index in found.storage_data if index.fqn == name)


def moved(**fields):
    def change(found):
        for name, value in fields.items():
            setattr(found.storage_data[place_of(found)], name, value)

    return change


def cut(*chunks):
    def change(found):
        found.state_dict_metadata["w"].chunks = [
            metadata.ChunkStorageMetadata(torch.Size(starts), torch.Size(sizes)) for starts, sizes in chunks
        ]

    return change


def of_dtype(dtype):
    def change(found):
        found.state_dict_metadata["w"].properties.dtype = dtype

    return change


def of_size(*size):
    def change(found):
        found.state_dict_metadata["w"].size = torch.Size(size)
        cut(((0,) * len(size), size))(found)

    return change


def attribute(name, value):
    return lambda found: setattr(found, name, value)


def elsewhere(found):
    index = place_of(found)
    found.storage_data[metadata.MetadataIndex("w", [1, 0])] = found.storage_data.pop(index)


def unhashable(found):
    object.__setattr__(place_of(found), "fqn", [])
    object.__setattr__(place_of(found, []), "offset", [])


def one_name(found):
    found.planner_data["other"] = found.planner_data["w"]


LIES = [
    (moved(relative_path="../x/__0_0.distcp"), "puts 'w' into '../x/__0_0.distcp', which is not a file of this dir"),
    (moved(relative_path="/etc/passwd"), "puts 'w' into '/etc/passwd', which is not a file of this directory"),
    (moved(relative_path="a\\b"), "puts 'w' into 'a\\\\b', which is not a file of this directory"),
    (moved(relative_path=".."), "puts 'w' into '..', which is not a file of this directory"),
    (moved(relative_path="C:x"), "puts 'w' into 'C:x', which is not a file of this directory"),
    (moved(relative_path=7), "puts 'w' into 7, which is not a file of this directory"),
    (moved(relative_path=10**5000), "puts 'w' into a number too large to show"),
    (moved(offset=-1), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(length=-1), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(length="9"), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(offset=10**5000), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(offset=True), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(transform_descriptors=["stream.zstd"]), "'w' is stored in a form of its own: ['stream.zstd']"),
    (cut(), "cannot be right: of 'w' a piece is missing"),
    (cut(((0, 0), (3, 5))), "cannot be right: of 'w' a piece is missing"),
    (cut(((0, 0), (4, 5)), ((0, 0), (4, 5))), "cannot be right: of 'w' two pieces overlap"),
    (cut(((0, 0), (3, 5)), ((2, 0), (1, 5))), "cannot be right: of 'w' two pieces overlap"),
    (cut(((1, 0), (4, 5))), "cannot be right: of 'w' a piece reaches outside it"),
    (cut(((0,), (20,))), "cannot be right: of 'w' a piece has another number of dimensions"),
    (cut(((2, 0), (2, 5)), ((0, 0), (2, 5))), "cannot be right: a piece of 'w' is nowhere"),
    (of_size(20), "cannot be right: a piece of 'w' is nowhere"),
    (elsewhere, "cannot be right: a piece of 'w' is nowhere"),
    (lambda found: found.storage_data.clear(), "cannot be right: a piece of 'w' is nowhere"),
    (lambda found: setattr(found.state_dict_metadata["w"], "chunks", None), "cannot be right: 'w' has no list of pie"),
    (lambda found: setattr(found.state_dict_metadata["w"], "size", (4, -5)), "cannot be right: a shape of 'w' is none"),
    (lambda found: setattr(found.state_dict_metadata["w"], "size", [4, 5]), "cannot be right: a shape of 'w' is none"),
    (lambda found: delattr(found.state_dict_metadata["w"], "size"), "cannot be right: something in it has no size"),
    (of_dtype(torch.qint8), "'w' is of dtype qint8, which safetensors does not have"),
    (of_dtype(torch.complex128), "'w' is of dtype complex128, which safetensors does not have"),
    (of_dtype(torch.float4_e2m1fn_x2), "'w' is of dtype float4_e2m1fn_x2, which safetensors does not have"),
    (of_dtype([]), "'w' is of dtype none, which safetensors does not have"),
    (of_dtype("float32"), "'w' is of dtype none, which safetensors does not have"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save(tmp_path_factory.mktemp("small") / "x", {"w": torch.arange(20.0).reshape(4, 5), "b": torch.ones(3)})


def copied(small, tmp_path):
    directory = tmp_path / "x"
    directory.mkdir()
    for entry in small.iterdir():
        (directory / entry.name).write_bytes(entry.read_bytes())
    return directory


@pytest.mark.parametrize(("change", "message"), LIES)
def test_metadata_that_lies_about_a_tensor(small, tmp_path, change, message):
    file = None if "of dtype" in message else ".metadata"  # a tensor that is no plain array may be dropped
    refused(rewritten(copied(small, tmp_path), change), message, file=file, tensor="w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("state_dict_metadata", None), "it has no state_dict_metadata"),
        (attribute("storage_data", []), "it has no storage_data"),
        (attribute("planner_data", "x"), "it has no planner_data"),
        (attribute("storage_data", {"w": 1}), "something in it has no fqn"),
        (unhashable, "a piece of 'w' is nowhere"),
    ],
)
def test_metadata_that_is_no_such_thing(small, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(rewritten(copied(small, tmp_path), change))
    assert caught.value.hint


def test_two_tensors_of_one_name(small, tmp_path):
    directory = save(tmp_path / "x", {"w": torch.ones(2), "other": torch.zeros(2)})
    refused(rewritten(directory, one_name), "'w' and 'other' have one name", file=".metadata", tensor="w")
    directory = save(tmp_path / "y", {"w": torch.ones(2), "_orig_mod.w": torch.zeros(2)})
    refused(directory, "has 'w' twice, once with a prefix", tensor="w")


def test_names_that_are_no_unicode(small, tmp_path):
    def change(found):
        found.planner_data["w"] = ("\ud800",)

    refused(rewritten(copied(small, tmp_path), change), "which is not one in Unicode", tensor="\ud800")


PIECES = [
    (moved(length=400), "holds a piece of 'w' that "),
    (moved(length=3), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(length=0), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(offset=8), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(length=1 << 40), "is cut short: 'w' should lie in it up to byte "),
    (moved(offset=(1 << 63) - 1), "is cut short: 'w' should lie in it up to byte "),
    (of_dtype(torch.bfloat16), "holds a piece of 'w' that is not 4×5 of bfloat16, as the metadata says"),
    (of_dtype(torch.int32), "holds a piece of 'w' that is not 4×5 of int32, as the metadata says"),
    (cut(((0, 0), (2, 5)), ((2, 0), (2, 5))), "holds a piece of 'w' that is not 2×5 of float32, as the metadata says"),
    (of_size(5, 4), "holds a piece of 'w' that is not 5×4 of float32, as the metadata says"),
    (of_size(1 << 40, 1 << 20), "holds a piece of 'w' that is not 1099511627776×1048576 of float32"),
]


@pytest.mark.parametrize(("change", "message"), PIECES)
def test_metadata_that_does_not_fit_its_files(small, tmp_path, change, message):
    refused(rewritten(copied(small, tmp_path), change), message, file="__0_0.distcp", tensor="w")


def with_piece(small, tmp_path, blob):
    """The checkpoint with these bytes as the piece of `w`."""
    directory = copied(small, tmp_path)
    (directory / "other.distcp").write_bytes(blob)
    return rewritten(directory, moved(relative_path="other.distcp", offset=0, length=len(blob)))


def blob(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def compressed(data, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


GRID = torch.arange(20.0).reshape(4, 5)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 400, "that is cut short: the directory at its end is not there"),
        (b"\0" * 400, "that is not as torch.save writes it"),
        (blob(GRID)[:-30], "that is cut short: the directory at its end is not there"),
        (compressed(blob(GRID)), "that is compressed ("),
        (blob({"w": GRID}), "that is no tensor"),
        (blob([GRID]), "that is no tensor"),
        (lambda: blob(GRID.to_sparse()), "that is sparse"),
        (blob(torch.zeros(1).expand(4, 5)), "that reaches outside its bytes: it needs 80 and has 4"),
        (lambda: blob(torch.quantize_per_tensor(GRID, 1.0, 0, torch.qint8)), "that is quantized"),
        (blob(GRID.double()), "that is not 4×5 of float32, as the metadata says"),
        (blob(GRID.T), "that is not 4×5 of float32, as the metadata says"),
    ],
)
def test_pieces_that_are_something_else(small, tmp_path, value, message):
    value = value() if callable(value) else value  # what warns is made inside the test
    refused(with_piece(small, tmp_path, value), f"holds a piece of 'w' {message}", file="other.distcp", tensor="w")


def test_a_piece_in_other_orders(small, tmp_path):
    for number, view in enumerate((GRID.T.contiguous().T, torch.stack([GRID, GRID + 1])[1], compressed)):
        (tmp_path / str(number)).mkdir()
        value = compressed(blob(GRID), zipfile.ZIP_STORED) if view is compressed else blob(view)
        expected = plain({"w": GRID if view is compressed else view})
        assert contents(read(with_piece(small, tmp_path / str(number), value)))["w"] == expected["w"]


def test_strides_that_say_nothing(tmp_path):
    odd = torch.arange(20.0).as_strided((1, 4, 5), (1 << 62, 1, 4))
    directory = save(tmp_path / "x", {"w": odd.contiguous()})
    data = blob(odd)
    (directory / "__0_0.distcp").write_bytes(data)
    rewritten(directory, moved(offset=0, length=len(data)))
    assert contents(read(directory)) == plain({"w": odd})


def test_pieces_in_safetensors(tmp_path):
    writer = filesystem.FileSystemWriter(tmp_path / "x", serialization_format=SerializationFormat.SAFETENSORS)
    save(tmp_path / "x", {"w": GRID}, storage_writer=writer)
    error = refused(tmp_path / "x", "that is not as torch.save writes it", file="__0_0.distcp", tensor="w")
    assert error.hint.endswith("by torch's own writer; save it so, or copy it again")


# ---- hostile files


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_does_not_run(small, tmp_path, protocol):
    directory = copied(small, tmp_path)
    rewritten(directory, attribute("storage_meta", Payload(tmp_path / "ran")), protocol)
    error = refused(directory, "needs more than its own classes to be read: it would import ", file=".metadata")
    assert "pathlib.Path" in error.message
    assert not (tmp_path / "ran").exists()


def test_a_payload_in_a_piece_does_not_run(small, tmp_path):
    directory = with_piece(small, tmp_path, blob(Payload(tmp_path / "ran")))
    refused(directory, "holds a piece of 'w' that would import ", file="other.distcp", tensor="w")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", sorted(dcp_metadata._ALLOWED))
def test_stand_ins_cannot_be_changed(tmp_path, name):
    stand_in = dcp_metadata._ALLOWED[name]
    before = {key: getattr(stand_in, key, None) for key in ("_call", "fields", "name", "dtype", "evil")}
    module, _, leaf = name.rpartition(".")
    for state in (
        b"}X\x04\x00\x00\x00evilK\x01s",
        b"N}X\x05\x00\x00\x00_callK\x01s\x86",
        b"N}X\x06\x00\x00\x00fieldsK\x01s\x86",
    ):
        for made in (b"", b")R", b")\x81"):
            (tmp_path / ".metadata").write_bytes(b"\x80\x02c" + f"{module}\n{leaf}\n".encode() + made + state + b"b.")
            with pytest.raises(CheckpointError):
                read(tmp_path)
    assert {key: getattr(stand_in, key, None) for key in before} == before


NEST = 10_000


def nested(found):
    """The pickle of an object in which the text `NEST` is a list in a list in a list …"""
    deep = b"]" * NEST + b"a" * (NEST - 1)
    text = b"X\x04\x00\x00\x00NEST"
    data = pickle.dumps(found, 2)
    at = data.index(text)
    put = data[at + len(text) : at + len(text) + 2]
    assert put[:1] == b"q"
    return data[:at] + deep + data[at + len(text) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(relative_path="NEST"), "puts 'w' into a nest, which is not a file of this directory"),
        (moved(transform_descriptors="NEST"), "'w' is stored in a form of its own: a nest"),
        (moved(offset="NEST"), "cannot be right: a piece of 'w' begins or ends nowhere"),
        (of_dtype("NEST"), "'w' is of dtype none, which safetensors does not have"),
        (lambda found: setattr(found.state_dict_metadata["w"], "size", "NEST"), "a shape of 'w' is none"),
    ],
)
def test_nests(small, tmp_path, change, message):
    directory = copied(small, tmp_path)
    found = pickle.loads((directory / ".metadata").read_bytes())
    change(found)
    (directory / ".metadata").write_bytes(nested(found))
    refused(directory, message, file=None if "of dtype" in message else ".metadata", tensor="w")


def test_nests_of_other_kinds(small, tmp_path):
    directory = copied(small, tmp_path)
    (directory / ".metadata").write_bytes(b"\x80\x02" + b"]" * NEST + b"a" * (NEST - 1) + b".")
    refused(directory, "cannot be right: it is not the metadata of a checkpoint", file=".metadata")
    (directory / ".metadata").write_bytes(b"\x80\x02})" + b"\x85" * NEST + b"Ns.")
    refused(directory, "cannot be read: ", file=".metadata")


def test_metadata_that_is_too_large(small, tmp_path, monkeypatch):
    monkeypatch.setattr(dcp_metadata, "LARGEST", 100)
    with pytest.raises(CheckpointError, match="too large for the metadata of a checkpoint"):
        read(small)


def test_truncated_anywhere(small, tmp_path):
    for name in (".metadata", "__0_0.distcp"):
        whole = (small / name).read_bytes()
        directory = tmp_path / name.strip(".")
        directory.mkdir()
        directory = copied(small, directory)
        for length in sorted({*range(0, len(whole), len(whole) // 30), 1, 2, 3, len(whole) - 1}):
            (directory / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError) as caught:
                read(directory)
            assert Path(caught.value.file).name == name
            assert caught.value.hint


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused_or_change_nothing_unsafe(small, tmp_path_factory, data):
    directory = copied(small, tmp_path_factory.mktemp("changed"))
    path = directory / data.draw(st.sampled_from([".metadata", "__0_0.distcp"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        for _, shape, found in contents(read(directory)).values():
            assert len(shape) <= 64 and len(found) < 1000
