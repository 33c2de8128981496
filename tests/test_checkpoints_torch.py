"""Torch files: the weights as torch.load finds them, byte for byte, without torch; and nothing in a file ever runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._weights_only_unpickler import _get_allowed_globals
from torch.optim.swa_utils import AveragedModel
from transformers import GPT2Config, GPT2LMHeadModel

from belay_cli.checkpoints.read import read_file
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.formats.torch.objects import ALLOWED
from belay_cli.storage.files import OpenFiles, Stored
from belay_cli.storage.local import LocalFile
from belay_cli.storage.pieces import StoredPieces
from tests.reading import plainly


def read(path, **options):
    """The weights of a file, as a plan takes them; each tensor with where it lies."""
    return plainly(read_file(path, Opening(**options)), path)


def refused(path, message, **options):
    """The error of a file, whose one line holds the message."""
    with pytest.raises(CheckpointError) as caught:
        read(path, **options)
    error = caught.value
    assert message in error.message
    assert error.file == str(path)
    assert error.hint
    assert "\n" not in error.message
    assert len(error.message) < 800
    return error


def bytes_of(tensor):
    whole = bytearray(tensor_bytes(tensor))
    with OpenFiles(2) as files:
        tensor.stored.read_into(files, memoryview(whole), 0)
    return bytes(whole)


def tensor_bytes(tensor):
    count = 1
    for n in tensor.shape:
        count *= n
    return count * DTYPES[tensor.dtype].bits // 8


def torch_bytes(tensor):
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found, expected):
    """What was found holds the tensors of `expected`, name -> tensor, in that order."""
    assert [tensor.name for tensor in found.tensors] == list(expected)
    for tensor in found.tensors:
        true = expected[tensor.name]
        name = DTYPES[tensor.dtype].name
        assert str(true.dtype) in (f"torch.{name}", f"torch.{name}fn", f"torch.{name}fnu")
        assert tensor.shape == tuple(true.shape)
        assert bytes_of(tensor) == torch_bytes(true)


def load(path):
    return torch.load(path, weights_only=True)


def saved(path, value):
    torch.save(value, path)
    return path


# ---- what torch writes


@pytest.mark.parametrize(
    "name",
    [
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16"),
        *("uint8", "bool", "complex64", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"),
        "float8_e8m0fnu",
    ],
)
def test_every_dtype(tmp_path, name):
    dtype = getattr(torch, name)
    raw = torch.arange(4 * dtype.itemsize, dtype=torch.uint8) % (2 if name == "bool" else 255)
    path = saved(tmp_path / "a.pt", {"w": raw.view(dtype), "e": torch.empty(0, 3, dtype=dtype)})
    assert_same(read(path), load(path))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_parameters_buffers_scalars_and_views(tmp_path, protocol):
    base = torch.arange(60.0).reshape(3, 4, 5)
    values = {
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "frozen": torch.nn.Parameter(torch.randn(3, 2), requires_grad=False),
        "scalar": torch.tensor(1.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0),
        "offset": base[1:],
        "row": base[1, 2],
        "transposed": base.permute(2, 0, 1),
        "column": base[:, :, 1],
        "every other": base[::2, 1:3, ::3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one of each": torch.randn(1, 4, 1).transpose(0, 2),
    }
    path = tmp_path / "a.pt"
    torch.save(values, path, pickle_protocol=protocol)
    found = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(found, torch.load(path, weights_only=protocol == 2))  # it reads no other protocol
    by_name = {tensor.name: tensor.stored for tensor in found.tensors}
    assert all(isinstance(by_name[name], Stored) for name in ("parameter", "offset", "row", "empty", "one of each"))
    assert all(isinstance(by_name[name], StoredPieces) for name in ("transposed", "column", "expanded"))


def test_parameters_with_attributes(tmp_path):
    plain, parameter = torch.randn(2), torch.nn.Parameter(torch.randn(3))
    plain.note, parameter.note = "a", {"b": 1}
    path = saved(tmp_path / "a.pt", {"plain": plain, "parameter": parameter})
    assert_same(read(path), load(path))


@given(data=st.data())
def test_any_view_of_a_storage(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 5))
    storage = torch.arange(200).to(data.draw(st.sampled_from([torch.int16, torch.float32, torch.bool])))
    path = saved(
        tmp_path_factory.mktemp("view") / "a.pt", {"w": storage.as_strided(shape, strides, offset), "z": storage[3:9]}
    )
    found = read(path)
    assert {**found.aliases, **{t.name: t.name for t in found.tensors}}.keys() == {"w", "z"}
    expected = load(path)
    assert_same(found, {tensor.name: expected[tensor.name] for tensor in found.tensors})
    for tensor in found.tensors:  # parts of it too
        itemsize = DTYPES[tensor.dtype].bits // 8
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, tensor_bytes(tensor) // itemsize)] * 2)))
        part = bytearray((end - begin) * itemsize)
        with OpenFiles(1) as files:
            tensor.stored.read_into(files, memoryview(part), begin * itemsize)
        assert part == bytes_of(tensor)[begin * itemsize : end * itemsize]


def test_shared_storage_is_kept_once_and_the_other_names_are_aliases(tmp_path):
    base = torch.randn(4, 3)
    values = {"embed": base, "head": base, "part": base[1:], "turned": base.t(), "again": base.t(), "same": base + 0}
    found = read(saved(tmp_path / "a.pt", values))
    assert found.aliases == {"head": "embed", "again": "turned"}
    assert_same(found, {name: values[name] for name in ("embed", "part", "turned", "same")})


def test_a_tied_language_model(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=4))
    path = saved(tmp_path / "pytorch_model.bin", model.state_dict())
    found = read(path)
    assert found.aliases == {"lm_head.weight": "transformer.wte.weight"}
    expected = load(path)
    del expected["lm_head.weight"]
    assert_same(found, expected)


def test_an_object_that_is_zipped_again_by_python(tmp_path):
    path = saved(tmp_path / "a.pt", {"w": torch.randn(5)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(f"other/{name.partition('/')[2]}", old.read(name))
    assert_same(read(tmp_path / "b.pt"), load(path))


def test_without_checksums_and_with_other_alignment(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt", {"w": torch.randn(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read(path), load(path))


def test_nothing_but_headers_is_read_and_torch_is_not_imported(tmp_path, monkeypatch):
    values = {f"w{i}": torch.zeros(100_000) for i in range(5)}
    path = saved(tmp_path / "a.pt", values)
    reads = []
    read_into = LocalFile.read_into

    def counted(self, buffer, offset):
        reads.append(buffer.nbytes)
        read_into(self, buffer, offset)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    assert len(read(path).tensors) == 5
    assert sum(reads) < 80_000
    assert len(reads) < 15
    program = (
        "import sys; from pathlib import Path; from belay_cli.checkpoints import open_checkpoint;"
        "assert len(open_checkpoint(Path(sys.argv[1])).tensors) == 5; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 0


def test_fifty_thousand_tensors(tmp_path):
    path = saved(tmp_path / "a.pt", {f"layers.{i}.weight": torch.zeros(1) for i in range(50_000)})
    begin = time.monotonic()
    assert len(read(path).tensors) == 50_000
    assert time.monotonic() - begin < 60


def test_what_is_allowed_is_what_torch_allows_by_default():
    allowed = {name for name in ALLOWED if not name.startswith("__builtin__.")}
    assert allowed <= set(_get_allowed_globals())
    # The rest describes nothing that torch.save writes for tensors that we read.
    rest = set(_get_allowed_globals()) - allowed
    assert all(name.endswith("Tensor") or name.startswith("torch.cuda.") for name in rest), rest


# ---- the state dict among other things


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "module", "net", "weights", "params", "model.state_dict"]
)
def test_the_state_dict_of_a_training_checkpoint(tmp_path, key):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    value = model.state_dict()
    for part in reversed(key.split(".")):
        value = {part: value}
    rest = {"optimizer": optimizer.state_dict(), "epoch": 3, "rng_state": torch.get_rng_state(), "step": 7}
    path = saved(tmp_path / "a.pth.tar", {**rest, **value})
    found = read(path)
    assert_same(found, model.state_dict())
    assert found.step == 7
    assert found.notes == ()
    assert_same(read(path, state_key=key), model.state_dict())


def sd(seed=0, prefix=""):
    g = torch.Generator().manual_seed(seed)
    return {f"{prefix}{name}": torch.randn(2, 3, generator=g) for name in ("a.weight", "a.bias", "b.weight")}


def test_a_key_that_is_asked_for(tmp_path):
    path = saved(tmp_path / "a.pt", {"nets": {"gen.0": sd(1), "disc": sd(2)}, "optimizer": {"state": {"x": sd(3)}}})
    error = refused(path, "holds several state dicts: weights lie under nets.gen.0, nets.disc")
    assert error.hint == "say which: --state-key nets.gen.0"
    assert_same(read(path, state_key="nets.disc"), sd(2))
    assert_same(read(path, state_key="nets.gen.0"), sd(1))
    assert_same(read(path, state_key="optimizer.state.x"), sd(3))
    refused(path, "holds no state dict under 'nets': weights lie under nets.gen.0, nets.disc", state_key="nets")
    refused(path, "holds no state dict under 'nets.gen.0.a'", state_key="nets.gen.0.a")
    refused(path, "holds no state dict under ''", state_key="")


def test_weights_under_keys_that_say_nothing(tmp_path):
    path = saved(tmp_path / "a.pt", {"thing": sd(), "epoch": 1})
    error = refused(path, "holds no state dict under a usual key: weights lie under thing")
    assert error.hint == "say which: --state-key thing"
    path = saved(tmp_path / "b.pt", {"model": sd(), "discriminator": sd(2)})
    assert (read(path).notes, read(path).beside) == ((), ("discriminator",))
    path = saved(tmp_path / "c.pt", {"model": sd(), "net": sd(2)})
    refused(path, "holds several state dicts: weights lie under model, net")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 3, "lr": [0.1]}, "holds no state dict; its keys are: epoch, lr"),
        ({}, "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict; its keys are: state_dict"),
        ({1: torch.zeros(2)}, "holds no state dict"),
        ({"a": torch.zeros(2), 1: torch.zeros(2)}, "holds no state dict; its keys are: a"),
        (torch.zeros(2), "holds a tensor, not a state dict"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
        (torch.device("cpu"), "holds an object, not a state dict"),
        ({"w": torch.zeros(2), "more": [torch.zeros(1)]}, "holds no state dict; its keys are: w, more"),
    ],
)
def test_objects_without_a_state_dict(tmp_path, value, message):
    refused(saved(tmp_path / "a.pt", value), message)


def test_what_is_no_tensor_is_left_out_with_a_note(tmp_path):
    extra = {"bn._extra_state": {"any": 1}, "_metadata": {"version": 1}, "epoch": 3, "name": "x", "none": None}
    found = read(saved(tmp_path / "a.pt", {**sd(), **extra}))
    assert_same(found, sd())
    states = "leaves out 1 _extra_state, no tensors: bn._extra_state"
    assert found.notes == (states, "leaves out what is no tensor: epoch, name, none")


def test_prefixes_are_taken_off(tmp_path):
    expected = sd()
    found = read(saved(tmp_path / "a.pt", sd(prefix="module._orig_mod.module.")))
    assert_same(found, expected)
    assert found.notes == (
        "names are taken without the _orig_mod. of torch.compile",
        "names are taken without the module. of DataParallel",
    )
    inner = {"model._orig_mod.x": torch.ones(1), "module.y": torch.ones(2), "_orig_mod": torch.ones(3)}
    found = read(saved(tmp_path / "b.pt", inner))
    assert [tensor.name for tensor in found.tensors] == ["model.x", "module.y", "_orig_mod"]
    both = {"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}
    error = refused(saved(tmp_path / "c.pt", both), "has 'a' twice, once with a prefix")
    assert error.tensor == "a"


def test_compiled_and_parallel_models(tmp_path):
    model = torch.nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = torch.nn.DataParallel(torch.compile(model, backend="eager"))
    path = saved(tmp_path / "a.pt", wrapped.state_dict())
    assert "module._orig_mod.weight" in load(path)
    assert_same(read(path), model.state_dict())


# ---- Lightning and DeepSpeed


@pytest.fixture(scope="module")
def lightning_run(tmp_path_factory):
    """Checkpoints of the real Trainer at step 2: plain, and with the EMA callback."""
    directory = tmp_path_factory.mktemp("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import EMAWeightAveraging

        class Model(lightning.LightningModule):
            def __init__(self, width=4):
                super().__init__()
                self.save_hyperparameters()
                self.net = torch.nn.Linear(width, 2)

            def training_step(self, batch, index):
                return self.net(batch[0]).square().sum()

            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
                return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]

        class Save(lightning.Callback):
            def __init__(self, name):
                self.name = name

            def on_train_batch_end(self, trainer, *arguments):
                if trainer.global_step == 2:
                    trainer.save_checkpoint(directory / self.name)

        data = torch.utils.data.TensorDataset(torch.randn(4, 4))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        for name, callbacks in (("plain.ckpt", []), ("averaged.ckpt", [EMAWeightAveraging(decay=0.5)])):
            trainer = lightning.Trainer(
                max_steps=2, accelerator="cpu", enable_checkpointing=False, callbacks=[*callbacks, Save(name)], **quiet
            )
            trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=2))
    return directory


def test_a_checkpoint_of_lightning(lightning_run):
    path = lightning_run / "plain.ckpt"
    found = read(path)
    assert found.step == 2
    assert found.notes == ()
    assert_same(found, load(path)["state_dict"])
    refused(path, "holds no EMA", source="ema")


def test_lightning_with_an_average(lightning_run):
    path = lightning_run / "averaged.ckpt"
    error = refused(path, "holds raw weights (current_model_state) and their EMA (state_dict)")
    assert error.hint.startswith("say which: --source raw or --source ema; averaging an EMA again")
    content = load(path)
    assert torch_bytes(content["state_dict"]["net.weight"]) != torch_bytes(content["current_model_state"]["net.weight"])
    raw, ema = read(path, source="raw"), read(path, source="ema")
    assert_same(raw, content["current_model_state"])
    assert raw.notes == ("takes the raw weights (current_model_state), not state_dict",)
    assert_same(ema, content["state_dict"])
    assert raw.step == ema.step == 2
    refused(path, "holds only an average of weights (state_dict)", state_key="state_dict")
    assert_same(read(path, state_key="state_dict", source="ema"), content["state_dict"])
    assert_same(read(path, state_key="current_model_state"), content["current_model_state"])


@pytest.mark.parametrize("step", [-1, 10**18, True, 1.0, None, "5"])
def test_a_step_that_is_none(tmp_path, step):
    content = {"pytorch-lightning_version": "2", "global_step": step, "state_dict": sd()}
    assert read(saved(tmp_path / "a.ckpt", content)).step is None


def test_deepspeed(tmp_path):
    content = {"module": sd(), "ds_version": "0.15", "global_steps": 40, "mp_world_size": 1, "optimizer": None}
    found = read(saved(tmp_path / "mp_rank_00_model_states.pt", content))
    assert found.step == 40
    assert_same(found, sd())
    path = saved(tmp_path / "a.pt", {**content, "mp_world_size": 2})
    refused(path, "is the part of one of 2 model-parallel ranks")
    path = saved(tmp_path / "b.pt", {**content, "module": {"w": torch.zeros(0)}})
    assert "zero_to_fp32.py" in refused(path, "holds no weights but placeholders ('w')").hint
    path = saved(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt", content)
    assert "zero_to_fp32.py" in refused(path, "is one of the shards of DeepSpeed ZeRO").hint
    path = saved(tmp_path / "x_optim_states.pt", {"optimizer_state_dict": {"fp32": [torch.zeros(3)]}})
    assert "zero_to_fp32.py" in refused(path, "looks like shards of DeepSpeed ZeRO: it holds no state dict").hint


@pytest.mark.parametrize("kind", ["tensor", "pipeline", "expert"])
def test_megatron(tmp_path, kind):
    import argparse

    name = f"{kind}_model_parallel_size"

    path = saved(tmp_path / "model_optim_rng.pt", {"args": argparse.Namespace(a=1)})
    error = refused(
        path, "looks like ranks of Megatron-LM: it needs more than weights to be read: it would import argp"
    )
    assert "convert" in error.hint
    args = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    path = saved(tmp_path / "one.pt", {"model": sd(), "args": argparse.Namespace(**args)})
    assert_same(read(path), sd())
    path = saved(tmp_path / "two.pt", {"model": sd(), "args": argparse.Namespace(**args | {name: 2})})
    assert "ranks together" in refused(path, "is the part of one of 2 model-parallel ranks").hint


# ---- raw weights and EMAs


@pytest.mark.parametrize(
    ("raw", "ema"),
    [
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("params", "params_ema"),
        ("model", "ema"),
        ("net", "EMA"),
    ],
)
def test_an_ema_beside_the_weights(tmp_path, raw, ema):
    path = saved(tmp_path / "a.pth", {raw: sd(1), ema: sd(2), "epoch": 1})
    refused(path, f"holds raw weights ({raw}) and their EMA ({ema})")
    assert_same(read(path, source="raw"), sd(1))
    found = read(path, source="ema")
    assert_same(found, sd(2))
    assert found.notes == (f"takes the EMA ({ema}), not {raw}",)
    assert_same(read(path, state_key=ema), sd(2))
    refused(path, "holds only an average of weights", state_key=ema, source="raw")
    assert_same(read(path, state_key=raw), sd(1))
    refused(path, "holds no EMA", state_key=raw, source="ema")


@pytest.mark.parametrize("inner", ["module", "shadow", "state_dict"])
def test_an_ema_in_a_wrapper(tmp_path, inner):
    path = saved(tmp_path / "a.pth", {"model": sd(1), "ema": {"decay": 0.9, inner: sd(2)}})
    refused(path, f"holds raw weights (model) and their EMA (ema.{inner})")
    assert_same(read(path, source="ema"), sd(2))


def test_several_emas(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": sd(1), "ema_0.99": sd(2), "ema_0.999": sd(3)})
    for source in (None, "ema"):
        refused(path, "holds several state dicts: weights lie under model, ema_0.99, ema_0.999", source=source)
    found = read(path, source="raw")
    assert_same(found, sd(1))
    assert found.beside == ("ema_0.99", "ema_0.999")
    assert_same(read(path, state_key="ema_0.999"), sd(3))
    several = {**sd(1, "unet."), **sd(2, "unet_ema."), **sd(3, "text."), **sd(4, "text_ema.")}
    path = saved(tmp_path / "b.pth", several)
    refused(path, "holds raw weights (without unet_ema.*, text_ema.*) and their EMA (unet_ema.*, text_ema.*)")
    assert_same(read(path, source="raw"), {**sd(1, "unet."), **sd(3, "text.")})
    assert_same(read(path, source="ema"), {**sd(2, "unet."), **sd(4, "text.")})


def test_an_average_of_nothing(tmp_path):
    path = saved(tmp_path / "a.pth", {"n_averaged": torch.tensor(3)})
    refused(path, "holds no weights, only counters (with n_averaged)", source="ema")


def test_only_an_ema(tmp_path):
    path = saved(tmp_path / "a.pth", {"params_ema": sd(2)})
    error = refused(path, "holds only an average of weights (params_ema)")
    assert error.hint == "leave it out, or average EMAs on purpose: --source ema"
    refused(path, "holds only an average of weights", source="raw")
    assert_same(read(path, source="ema"), sd(2))


def test_an_optimizer_for_the_ema_is_no_ema(tmp_path):
    path = saved(tmp_path / "a.pth", {"model": sd(1), "ema_optimizer": {"x": torch.ones(1)}, "ema": 0.999})
    assert_same(read(path), sd(1))


def test_latent_diffusion(tmp_path):
    raw = {"model.diffusion_model.in.0.weight": torch.ones(2), "model.diffusion_model.out.bias": torch.ones(3)}
    rest = {"first_stage_model.w": torch.ones(4)}
    ema = {f"model_ema.{name[6:].replace('.', '')}": 2 * value for name, value in raw.items()}
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    path = saved(tmp_path / "a.ckpt", {"state_dict": {**raw, **counters, **ema, **rest}})
    refused(path, "holds raw weights (state_dict, without model_ema.*) and their EMA (state_dict, model_ema.*)")
    found = read(path, source="raw")
    assert_same(found, {**raw, **rest})
    assert found.notes == ("takes the raw weights (state_dict, without model_ema.*), not state_dict, model_ema.*",)
    assert_same(read(path, source="ema"), {**{name: 2 * value for name, value in raw.items()}, **rest})


@pytest.mark.parametrize(("raw", "ema"), [("model.", "ema_model."), ("", "ema."), ("net.", "net_ema.")])
def test_a_twin_inside_the_state_dict(tmp_path, raw, ema):
    path = saved(tmp_path / "a.pt", {**sd(1, raw), **sd(2, ema)})
    refused(path, f"and their EMA ({ema}*)")
    assert_same(read(path, source="raw"), sd(1, raw))
    assert_same(read(path, source="ema"), sd(2, raw))


def test_ema_pytorch(tmp_path):
    wrapped = {"initted": torch.tensor(True), "step": torch.tensor(5), **sd(1, "online_model."), **sd(2, "ema_model.")}
    path = saved(tmp_path / "a.pt", wrapped)
    assert_same(read(path, source="raw"), sd(1))
    assert_same(read(path, source="ema"), sd(2))
    path = saved(tmp_path / "b.pt", {"model": sd(3), "ema": wrapped})
    assert_same(read(path, source="raw"), sd(3))
    assert_same(read(path, source="ema"), sd(2))
    alone = {"initted": torch.tensor(True), "step": torch.tensor(5), **sd(2, "ema_model.")}
    path = saved(tmp_path / "c.pt", alone)
    refused(path, "holds only an average of weights (ema_model.*)")
    assert_same(read(path, source="ema"), sd(2))


def test_a_module_that_is_called_ema_but_has_no_twin(tmp_path):
    values = {"ema_gate.weight": torch.ones(2), "other.weight": torch.ones(3)}
    assert_same(read(saved(tmp_path / "a.pt", values)), values)


def test_an_averaged_model_of_torch(tmp_path):
    model = AveragedModel(torch.nn.Linear(2, 2))
    path = saved(tmp_path / "a.pt", model.state_dict())
    refused(path, "holds only an average of weights (with n_averaged)")
    assert_same(read(path, source="ema"), model.module.state_dict())


def test_the_ema_twin_of_nemo(tmp_path):
    path = saved(tmp_path / "step=10-EMA.ckpt", {"state_dict": sd()})
    refused(path, "holds only an average of weights (state_dict, by the name of the file)")
    refused(path, "holds only an average of weights", source="raw")
    assert_same(read(path, source="ema"), sd())


def test_a_directory_of_diffusers_for_the_ema(tmp_path):
    for name in ("unet", "unet_ema"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "diffusion_pytorch_model.bin", sd())
    assert_same(read(tmp_path / "unet_ema" / "diffusion_pytorch_model.bin", source="ema"), sd())
    refused(tmp_path / "unet" / "diffusion_pytorch_model.bin", "holds no EMA", source="ema")


# ---- tensors that are no plain arrays


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(2).to_sparse(), "'w' is sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "'w' is sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'w' is quantized"),
        (lambda: torch.empty(2, device="meta"), "'w' is without data"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "'w' is a conjugate or a negative"),
        (lambda: torch.ones(2, dtype=torch.complex128), "'w' is of dtype complex128, which safetensors does not have"),
        (lambda: torch.ones(2, dtype=torch.complex32), "'w' is of dtype complex32"),
    ],
)
def test_tensors_that_are_no_plain_arrays(tmp_path, make, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = make()
        path = saved(tmp_path / "a.pt", {"ok": torch.ones(1), "w": value})
        other = saved(tmp_path / "b.pt", {"model": sd(), "history": value})
    error = refused(path, message)
    assert error.tensor == "w"
    assert_same(read(other), sd())


# ---- other files


@pytest.mark.parametrize(
    ("content", "message", "mend"),
    [
        (b"", "is empty", "copy"),
        (b"\0" * 5000, "holds nothing but zeros", "copy"),
        (b"PK\x03\x04", "is cut short", "copy"),
        (b"loss: 0.3\n" * 100, "is text, not a torch file", "download"),
        (b"<!DOCTYPE html><html>" * 50, "is a web page, not a torch file", "download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "is a pointer of Git LFS",
            "git lfs pull",
        ),
        (pickle.dumps({"a": 1}), "is a plain pickle", "torch.save"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "is HDF5, as Keras writes it", "safetensors"),
        (b"GGUF\3\0\0\0" + b"\0" * 100, "is GGUF", "average"),
        (struct.pack("<Q", 20) + b'{"a": {"dtype": "F32"', "is a safetensors file under another name", "rename"),
        (b"\x1f\x8b\x08\0" + b"\1" * 100, "is compressed by gzip", "unpack"),
        (bytes(range(256)) * 4, "is not a torch file", "torch.save"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message, mend):
    (tmp_path / "a.pt").write_bytes(content)
    assert mend in refused(tmp_path / "a.pt", message).hint


def test_the_formats_of_old_torch(tmp_path):
    torch.save(sd(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    error = refused(tmp_path / "a.pt", "is in torch's format from before version 1.6")
    assert error.hint.endswith("torch.save(torch.load(path, weights_only=True), path)")
    import tarfile

    for name, message in (("sys_info", "is in torch's tar format"), ("model.ckpt", "is a tar archive")):
        with tarfile.open(tmp_path / "b.pth.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        refused(tmp_path / "b.pth.tar", message)


def test_programs(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "b.pt")
    assert "torch.jit.load(path).state_dict()" in refused(tmp_path / "a.pt", "is a program of TorchScript").hint
    refused(tmp_path / "b.pt", "is a program of torch.export")


@pytest.mark.parametrize(
    ("names", "mend"),
    [(["a.npy", "b.npy"], "numpy"), (["config.json", "model.weights.h5"], "Keras"), (["x/y/data.pkl"], "unpack")],
)
def test_other_zip_archives(tmp_path, names, mend):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    assert mend in refused(tmp_path / "a.pt", "is a zip archive that torch.save did not write").hint


# ---- files that lie


class Claim:
    """A storage that is not there, as a pickle tells of it."""

    def __init__(self, key="0", numel=4, kind=torch.FloatStorage, what="storage"):
        self.identity = (what, kind, key, "cpu", numel)


class Lie:
    """Something that unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


