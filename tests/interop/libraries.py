"""Libraries that average weights while a model trains, driven by the cells of docs/ema-of-libraries.md."""

from __future__ import annotations

import importlib.util
import re
import shutil
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

UPDATES = 12
SPACING = 50  # training steps between two checkpoints

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A line of the page's table: the library's calls, the command, and the difference relative to the weights."""

    library: str
    made: str
    updated: str
    command: str
    within: str

    def __str__(self) -> str:
        return f"{self.library}: {self.made}, {self.updated}"


def tables(page: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown page by the title of their last column; cells without their backticks."""
    found = {}
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        titles, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found[titles[-1]] = [[cell.strip("`") for cell in line] for line in lines]
    return found


def names_of_library(library: str) -> dict[str, Any]:
    """What the page's calls may name."""
    if library == "torch":
        from torch.optim import swa_utils

        return vars(swa_utils)
    if library == "timm":
        return vars(_timm_model_ema())
    if library == "diffusers":
        from diffusers.training_utils import EMAModel

        return {"EMAModel": EMAModel}
    if library == "ema-pytorch":
        from ema_pytorch import EMA

        return {"EMA": EMA}
    if library == "Lightning":
        from lightning.pytorch import callbacks

        return dict(vars(callbacks))
    return {}


def _timm_model_ema() -> ModuleType:
    """timm.utils.model_ema from its file: `import timm` needs a torchvision that was built for the torch at hand."""
    package = importlib.util.find_spec("timm")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    path = Path(package.submodule_search_locations[0]) / "utils/model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def follow(row: Row, what: str) -> Weights:
    """Save the checkpoints of one run in `ckpts`, and return what the library of the row averaged meanwhile.

    what: `trained`, a network in float32; or `units`, one float64 vector that is the n-th unit vector in checkpoint n.
    """
    shutil.rmtree("ckpts", ignore_errors=True)
    Path("belay-average.safetensors").unlink(missing_ok=True)
    if row.library == "Lightning":
        return _follow_lightning(row, what)
    model = UnitVectors() if what == "units" else network()
    names = {**names_of_library(row.library), "model": model}
    names["ema"] = None if row.library == "mergekit" else eval(row.made, names)
    _save(model, 0)
    for update in range(1, UPDATES + 1):
        if isinstance(model, UnitVectors):
            model.move(update)
        else:
            model.load_state_dict(trained_weights()[update])
        if names["ema"] is not None:
            exec(row.updated, {**names, "update": update})
        _save(model, update)
    return _merged(row) if row.library == "mergekit" else _average_in(names["ema"], model)


def saved_weights() -> list[Weights]:
    """The weights of the model itself in each checkpoint of `ckpts`, oldest first."""
    paths = sorted(Path("ckpts").iterdir(), key=lambda path: int(re.findall(r"step[-=](\d+)", path.name)[0]))
    return [_weights_in(path) for path in paths]


def _weights_in(path: Path) -> Weights:
    if path.suffix == ".safetensors":
        return load_file(path)
    saved = torch.load(path, weights_only=False)
    weights: Weights = saved.get("current_model_state", saved["state_dict"])
    return weights


# ---- models


class UnitVectors(nn.Module):
    """A float64 parameter, [UPDATES + 1], that `move` sets to a unit vector; and statistics, for `--last`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.weight = nn.Parameter(unit_vector(0))

    def move(self, n: int) -> None:
        self.weight.data.copy_(unit_vector(n))


def unit_vector(n: int) -> Tensor:
    """float64, [UPDATES + 1]"""
    return nn.functional.one_hot(torch.tensor(n), UPDATES + 1).double()


def network(norm: bool = True) -> nn.Sequential:
    """Two layers, with or without BatchNorm between them, from a fixed seed."""
    torch.manual_seed(0)
    between = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), between, nn.ReLU(), nn.Linear(8, 1))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """A regression that the network can learn. batch: [n, 4]"""
    loss: Tensor = (model(batch).squeeze(1) - batch.prod(1)).square().mean()
    return loss


@cache
def trained_weights() -> tuple[Weights, ...]:
    """The network's weights at first and after each further SPACING steps of training. UPDATES + 1 of them"""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    weights = [deepcopy(model.state_dict())]
    for step in range(1, UPDATES * SPACING + 1):
        optimizer.zero_grad()
        loss_of(model, torch.randn(16, 4, generator=generator)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % SPACING == 0:
            weights.append(deepcopy(model.state_dict()))
    return tuple(weights)


def _save(model: nn.Module, update: int) -> None:
    Path("ckpts").mkdir(exist_ok=True)
    path = f"ckpts/step-{SPACING * update}.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path, metadata={"format": "pt"})


# ---- their averages


def _average_in(ema: Any, model: nn.Module) -> Weights:
    """What the library's object averaged, by the names of the model's state dict."""
    if hasattr(ema, "shadow_params"):  # diffusers
        holder = deepcopy(model)
        ema.copy_to(holder.parameters())
        return {name: parameter.detach() for name, parameter in holder.named_parameters()}
    averaged: nn.Module = ema.ema_model if hasattr(ema, "ema_model") else ema.module
    return averaged.state_dict()


def _merged(row: Row) -> Weights:
    """mergekit's linear merge of the checkpoints in `ckpts`, one tensor after the other."""
    linear = pytest.importorskip("mergekit.merge_methods.linear")
    series = saved_weights()
    expression = row.updated.removeprefix("weight: ")
    each = [float(eval(expression, {"age": age})) for age in reversed(range(len(series)))]
    weight = torch.tensor([each], dtype=torch.float64)  # [1, T]

    def merged(name: str) -> Tensor:
        batch = linear.TensorBatch([weights[name].unsqueeze(0) for weights in series])  # T of [1, …]
        result: Tensor = linear.linear_merge.merge_batch(batch, weight=weight)
        return result.squeeze(0)

    return {name: merged(name) for name, tensor in series[0].items() if tensor.is_floating_point()}


# ---- Lightning


class LightningNetwork(LightningModule):  # type: ignore[misc]
    """The network, trained by Lightning."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layers = network(norm)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return loss_of(self.layers, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LightningUnitVectors(LightningModule):  # type: ignore[misc]
    """Unit vectors in Lightning: the optimizer counts the steps, and moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(unit_vector(0))

    def training_step(self, batch: Tensor, index: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        self.weight.data.copy_(unit_vector(self.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _follow_lightning(row: Row, what: str) -> Weights:
    """As many epochs as updates, of one batch each, so that steps and epochs count alike."""
    names = names_of_library("Lightning")
    callbacks = [eval(row.made, names), eval(row.updated, names)]
    # With BatchNorm, Lightning's SWA runs another epoch to estimate the statistics.
    norm = "Stochastic" not in row.made
    model: LightningModule = LightningUnitVectors() if what == "units" else LightningNetwork(norm)
    batch = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(batch, batch_size=None)  # type: ignore[var-annotated, arg-type]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=UPDATES, accelerator="cpu", callbacks=callbacks, **quiet).fit(model, loader)
    return dict(model.state_dict())
