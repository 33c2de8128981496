"""The state dict among the other things of a torch file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.formats.torch.files import assert_same, load, read, refused, saved, sd


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "module", "net", "weights", "params", "model.state_dict"]
)
def test_the_state_dict_of_a_training_checkpoint(tmp_path: Path, key: str) -> None:
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


def test_a_key_that_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"nets": {"gen.0": sd(1), "disc": sd(2)}, "optimizer": {"state": {"x": sd(3)}}})
    error = refused(path, "holds several state dicts: weights lie under nets.gen.0, nets.disc")
    assert error.hint == "say which: --state-key nets.gen.0"
    assert_same(read(path, state_key="nets.disc"), sd(2))
    assert_same(read(path, state_key="nets.gen.0"), sd(1))
    assert_same(read(path, state_key="optimizer.state.x"), sd(3))
    refused(path, "holds no state dict under 'nets': weights lie under nets.gen.0, nets.disc", state_key="nets")
    refused(path, "holds no state dict under 'nets.gen.0.a'", state_key="nets.gen.0.a")
    refused(path, "holds no state dict under ''", state_key="")


def test_weights_under_keys_that_say_nothing(tmp_path: Path) -> None:
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
def test_objects_without_a_state_dict(tmp_path: Path, value: Any, message: str) -> None:
    refused(saved(tmp_path / "a.pt", value), message)


def test_what_is_no_tensor_is_left_out_with_a_note(tmp_path: Path) -> None:
    extra = {"bn._extra_state": {"any": 1}, "_metadata": {"version": 1}, "epoch": 3, "name": "x", "none": None}
    found = read(saved(tmp_path / "a.pt", {**sd(), **extra}))
    assert_same(found, sd())
    states = "leaves out 1 _extra_state, no tensors: bn._extra_state"
    assert found.notes == (states, "leaves out what is no tensor: epoch, name, none")


def test_prefixes_are_taken_off(tmp_path: Path) -> None:
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


def test_compiled_and_parallel_models(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled: Any = torch.compile(model, backend="eager")
        wrapped = torch.nn.DataParallel(compiled)
    path = saved(tmp_path / "a.pt", wrapped.state_dict())
    assert "module._orig_mod.weight" in load(path)
    assert_same(read(path), model.state_dict())