def lying_tensor(claim=None, offset=0, shape=(4,), strides=(1,)):
    return Lie(torch._utils._rebuild_tensor_v2, claim or Claim(), offset, shape, strides, False, OrderedDict())


def pickled(value, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return item.identity if isinstance(item, Claim) else None

    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def archived(path, data, records=(("data/0", bytes(16)),), compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in (("data.pkl", data), *records):
                archive.writestr(f"x/{name}", content)
    return path


def test_a_file_made_by_hand_is_read(tmp_path):
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}))
    assert_same(read(path), {"w": torch.zeros(4)})
    path = archived(tmp_path / "b.pt", pickled({"w": lying_tensor()}), [("data/0", bytes(18))])
    assert_same(read(path), {"w": torch.zeros(4)})


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_payload_does_not_run(tmp_path, suffix):
    made = tmp_path / "made"
    payloads = [Lie(os.mkdir, str(made)), Lie(eval, "1"), Lie(exec, "1"), Lie(getattr, 1, "x"), Lie(os.system, "true")]
    for number, payload in enumerate(payloads):
        path = saved(tmp_path / f"{number}{suffix}", {"state_dict": sd(), "hyper_parameters": payload})
        error = refused(path, "needs more than weights to be read: it would import")
        assert "torch.save(model.state_dict(), path)" in error.hint
    assert not made.exists()
    error = refused(saved(tmp_path / f"all{suffix}", {"a": sd(), "b": payloads}), "import ")
    assert "__builtin__.eval, __builtin__.exec, __builtin__.getattr, posix.mkdir, posix.system" in error.message


