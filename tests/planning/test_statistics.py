"""Warnings about tensors that belong to one set of weights, with the effect that they warn of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from belay_cli import average
from belay_cli.show.report import Report

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")

SPECTRAL = (
    "spectral norm vectors are averaged like weights ({}), so that the norms of their layers are not 1; "
    "re-estimate them: a few dozen forward passes in train mode, without an optimizer"
)
WEIGHT_NORM = (
    "weight norm's lengths g and directions v are averaged apart ({}), and g·v/|v| of them is not the "
    "average of the weights; for that, take it off the checkpoints first: {}"
)
REMOVE = ("torch.nn.utils.remove_weight_norm", "torch.nn.utils.parametrize.remove_parametrizations")
CODES = (
    "codebook statistics are averaged apart ({}), and the codes that they give, sum / count, are not the "
    "averaged codes; set the sums to averaged codes · count"
)
BATCH_NORM = (
    "BatchNorm statistics are averaged like weights ({}); "
    "re-estimate them on training data: torch.optim.swa_utils.update_bn"
)


def averaged(models: Sequence[nn.Module]) -> Report:
    return of_states([model.state_dict() for model in models])


def of_states(states: Sequence[dict[str, torch.Tensor]], **options: Any) -> Report:
    for number, state in enumerate(states, 1):
        torch.save(state, f"step_{number}00.pt")
    return average(sorted(Path.cwd().glob("step_*.pt")), "out.safetensors", unit="checkpoint", **options)


def quiet(make: Callable[..., nn.Module], *arguments: object, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says which of its two forms is the older one
        return make(*arguments, **options)


def norm(layer: Any) -> float:
    with torch.no_grad():
        layer.eval()(torch.zeros(1, 32))
        return float(torch.linalg.matrix_norm(layer.weight.detach(), 2))


@pytest.mark.parametrize(
    "make, names",
    [
        (nn.utils.spectral_norm, "weight_u and 1 more"),
        (parametrizations.spectral_norm, "parametrizations.weight.0._u and 1 more"),
    ],
)
def test_spectral_norm_is_lost_and_comes_back_by_the_mend(make: Callable[..., Any], names: str) -> None:
    torch.manual_seed(0)
    layers = [quiet(make, nn.Linear(32, 32), n_power_iterations=30) for _ in range(4)]
    for layer in layers:
        layer(torch.zeros(1, 32))
        assert norm(layer) == pytest.approx(1, abs=0.01)
    assert averaged(layers).warnings == [SPECTRAL.format(names)]

    layer = quiet(make, nn.Linear(32, 32))
    layer.load_state_dict(load_file("out.safetensors"))
    assert norm(layer) > 1.5
    layer.train()
    for _ in range(36):
        layer(torch.zeros(1, 32))
    assert norm(layer) == pytest.approx(1, abs=1e-3)


def plain(layer: Any, take_off: Callable[[nn.Module], object]) -> Any:
    take_off(layer)
    return layer.weight.detach()


@pytest.mark.parametrize(
    "make, take_off, names, mend",
    [
        (nn.utils.weight_norm, nn.utils.remove_weight_norm, "weight_g and 1 more", REMOVE[0]),
        (
            parametrizations.weight_norm,
            lambda layer: parametrize.remove_parametrizations(layer, "weight"),
            "parametrizations.weight.original0 and 1 more",
            REMOVE[1],
        ),
    ],
)
@pytest.mark.parametrize("dim", [0, None])
def test_weight_norm_is_averaged_apart_and_whole_by_the_mend(
    make: Callable[..., Any], take_off: Callable[..., Any], names: str, mend: str, dim: int | None
) -> None:
    torch.manual_seed(0)
    layers = [quiet(make, nn.Conv1d(4, 6, 3), dim=dim) for _ in range(3)]
    report = averaged(layers)
    assert report.warnings == [WEIGHT_NORM.format(names, mend)]

    apart = quiet(make, nn.Conv1d(4, 6, 3), dim=dim)
    apart.load_state_dict(load_file("out.safetensors"))
    coefficients = [checkpoint.coefficient for checkpoint in report.checkpoints]
    weights = [plain(layer, take_off) for layer in layers]
    exact = torch.as_tensor(sum(c * w.double() for c, w in zip(coefficients, weights, strict=True))).float()
    assert (plain(apart, take_off) - exact).norm() > 0.3 * exact.norm()

    Path("out.safetensors").unlink()
    assert averaged(layers).warnings == []
    assert torch.equal(load_file("out.safetensors")["weight"], exact)


@pytest.mark.parametrize(
    "names, text",
    [
        (("bn.running_mean", "bn.running_var", "c.running_std"), BATCH_NORM.format("bn.running_mean and 2 more")),
        (("bn.running_var",), BATCH_NORM.format("bn.running_var")),
        (("vq.embed", "vq.cluster_size", "vq.embed_avg"), CODES.format("vq.cluster_size and 1 more")),
        (("vq._ema_cluster_size", "vq._ema_w"), CODES.format("vq._ema_cluster_size")),
        (("q.codebook.cluster_usage", "q.codebook.embed_sum"), CODES.format("q.codebook.cluster_usage and 1 more")),
        (("l.weight", "l.u0", "l.sv0"), SPECTRAL.format("l.u0 and 1 more")),
    ],
)
def test_other_statistics_are_known_by_names_that_go_together(names: tuple[str, ...], text: str) -> None:
    states = [{name: torch.randn(3) for name in names} for _ in range(2)]
    assert of_states(states).warnings == [text]


@pytest.mark.parametrize(
    "shapes",
    [
        {"conv.weight_u": (4,), "conv.weight": (4, 4)},
        {"conv.weight_v": (4,)},
        {"a.w_g": (8, 4), "a.w_v": (8, 4)},  # the gate and the value of an attention
        {"a.w_g": (8,), "a.w_v": (8,)},
        {"a.w_u": (8, 4), "a.w_v": (8, 4), "a.w_orig": (8, 4)},
        {"a.parametrizations.weight.original": (3, 3), "b.parametrizations.weight.0._u": (3,)},
        {"p.parametrizations.weight.original0": (3, 4), "p.parametrizations.weight.original1": (3, 4)},
        {"cluster_size": (4,)},
        {"embed_avg": (4, 4), "u0": (4,)},
        {"seg_mask": (4, 4)},
    ],
    ids=lambda shapes: next(iter(shapes)),
)
def test_a_name_without_its_partner_is_a_weight(shapes: dict[str, tuple[int, ...]]) -> None:
    states = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2)]
    assert of_states(states).warnings == []


def test_what_is_taken_from_the_last_checkpoint_is_nobodys_average() -> None:
    torch.manual_seed(0)
    states = [quiet(nn.utils.spectral_norm, nn.Linear(4, 4)).state_dict() for _ in range(2)]
    assert of_states(states, last=["weight_[uv]"]).warnings == []


def test_pruning_masks_that_differ_leave_weights_that_are_half_gone() -> None:
    torch.manual_seed(0)
    prune_some: Any = prune.l1_unstructured
    layers = [prune_some(nn.Linear(8, 8), "weight", amount=0.5) for _ in range(2)]
    assert averaged(layers).warnings == [
        "pruning masks are averaged like weights (weight_mask): where they differ, a weight is neither there nor gone; "
        "make the pruning permanent in the checkpoints first: torch.nn.utils.prune.remove"
    ]
    mask = load_file("out.safetensors")["weight_mask"]
    assert ((mask > 0) & (mask < 1)).any()


def test_the_mend_of_a_codebook_gives_the_averaged_codes() -> None:
    torch.manual_seed(0)
    states = []
    for _ in range(2):
        counts, codes = torch.rand(5) + 1, torch.randn(5, 3)
        states.append({"embed": codes, "cluster_size": counts, "embed_avg": codes * counts[:, None]})
    of_states(states)
    found = load_file("out.safetensors")
    count = found["cluster_size"][:, None]
    assert not torch.allclose(found["embed_avg"] / count, found["embed"], atol=0.01)
    mended = found["embed"] * count
    assert torch.allclose(mended / count, found["embed"])
