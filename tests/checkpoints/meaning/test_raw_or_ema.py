"""Raw weights and their EMAs in one torch file: which is meant, or that it has to be said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from tests.formats.torch.files import assert_same, read, refused, saved, sd


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
def test_an_ema_beside_the_weights(tmp_path: Path, raw: str, ema: str) -> None:
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
def test_an_ema_in_a_wrapper(tmp_path: Path, inner: str) -> None:
    path = saved(tmp_path / "a.pth", {"model": sd(1), "ema": {"decay": 0.9, inner: sd(2)}})
    refused(path, f"holds raw weights (model) and their EMA (ema.{inner})")
    assert_same(read(path, source="ema"), sd(2))


def test_several_emas(tmp_path: Path) -> None:
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


def test_an_average_of_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"n_averaged": torch.tensor(3)})
    refused(path, "holds no weights, only counters (with n_averaged)", source="ema")


def test_only_an_ema(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"params_ema": sd(2)})
    error = refused(path, "holds only an average of weights (params_ema)")
    assert error.hint == "leave it out, or average EMAs on purpose: --source ema"
    refused(path, "holds only an average of weights", source="raw")
    assert_same(read(path, source="ema"), sd(2))


def test_an_optimizer_for_the_ema_is_no_ema(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": sd(1), "ema_optimizer": {"x": torch.ones(1)}, "ema": 0.999})
    assert_same(read(path), sd(1))


def test_latent_diffusion(tmp_path: Path) -> None:
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
def test_a_twin_inside_the_state_dict(tmp_path: Path, raw: str, ema: str) -> None:
    path = saved(tmp_path / "a.pt", {**sd(1, raw), **sd(2, ema)})
    refused(path, f"and their EMA ({ema}*)")
    assert_same(read(path, source="raw"), sd(1, raw))
    assert_same(read(path, source="ema"), sd(2, raw))


def test_ema_pytorch(tmp_path: Path) -> None:
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


def test_a_module_that_is_called_ema_but_has_no_twin(tmp_path: Path) -> None:
    values = {"ema_gate.weight": torch.ones(2), "other.weight": torch.ones(3)}
    assert_same(read(saved(tmp_path / "a.pt", values)), values)


def test_an_averaged_model_of_torch(tmp_path: Path) -> None:
    model = AveragedModel(torch.nn.Linear(2, 2))
    path = saved(tmp_path / "a.pt", model.state_dict())
    refused(path, "holds only an average of weights (with n_averaged)")
    assert_same(read(path, source="ema"), model.module.state_dict())


def test_the_ema_twin_of_nemo(tmp_path: Path) -> None:
    path = saved(tmp_path / "step=10-EMA.ckpt", {"state_dict": sd()})
    refused(path, "holds only an average of weights (state_dict, by the name of the file)")
    refused(path, "holds only an average of weights", source="raw")
    assert_same(read(path, source="ema"), sd())


def test_a_directory_of_diffusers_for_the_ema(tmp_path: Path) -> None:
    for name in ("unet", "unet_ema"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "diffusion_pytorch_model.bin", sd())
    assert_same(read(tmp_path / "unet_ema" / "diffusion_pytorch_model.bin", source="ema"), sd())
    refused(tmp_path / "unet" / "diffusion_pytorch_model.bin", "holds no EMA", source="ema")