def test_a_whole_module_is_refused_by_name(tmp_path):
    error = refused(saved(tmp_path / "a.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear")
    assert "save the weights alone" in error.hint


def test_many_and_strange_names(tmp_path):
    body = b"".join(b"cmodule%d\nname\n0" % i for i in range(50))
    refused(archived(tmp_path / "a.pt", b"\x80\x02" + body + b"N."), "and 45 more")
    strange = b"\x80\x04\x8c\x02a\n\x8c\x03b\x1b]\x93."
    refused(archived(tmp_path / "b.pt", strange), r"it would import 'a\n.b\x1b]'")


def test_names_with_backslashes(tmp_path):
    refused(archived(tmp_path / "a.pt", b"\x80\x02c\\os\nsystem\n."), "it would import")
    # Python's scan and its unpickler read such a name differently; both have to allow it.
    refused(archived(tmp_path / "b.pt", b"\x80\x02ctorch\n\\x53ize\n."), "it would import")


def test_stand_ins_cannot_be_changed(tmp_path):
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for state in (
        b"}X\x01\x00\x00\x00aK\x01s",
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86",
        b"N}X\x05\x00\x00\x00_callNs\x86",
    ):
        for target in (rebuild, b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n"):
            refused(archived(tmp_path / "a.pt", b"\x80\x02" + target + state + b"b."), "has a data.pkl")
    path = archived(tmp_path / "b.pt", pickled({"w": lying_tensor()}))
    assert_same(read(path), {"w": torch.zeros(4)})
    refused(archived(tmp_path / "c.pt", b"\x80\x02ccollections\nOrderedDict\n)\x81."), "has a data.pkl")  # NEWOBJ


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lying_tensor(Claim(numel=5)), "the storage '0' should hold 5 elements of float32 and has 16 bytes"),
        (lying_tensor(Claim(numel=3)), "should hold 3 elements"),
        (lying_tensor(Claim(numel=-1)), "should hold -1 elements"),
        (lying_tensor(Claim(numel=1 << 70)), "should hold 1180591620717411303424 elements"),
        (lying_tensor(Claim(key="1")), "the storage '1' is not in the file"),
        (lying_tensor(Claim(key="../data.pkl")), "the storage '../data.pkl' is not in the file"),
        (lying_tensor(Claim(key=0)), "asks for something that is no storage"),
        (lying_tensor(Claim(what="module")), "asks for something that is no storage"),
        (lying_tensor(Claim(kind=torch.float32)), "asks for something that is no storage"),
        ([lying_tensor(), lying_tensor(Claim(kind=torch.IntStorage))], "describes the storage '0' in two ways"),
        (lying_tensor(offset=1), "'w' is 4 of float32 up to byte 20 of a storage that has 16"),
        (lying_tensor(offset=-1), "'w' has the shape (4,), strides (1,) and offset -1"),
        (
            lying_tensor(offset=1 << 20_000),
            "'w' has the shape (4,), strides (1,) and offset a number too large",
        ),
        (lying_tensor(strides=(-1,), offset=3), "'w' has the shape (4,), strides (-1,)"),
        (lying_tensor(strides=(1 << 62,)), "'w' is 4 of float32 up to byte"),
        (lying_tensor(strides=(1 << 64,)), "'w' has the shape (4,), strides (18446744073709551616,)"),
        (lying_tensor(shape=(-4,)), "'w' has the shape (-4,)"),
        (lying_tensor(shape=(1 << 40,), strides=(0,)), "'w' is 1099511627776 of float32, many times what"),
        (lying_tensor(shape=((1 << 62),) * 64, strides=(0,) * 64), "'w' is 4611686018427387904×"),
        (lying_tensor(shape=(1,) * 65, strides=(0,) * 65), "it makes a tensor of what is none"),
        (lying_tensor(shape=(4,), strides=()), "it makes a tensor of what is none"),
        (lying_tensor(shape=(4.0,)), "it makes a tensor of what is none"),
        (lying_tensor(shape=[4]), "it makes a tensor of what is none"),
        (lying_tensor(shape=(True,)), "it makes a tensor of what is none"),
        (lying_tensor(offset="0"), "it makes a tensor of what is none"),
        (lying_tensor(lying_tensor()), "it makes a tensor of what is none"),
        (Lie(torch._utils._rebuild_tensor_v2, 1), "has a data.pkl that cannot be read"),
        (Lie(torch._utils._rebuild_parameter, 1, True, None), "it makes a parameter of what is no tensor"),
        (Lie(torch.Size, [1 << 20]), "it makes a shape of what is none"),
        (
            Lie(torch._tensor._rebuild_from_type_v2, torch.Size, torch.Tensor, ((1,),), None),
            "in a way that torch does not",
        ),
    ],
)
def test_pickles_that_lie(tmp_path, value, message):
    assert message in refused(archived(tmp_path / "a.pt", pickled({"w": value})), "has a data.pkl").message


