"""The average as a file: read by safetensors and into a fresh model, whole or not there, with what made it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn
from torch.optim import SGD

from belay_cli import __version__
from belay_cli.errors import OutputError, UsageError
from belay_cli.training import Belay
from tests.conftest import everything_in
from tests.training.models import averages, network, same, train, weights

PATH = "average.safetensors"


def trained(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Sequential, Belay]:
    model = network(dtype)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, **{"half_life": 5, **options})
    train(model, optimizer, range(7))
    return model, belay


def metadata(path: str | Path = PATH) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_what_is_saved_is_the_average_by_the_names_of_the_model() -> None:
    model, belay = trained()
    belay.save(PATH)
    stored = load_file(PATH)
    assert sorted(stored) == sorted(model.state_dict())
    assert same([stored[name] for name in model.state_dict()], averages(belay))
    fresh = network(torch.float32, seed=1)
    load_model(fresh, PATH)
    assert same(weights(fresh), averages(belay))
    assert everything_in(Path.cwd()) == [PATH]


def test_the_metadata_says_what_made_it() -> None:
    _, belay = trained(stiffness=0.5, inertia=0.25, start_step=1, update_every=2)
    belay.save(PATH)
    found = metadata()
    assert json.loads(found.pop("belay.training")) == {
        "version": __version__,
        "half_life": 5,
        "decay": None,
        "feedback": None,
        "stiffness": 0.5,
        "metric": None,
        "implicit": True,
        "inertia": 0.25,
        "warmup": 0.1,
        "start_step": 1,
        "update_every": 2,
        "steps": 7,
        "updates": 3,
    }
    assert found == {"format": "pt", "step": "7"}
    belay.save(PATH, step=1007)
    assert metadata()["step"] == "1007"
    belay.save(PATH, step=0)
    assert metadata()["step"] == "0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_are_rounded_once_to_the_dtype_of_their_weights_or_as_asked(dtype: torch.dtype) -> None:
    model, belay = trained(dtype)
    assert same(belay.averaged_state_dict().values(), [e.to(dtype) for e in averages(belay)])
    assert same(belay.averaged_state_dict(dtype=torch.float32).values(), averages(belay))
    belay.save(PATH, dtype=torch.float32)
    stored = load_file(PATH)
    assert same([stored[name] for name in model.state_dict()], averages(belay))
    network(dtype).load_state_dict(belay.averaged_state_dict())


def test_frozen_parameters_and_buffers_are_the_models() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    model[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(5))
    result = belay.averaged_state_dict(dtype=torch.float32)
    state = model.state_dict()
    assert list(result) == list(state)
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert same([result[name]], [state[name]])
        assert result[name].data_ptr() != state[name].data_ptr()
    assert result["1.num_batches_tracked"] == 5
    for name, e in belay.state_dict()["average"].items():
        assert same([result[name]], [e.float()])
    assert sum(r.dtype == torch.float32 for r in result.values()) == 4


def test_the_result_is_a_copy() -> None:
    _, belay = trained()
    before = averages(belay)
    for tensor in belay.averaged_state_dict().values():
        tensor.zero_()
    assert same(averages(belay), before)


def test_it_is_the_same_while_the_average_is_in_place() -> None:
    model, belay = trained(torch.bfloat16)
    outside = belay.averaged_state_dict(dtype=torch.float32)
    belay.save("outside.safetensors")
    with belay.averaged():
        assert same(belay.averaged_state_dict(dtype=torch.float32).values(), outside.values())
        belay.save(PATH)
        with pytest.raises(UsageError):
            model.state_dict()
    assert metadata(PATH) == metadata("outside.safetensors")
    assert same(load_file(PATH).values(), load_file("outside.safetensors").values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.inner(self.embed(x)))


def test_tied_weights_are_written_once_and_loaded_as_both() -> None:
    model = Tied()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    model(torch.arange(7)).square().mean().backward()
    optimizer.step()
    belay.save(PATH)
    stored = load_file(PATH)
    assert sorted(stored) == ["embed.weight", "inner.bias", "inner.weight"]
    assert metadata()["head.weight"] == "embed.weight"
    fresh = Tied()
    load_model(fresh, PATH)
    assert same([fresh.embed.weight.detach()], [stored["embed.weight"]])
    assert fresh.head.weight is fresh.embed.weight
    plain = Tied()
    plain.load_state_dict(belay.averaged_state_dict())


def test_layouts_are_written_as_rows() -> None:
    conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = SGD(conv.parameters(), lr=0.05)
    belay = Belay(optimizer, model=conv, half_life=5)
    conv(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizer.step()
    belay.save(PATH)
    assert same([load_file(PATH)["weight"]], [belay.state_dict()["average"]["weight"]])


def test_tensors_that_are_empty_are_kept() -> None:
    model = nn.ParameterDict({"a": torch.zeros(0, 3), "b": torch.zeros(0, 3), "c": torch.ones(2)})
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    belay.save(PATH)
    assert sorted(load_file(PATH)) == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["nowhere/average.safetensors", "standing.safetensors"])
def test_a_file_that_cannot_be_written_leaves_nothing(path: str) -> None:
    _, belay = trained()
    Path("standing.safetensors").mkdir()
    Path("standing.safetensors/inside").touch()
    before = everything_in(Path.cwd())
    with pytest.raises(OutputError) as failed:
        belay.save(path)
    reason = "No such file or directory" if "nowhere" in path else "Is a directory"
    assert str(failed.value) == f"{path}: cannot be written ({reason})"
    assert everything_in(Path.cwd()) == before


SMALL = """
import resource, signal, sys, torch
from torch import nn
from belay_cli.errors import OutputError
from belay_cli.training import Belay
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = nn.Linear(200, 200)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
belay = Belay(optimizer, model=model)
model(torch.ones(1, 200)).sum().backward()
optimizer.step()
belay.save("average.safetensors")
optimizer.step()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    belay.save("average.safetensors")
except OutputError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_the_file_that_was_there() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("average.safetensors: cannot be written ("), done.stderr
    assert "File too large" in done.stdout
    assert everything_in(Path.cwd()) == ["average.safetensors"]
    assert load_file("average.safetensors")["weight"].shape == (200, 200)


