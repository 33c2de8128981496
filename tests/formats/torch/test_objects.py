"""Torch files that pickle more than weights: what is not understood is inert, is named, and hides no weights."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import io
import logging
import operator
import pathlib
import random
import re
import sys
import types
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from belay_cli.formats.contents import Unreadable
from belay_cli.formats.restricted_pickle import ForbiddenNames
from belay_cli.formats.torch.archive import open_archive
from belay_cli.formats.torch.hidden import holds_tensors
from belay_cli.formats.torch.objects import Pickled, read_object, read_pickle
from belay_cli.formats.unknown import Unknown
from belay_cli.storage.files import StoredFile, open_file
from tests.formats.torch.files import Claim, Lie, archived, assert_same, pickled, read, refused, saved


def sd(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, generator=g) for name in ("a.weight", "a.bias", "b.weight")}


def objects(path: Path) -> Pickled:
    with open_file(path) as opened:
        return read_object(open_archive(StoredFile(path, opened.size), opened.read_at))


def fake(monkeypatch: pytest.MonkeyPatch, full: str, *bases: type[Any]) -> Any:
    """A class of a library that is not installed, under its real name, while a file is saved."""
    module, _, name = full.rpartition(".")
    places = module.split(".")
    for count in range(1, len(places) + 1):
        place = ".".join(places[:count])
        if place not in sys.modules:
            monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    if not hasattr(sys.modules[module], name):
        made = type(name, bases or (object,), {"__module__": module})
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
    return getattr(sys.modules[module], name)


def filled(cls: type[Any], **attributes: Any) -> Any:
    made = cls()
    made.__dict__.update(attributes)
    return made


class Stage(enum.Enum):
    TRAIN = 1


@dataclasses.dataclass
class Options:
    rate: float = 0.1
    inner: argparse.Namespace = dataclasses.field(default_factory=lambda: argparse.Namespace(a=[1, {"b": 2}]))


Point = collections.namedtuple("Point", "x y")

# ---- what people save beside weights


PLAIN = {
    "argparse.Namespace": argparse.Namespace(lr=1e-3, out=pathlib.PosixPath("run"), f=None),
    "pathlib.PosixPath": pathlib.PosixPath("/data/run"),
    "numpy scalar": np.float64(0.5),
    "numpy integer": np.int64(7),
    "numpy.dtype": np.dtype("float32"),
    "numpy array": np.arange(5),
    "random state of numpy": np.random.get_state(),
    "generator of numpy": np.random.default_rng(0),
    "random state": random.getstate(),
    "datetime.datetime": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "datetime.timedelta": datetime.timedelta(days=1),
    "enum": Stage.TRAIN,
    "dataclass": Options(),
    "namedtuple": Point(1, 2),
    "partial": functools.partial(int, base=2),
    "function": sorted,
    "type": [int, torch.nn.GELU, OrderedDict],
    "generic": dict[str, int],
    "operator": operator.add,
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=5),
    "counter": collections.Counter("abc"),
    "SimpleNamespace": types.SimpleNamespace(a=1, b=types.SimpleNamespace()),
    "set of enums": {Stage.TRAIN, (Stage.TRAIN, 1)},
    "keys": {pathlib.PosixPath("a"): 1, Stage.TRAIN: 2, (pathlib.PosixPath("a"), 1): 3},
    "uuid": uuid.UUID(int=5),
    "pattern": re.compile("a+"),
    "logger": logging.getLogger("train"),
    "version": torch.torch_version.TorchVersion("2.1.0"),
    "exception": ValueError("x"),
    "buffer": io.BytesIO(b"abc"),
    "complex": 1j,
    "frozenset": frozenset((1, 2)),
    "slice": slice(1, 2),
    "range": range(5),
    "bytes": b"abc",
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("name", PLAIN)
def test_what_lies_beside_the_weights_is_not_in_the_way(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / "a.pt"
    value = {"epoch": 3, "args": PLAIN[name], "deep": [{"x": (PLAIN[name], 1)}], "model": sd()}
    torch.save(value, path, pickle_protocol=protocol)
    assert_same(read(path), sd())
    found = objects(path)
    assert found.root["epoch"] == 3
    assert list(found.unknown) == sorted(found.unknown)
    assert not holds_tensors({key: value for key, value in found.root.items() if key != "model"})


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"model": sd(), "args": argparse.Namespace(out=pathlib.PosixPath("x"))})
    found = objects(path)
    assert found.unknown == ("argparse.Namespace", "pathlib.PosixPath")
    assert isinstance(found.root["args"], Unknown)
    assert found.root["args"].name == "argparse.Namespace"
    assert found.root["args"].attribute("out").name == "pathlib.PosixPath"
    assert found.root["args"].attribute("in") is None
    note = "does not understand argparse.Namespace, pathlib.PosixPath, which are not needed"
    assert read(path).notes == (note,)
    one = saved(tmp_path / "b.pt", {"model": sd(), "args": pathlib.PosixPath("x")})
    assert read(one).notes == ("does not understand pathlib.PosixPath, which is not needed",)
    assert objects(saved(tmp_path / "c.pt", {"model": sd()})).unknown == ()


def test_a_defaultdict_is_a_dict(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"model": collections.defaultdict(list, sd())})
    assert_same(read(path), sd())


def omegaconf(monkeypatch: pytest.MonkeyPatch, content: dict[str, int]) -> Any:
    """A DictConfig as omegaconf 2.3 pickles it."""
    names = ("dictconfig.DictConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode")
    config, meta, leaf_meta, node = (fake(monkeypatch, f"omegaconf.{name}") for name in names)
    flags = {"ref_type": dict, "object_type": dict, "optional": True, "key": None, "flags": {}, "resolver_cache": {}}
    made = filled(config, _metadata=filled(meta, **flags, element_type=int), _parent=None, _flags_cache=None)
    leaves = {
        key: filled(node, _metadata=filled(leaf_meta, key=key), _parent=made, _val=value)
        for key, value in content.items()
    }
    made.__dict__["_content"] = leaves
    return made


def trainers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, Any]]]:
    """Checkpoints as trainers write them: name -> the object, and where its state dict lies."""
    namespace = argparse.Namespace(lr=0.1, save_dir=pathlib.PosixPath("x"))
    history = filled(fake(monkeypatch, "mmengine.logging.history_buffer.HistoryBuffer"), _log_history=np.arange(3.0))
    config = fake(monkeypatch, "mmengine.config.config.ConfigDict", dict)(optimizer={"lr": 1})
    easy = fake(monkeypatch, "easydict.EasyDict", dict)
    cutset = fake(monkeypatch, "lhotse.dataset.sampling.base.SamplingDiagnostics")
    machine = filled(fake(monkeypatch, "megatron.core.rerun_state_machine.RerunStateMachine"), state=1)
    model_type = fake(monkeypatch, "megatron.core.enums.ModelType")()
    filler = {"epoch": 1, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}}
    config_tree = omegaconf(monkeypatch, {"a": 1})
    yield "timm", {**filler, "arch": "x", "state_dict": sd(), "args": namespace, "metric": np.float64(0.7)}
    yield "fairseq", {"args": None, "cfg": config_tree, "model": sd(), "extra_state": {"x": namespace}}
    params = {"out": pathlib.PosixPath("x"), "params": easy(a=1, b={})}
    yield "icefall", {**filler, "model": sd(), "sampler": {"d": cutset()}, **params}
    meta = {"cfg": config, "t": datetime.datetime.now()}
    yield "mmengine", {"meta": meta, "state_dict": sd(), "message_hub": [history]}
    yield "megatron", {"args": namespace, "model": sd(), "rerun_state_machine": {"m": machine, "t": model_type}}
    yield "hydra", {"state_dict": sd(), "hyper_parameters": {"cfg": config_tree, "p": easy(x=Stage.TRAIN)}}


@pytest.mark.parametrize("name", ["timm", "fairseq", "icefall", "mmengine", "megatron", "hydra"])
def test_checkpoints_of_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = saved(tmp_path / "a.pt", dict(trainers(monkeypatch))[name])
    monkeypatch.undo()
    assert_same(read(path), sd())
    assert "does not understand" in read(path).notes[-1]


def test_hyper_parameters_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, options: Any, out: Path, stage: Stage) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor) -> Any:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=2, default_root_dir=tmp_path, enable_checkpointing=False, **options)
    model = Model(argparse.Namespace(a=1), pathlib.PosixPath("x"), Stage.TRAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows: Any = torch.randn(4, 2)
        trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=1))
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert_same(read(tmp_path / "a.ckpt"), model.state_dict())
    assert read(tmp_path / "a.ckpt").step == 2
    assert objects(tmp_path / "a.ckpt").unknown[:2] == ("argparse.Namespace", "pathlib.PosixPath")


# ---- weights that only an unknown object leads to


def test_a_module_is_still_refused(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for value in (
        module,
        {"model": module, "epoch": 1},
        {"model": module, "optimizer": {"state": {0: sd()}}},
        [module],
    ):
        error = refused(saved(tmp_path / "a.pt", value), "needs more than weights to be read: it would import ")
        assert "torch.nn.modules.linear.Linear" in error.message
        assert "torch.save(model.state_dict(), path)" in error.hint


def test_weights_in_a_dict_of_an_unknown_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    easy = fake(monkeypatch, "easydict.EasyDict", dict)
    path = saved(tmp_path / "a.pt", {"model": easy(sd()), "epoch": 1})
    refused(path, "needs more than weights to be read: it would import easydict.EasyDict")
    beside = saved(tmp_path / "b.pt", {"model": easy(sd()), "net": sd(1), "args": easy(a=1)})
    error = refused(
        beside, "holds tensors under 'model' in an object of a class that belay does not know: easydict.Easy"
    )
    assert "--state-key" in error.hint
    assert_same(read(beside, state_key="net"), sd(1))
    config = saved(tmp_path / "c.pt", {"model": easy(layers=3), "state_dict": sd()})
    assert_same(read(config), sd())


def test_an_entry_that_may_be_a_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = fake(monkeypatch, "mmengine.BaseTensor", torch.Tensor)
    special = torch.randn(2).as_subclass(tensor)
    for number, value in enumerate((special, torch.nn.Parameter(special), np.arange(3.0), argparse.Namespace(w=1))):
        path = saved(tmp_path / f"{number}.pt", {**sd(), "x": value})
        name = ("mmengine.BaseTensor", "mmengine.BaseTensor", "numpy", "argparse.Namespace")[number]
        error = refused(
            path, f"has a tensor that belay does not read: 'x' is of a class that belay does not know: {name}"
        )
        assert error.tensor == "x"
    path = saved(tmp_path / "n.pt", {**sd(), "x": [argparse.Namespace(w=[special])]})
    refused(path, "'x' is inside an object of a class that belay does not know")
    state = saved(tmp_path / "s.pt", {**sd(), "x._extra_state": io.BytesIO(b"state of fp8")})
    assert_same(read(state), sd())


def test_a_tensor_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded = fake(monkeypatch, "torch.distributed._shard.sharded_tensor.api.Sharded")
    refused(
        saved(tmp_path / "a.pt", {**sd(), "x": sharded()}), "'x' is of a class that belay does not know: torch.distr"
    )
    error = refused(saved(tmp_path / "b.pt", {"model": {"x": sharded()}}), "it would import torch.distributed")
    assert "full_state_dict=True" in error.hint


def test_a_dtype_that_torch_will_have(tmp_path: Path) -> None:
    claim = Claim(kind=torch.storage.UntypedStorage, numel=16)
    data = pickled({"w": Lie(torch._utils._rebuild_tensor_v3, claim, 0, (4,), (1,), False, OrderedDict(), torch.int8)})
    path = archived(tmp_path / "a.pt", data.replace(b"ctorch\nint8\n", b"ctorch\nint9\n"))
    refused(path, "'w' is of a dtype that belay does not know: 'torch.int9'")


def test_pieces_may_have_nothing_unknown(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", [pathlib.PosixPath("x")])
    with open_file(path) as opened:
        archive = open_archive(StoredFile(path, opened.size), opened.read_at)
        with pytest.raises(ForbiddenNames, match=r"pathlib\.PosixPath"):
            read_pickle(archive, archive.read("data.pkl", 1 << 20))


def test_tensors_are_found_wherever_they_hide() -> None:
    hidden = Unknown("a.B", [({"x": Unknown("c.D", (Unreadable("sparse"),))},)])
    loop: list[object] = []
    loop.append(Unknown("a.B", loop))
    assert holds_tensors(hidden)
    assert not holds_tensors([loop, 1, None, {"a": {1}}, Unknown("a.B")])
    seen: set[int] = set()
    assert not any(holds_tensors(value, seen) for value in (loop, loop, 3, "text"))