def test_names_that_are_no_unicode(tmp_path):
    data = b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + pickled(lying_tensor())[2:-1] + b"s."
    refused(archived(tmp_path / "a.pt", data), "which is not one in Unicode")


def test_records_of_big_endian_machines(tmp_path):
    records = [("data/0", bytes(16)), ("byteorder", b"big")]
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), records)
    refused(path, "holds numbers in the byte order 'big'")
    refused(archived(tmp_path / "b.pt", pickled({}), [("byteorder", b"x" * 100)]), "'byteorder' has 100 bytes")


def test_compressed_and_encrypted_records(tmp_path):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), compression=method)
        refused(path, "is compressed ('x/data.pkl'), which torch.save never does")
    bomb = archived(tmp_path / "b.pt", bytes(50_000_000), compression=zipfile.ZIP_DEFLATED)
    refused(bomb, "is compressed")
    path = archived(tmp_path / "c.pt", pickled({"w": lying_tensor()}))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "is encrypted")


def test_a_record_that_says_it_is_a_directory(tmp_path):
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 38] |= 0x10
    path.write_bytes(content)
    refused(path, "'x/data/0' is stored in a way that torch does not use")


def test_records_twice_or_elsewhere(tmp_path):
    data = pickled({"w": lying_tensor()})
    refused(archived(tmp_path / "a.pt", data, [("data/0", bytes(16)), ("data/0", bytes(16))]), "have one name")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        for name in ("x/data.pkl", "y/data.pkl"):
            archive.writestr(name, data)
    refused(tmp_path / "c.pt", "do not lie in one directory")