def test_a_file_is_replaced_whole() -> None:
    model, belay = trained()
    Path(PATH).write_bytes(b"what was there")
    os.link(PATH, "other")
    belay.save(PATH)
    assert Path("other").read_bytes() == b"what was there"
    assert sorted(load_file(PATH)) == sorted(model.state_dict())


def test_another_kind_of_file_is_refused() -> None:
    _, belay = trained()
    for path, hint in (("average.pt", "average.safetensors"), ("average", "average.safetensors")):
        with pytest.raises(UsageError) as refused:
            belay.save(path)
        assert str(refused.value) == f"{path} does not end in .safetensors"
        assert refused.value.hint == hint
    assert everything_in(Path.cwd()) == []


def test_before_the_first_update_there_is_nothing_to_save() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5, start_step=3)
    train(model, optimizer, range(3))
    with pytest.raises(UsageError) as refused:
        belay.save(PATH)
    assert str(refused.value) == "no step was averaged yet"
    assert refused.value.hint == "save the model itself"
    train(model, optimizer, range(3, 4))
    belay.save(PATH)


def test_without_a_model_there_are_no_names_to_save_by() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05)
    belay = Belay(optimizer, half_life=5)
    train(model, optimizer, range(1))
    with pytest.raises(UsageError) as refused:
        belay.save(PATH)
    assert str(refused.value) == "the model is not known"
    assert refused.value.hint == "Belay(optimizer, model=model, …)"


def test_a_parameter_that_another_optimizer_trains_is_refused() -> None:
    model = network()
    optimizer = SGD(model[0].parameters(), lr=0.05)
    belay = Belay(optimizer, model=model, half_life=5)
    train(model, optimizer, range(1))
    with pytest.raises(UsageError) as refused:
        belay.save(PATH)
    assert str(refused.value) == "is trained, but not by this optimizer, so that there is no average of it"
    assert refused.value.tensor == "2.weight"
    assert everything_in(Path.cwd()) == []


def test_the_same_average_has_the_same_bytes(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    belay = Belay(optimizer, model=model, half_life=5, stiffness=1.0)
    torch.autograd.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    for i in range(8):
        belay.save(tmp_path / f"{i}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.glob("*.safetensors")}) == 1