CENTRAL = {
    "packed": (20, "<I"),
    "size": (24, "<I"),
    "name length": (28, "<H"),
    "header": (42, "<I"),
    "disk": (34, "<H"),
}
LOCAL = {"magic": (0, "<I"), "flags": (6, "<H"), "method": (8, "<H"), "packed": (18, "<I"), "size": (22, "<I")}
LOCAL |= {"name length": (26, "<H"), "extra length": (28, "<H"), "name": (31, "<H")}
END = {
    "disk": (4, "<H"),
    "here": (8, "<H"),
    "count": (10, "<H"),
    "size": (12, "<I"),
    "begin": (16, "<I"),
    "end": (20, "<H"),
}


@pytest.mark.parametrize("by", [1, 5, 200, 60_000])
@pytest.mark.parametrize(
    ("magic", "name"),
    [*((b"PK\x01\x02", n) for n in CENTRAL), *((b"PK\x03\x04", n) for n in LOCAL), *((b"PK\x05\x06", n) for n in END)],
)
def test_numbers_of_the_archive_that_lie(tmp_path, magic, name, by):
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}), [("data/0", bytes(16)), ("version", b"3")])
    content = bytearray(path.read_bytes())
    place, code = {b"PK\x01\x02": CENTRAL, b"PK\x03\x04": LOCAL, b"PK\x05\x06": END}[magic][name]
    first = content.index(magic)
    at = (first if magic == b"PK\x05\x06" else content.index(magic, first + 1)) + place  # that of data/0
    (number,) = struct.unpack_from(code, content, at)
    struct.pack_into(code, content, at, (number + by) % (1 << 8 * struct.calcsize(code)))
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read(path)


def test_more_or_less_at_the_end(tmp_path):
    path = saved(tmp_path / "a.pt", sd())
    content = path.read_bytes()
    (tmp_path / "b.pt").write_bytes(content + b"1")
    refused(tmp_path / "b.pt", "its end is not that of one whole archive")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04" + content)
    refused(tmp_path / "c.pt", "is a zip archive that cannot be right")


def test_truncated_anywhere(tmp_path):
    path = saved(tmp_path / "a.pt", {"state_dict": sd(), "x": list(range(1000))})
    content = path.read_bytes()
    for cut in range(0, len(content), len(content) // 60):
        (tmp_path / "b.pt").write_bytes(content[:cut])
        refused(tmp_path / "b.pt", "is ")


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_nothing_unsafe(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("changed")
    path = saved(directory / "a.pt", {"w": torch.arange(6.0).reshape(2, 3), "t": torch.arange(6).reshape(2, 3).t()})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        found = read(path)
        with OpenFiles(1) as files:
            for tensor in found.tensors:
                tensor.stored.read_into(files, memoryview(bytearray(tensor_bytes(tensor))), 0)
        _agrees_with_torch(path, found)


def _agrees_with_torch(path, found):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = load(path)
        except Exception:  # it checks what we do not need
            return
    if isinstance(theirs, dict) and all(isinstance(value, torch.Tensor) for value in theirs.values()):
        theirs = {name: value for name, value in theirs.items() if isinstance(name, str)}
        kept = {tensor.name for tensor in found.tensors}
        assert_same(found, {name: value for name, value in theirs.items() if name in kept})


@given(st.binary(max_size=300))
def test_any_pickle_is_refused_or_read(tmp_path_factory, noise):
    path = archived(tmp_path_factory.mktemp("noise") / "a.pt", b"\x80\x02" + noise)
    with contextlib.suppress(CheckpointError):
        read(path)


# ---- files that cost


def quickly(path, message):
    begin = time.monotonic()
    refused(path, message)
    assert time.monotonic() - begin < 20


def test_nests(tmp_path):
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    quickly(archived(tmp_path / "a.pt", deep), "holds a list")
    tuples = (
        b"\x80\x02}X\x01\x00\x00\x00a)"
        + b"\x85" * 10_000
        + b"sX\x01\x00\x00\x00w"
        + pickled(lying_tensor())[2:-1]
        + b"s."
    )
    assert [tensor.name for tensor in read(archived(tmp_path / "b.pt", tuples)).tensors] == ["w"]
    dicts = b"\x80\x02" + b"}X\x01\x00\x00\x00m" * 10_000 + b"}" + b"s" * 10_000 + b"."
    quickly(archived(tmp_path / "c.pt", dicts), "holds no state dict")


def test_cycles_and_shared_parts(tmp_path):
    loop = {}
    loop["model"] = loop
    quickly(saved(tmp_path / "a.pt", loop), "holds no state dict; its keys are: model")
    level = [0]
    for _ in range(60):  # 2⁶⁰ paths, 60 objects
        level = [level, level]
    assert_same(read(saved(tmp_path / "b.pt", {**sd(), "x": level})), sd())
    level = {}
    for i in range(60):
        level = {f"a{i}": level, f"b{i}": level}
    quickly(saved(tmp_path / "c.pt", level), "holds no state dict")
    shared = {"w": torch.zeros(1), "x": [[{}] * 1000] * 1000}  # 10⁶ paths, seen from 10⁴ keys
    assert_same(read(saved(tmp_path / "e.pt", {"model": sd(), **{f"k{i}": shared for i in range(10_000)}})), sd())
    wide = {str(i): {str(j): {} for j in range(300)} for i in range(300)}
    quickly(saved(tmp_path / "d.pt", wide), "holds no state dict")


def test_names_that_would_take_long(tmp_path):
    long = {"module." * 100_000 + "w": torch.ones(2), "ema." * 100_000: torch.ones(3)}
    assert len(read(saved(tmp_path / "a.pt", long)).tensors) == 2
    many = {f"ema_{i}.{j}": torch.ones(1) for i in range(1000) for j in range(5)}
    assert len(read(saved(tmp_path / "b.pt", many)).tensors) == 5000
    key = b"X" + struct.pack("<I", 1 << 20) + b"0" * (1 << 20) + b"q\x02"
    identity = b"(X\x07\x00\x00\x00storageq\x00ctorch\nFloatStorage\nq\x01" + key + b"NK\x01tQ"
    quickly(archived(tmp_path / "c.pt", b"\x80\x02" + identity + b"."), "asks for something that is no storage")


def test_calls_that_would_copy_a_lot(tmp_path):
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    encode = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x020]("
    quickly(archived(tmp_path / "a.pt", encode + b"h\x00h\x01h\x02\x86R" * 20_000 + b"e."), "holds a list")
    fill = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    quickly(archived(tmp_path / "b.pt", fill), "holds an object")


def test_a_pickle_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("belay_cli.formats.torch.objects.LARGEST", 100)
    refused(archived(tmp_path / "a.pt", bytes(101)), "'data.pkl' has 101 bytes, and 100 are the most")


def test_a_huge_sparse_file(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 40)
    quickly(path, "is cut short")


def test_a_directory_that_is_too_large(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 1 << 31)
    with path.open("ab") as file:
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 1 << 31, 0, 0))
    quickly(path, "its directory has 2147483648 bytes from byte 0 on")


def test_records_beyond_four_gigabytes(tmp_path):
    """A sparse file whose first record is larger than 32 bits can say, so that the next one lies beyond them."""
    count = (1 << 32) + 8
    path = tmp_path / "a.pt"
    data = pickled(
        {
            "big": lying_tensor(Claim("0", count, torch.ByteStorage), shape=(count,)),
            "small": lying_tensor(Claim("1", 4, torch.ByteStorage)),
        }
    )
    central, at = [], 0
    with path.open("wb") as file:
        for name, content, size in (("data.pkl", data, len(data)), ("data/0", b"", count), ("data/1", b"abcd", 4)):
            text = f"x/{name}".encode()
            large = [number for number in (size, size, at) if number >= 0xFFFFFFFF]
            short = [min(number, 0xFFFFFFFF) for number in (size, size, at)]
            extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
            central.append(
                struct.pack(
                    "<4s6H3L5H2L",
                    b"PK\x01\x02",
                    45,
                    45,
                    0,
                    0,
                    0,
                    0,
                    0,
                    *short[:2],
                    len(text),
                    len(extra),
                    0,
                    0,
                    0,
                    0,
                    short[2],
                )
                + text
                + extra
            )
            file.write(
                struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, *short[:2], len(text), 0) + text + content
            )
            file.seek(size - len(content), 1)
            at = file.tell()
        directory = b"".join(central)
        file.write(directory)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(directory), at))
        file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, at + len(directory), 1))
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))
    found = {tensor.name: tensor for tensor in read(path).tensors}
    assert found["big"].shape == (count,)
    assert bytes_of(found["small"]) == b"abcd"
