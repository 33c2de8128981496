"""Rules against second opinions on real tensors: ema-pytorch's power EMAs, torch, TRL, and recursions written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from belay_cli.rules import PostHoc, Power
from belay_cli.rules.power_options import exponent_of_width
from tests.conftest import Ran
from tests.interop.libraries import UPDATES, UnitVectors, network, trained_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

PAGE = (Path(__file__).parents[2] / "docs/ema-of-libraries.md").read_text()
SPACING = 50
WIDTHS = (0.05, 0.28)

Belay = Callable[..., Ran]
Weights = dict[str, Tensor]


def said(text: str) -> None:
    assert text in " ".join(PAGE.split()), text


def save(number: int, weights: Weights) -> None:
    """A checkpoint of `ckpts`, in float64: what is compared is the rule, and no rounding."""
    Path("ckpts").mkdir(exist_ok=True)
    wide = {name: tensor.detach().double().contiguous() for name, tensor in weights.items()}
    save_file(wide, f"ckpts/step-{SPACING * number}.safetensors", metadata={"format": "pt"})


def averaged(belay: Belay, *words: str) -> Weights:
    """What belay makes of `ckpts`."""
    ran = belay("average", *words, "-o", "average.safetensors", "--overwrite")
    assert ran.code == 0, ran.err
    return load_file("average.safetensors")


def assert_alike(ours: Weights, theirs: Weights, within: float = 1e-12) -> None:
    assert set(theirs) <= set(ours)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor.double(), rtol=within, atol=within, msg=name)


def wide_network() -> nn.Sequential:
    return network().double()


def parameters_of(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load(model: nn.Module, number: int) -> None:
    model.load_state_dict(trained_weights()[number])


# ---- ema-pytorch


@given(st.floats(0.01, 0.288))
def test_the_exponent_of_a_width(width: float) -> None:
    from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma

    assert exponent_of_width(width) == pytest.approx(sigma_rel_to_gamma(width), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(10, 500), min_size=1, max_size=8), st.floats(0.04, 0.27), st.sampled_from([0.1, 0.2]))
def test_the_shares_of_snapshots(gaps: list[int], width: float, second: float) -> None:
    from ema_pytorch.post_hoc_ema import solve_weights

    times = np.repeat(np.cumsum(gaps), 2).astype(float)
    widths = np.tile([0.05, second], len(gaps))
    exponents = torch.tensor([exponent_of_width(float(one)) for one in widths], dtype=torch.float64)
    end, wanted = torch.tensor([times.max()]), torch.tensor([exponent_of_width(width)], dtype=torch.float64)
    shares = solve_weights(torch.from_numpy(times), exponents, end, wanted).squeeze(-1)
    rule = PostHoc(width, tuple(widths.tolist()), tuple(times.tolist()))
    ours = torch.from_numpy(rule.coefficients(range(len(times))))
    torch.testing.assert_close(ours, shares / shares.sum(), rtol=0, atol=1e-10)


def karras(model: nn.Module, width: float, first: Callable[[], None], move: Callable[[int], None]) -> Any:
    """KarrasEMA over twelve updates, whose weights are saved; `first` saves what step 0 is to hold."""
    from ema_pytorch.post_hoc_ema import KarrasEMA

    ema = KarrasEMA(model, sigma_rel=width, update_every=1)
    first()
    for update in range(1, UPDATES + 1):
        move(update)
        ema.update()
        save(update, parameters_of(model))
    return parameters_of(ema.ema_model)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_power_ema_of_a_trained_network(width: float, belay: Belay) -> None:
    said("where step 0 holds the weights of the first update once more, by nothing")
    model = wide_network()

    def first() -> None:
        load(model, 1)
        save(0, parameters_of(model))

    theirs = karras(model, width, first, lambda update: load(model, update))
    ours = averaged(belay, "ckpts", "-m", "power", "--sigma-rel", str(width), "--unit", "checkpoint")
    assert_alike(ours, theirs)


def test_the_power_ema_from_the_initial_weights(belay: Belay) -> None:
    said("differs from it by what they weigh, 1.4e-9 of the average after twelve updates")
    model = UnitVectors()
    theirs = karras(model, 0.1, lambda: save(0, parameters_of(model)), model.move)["weight"]
    ours = averaged(belay, "ckpts", "-m", "power", "--sigma-rel", "0.1", "--unit", "checkpoint")["weight"]
    assert f"{float(ours[0]):.1e}" == "1.4e-09"
    torch.testing.assert_close(ours[1] + ours[0], theirs[1], rtol=0, atol=1e-15)
    torch.testing.assert_close(ours[2:], theirs[2:], rtol=0, atol=1e-12)


def test_what_post_hoc_ema_stored(belay: Belay) -> None:
    said("renamed to `0-step-1000.pt` and so on they state the step")
    said(
        "`synthesize_ema_model` does not divide the shares by their sum, as EDM2 and `belay` do, and its exponents are"
    )
    said("float32; with that in mind the two agree to 1e-5")
    from ema_pytorch.post_hoc_ema import PostHocEMA, solve_weights

    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    every = {"checkpoint_every_num_steps": 10, "checkpoint_dtype": torch.float64, "update_every": 1}
    ema = PostHocEMA(model, sigma_rels=WIDTHS, checkpoint_folder="stored", **every)
    for _ in range(60):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        ema.update()
    theirs = parameters_of(ema.synthesize_ema_model(sigma_rel=0.15).ema_model)
    assert belay(
        "plan", "stored/0.10.pt", "stored/1.10.pt", "--source", "ema", "-m", "posthoc", "--widths", "0.05"
    ).code

    Path("snapshots").mkdir()
    for path in Path("stored").iterdir():
        which, step = path.stem.split(".")
        path.rename(f"snapshots/{which}-step-{step}.pt")
    paths = [f"snapshots/{which}-step-{step}.pt" for step in range(10, 70, 10) for which in (0, 1)]
    typed = ["--order", "given", "--source", "ema", "--widths", ",".join(map(str, WIDTHS * 6))]
    ours = averaged(belay, *paths, "-m", "posthoc", "--sigma-rel", "0.15", *typed)

    times = torch.tensor([float(step) for step in range(10, 70, 10) for _ in WIDTHS], dtype=torch.float64)
    exponents = torch.tensor([exponent_of_width(width) for width in WIDTHS * 6], dtype=torch.float64)
    wanted = torch.tensor([exponent_of_width(0.15)], dtype=torch.float64)
    total = float(solve_weights(times, exponents, times[-1:], wanted).sum())
    assert total != pytest.approx(1, abs=1e-6)
    # Its exponents are float32, and the shares feel the last digits of those.
    assert_alike(ours, {name: tensor / total for name, tensor in theirs.items()}, within=1e-5)


# ---- torch


@pytest.mark.parametrize("window", [None, 1, 5])
def test_the_average_of_torch_is_the_uniform_one(window: int | None, belay: Belay) -> None:
    from torch.optim.swa_utils import AveragedModel

    model = wide_network()
    ema = AveragedModel(model)
    for update in range(1, UPDATES + 1):
        load(model, update)
        if update > UPDATES - (window or UPDATES):
            ema.update_parameters(model)
        save(update, parameters_of(model))
    typed = [] if window is None else ["--window", str(window)]
    assert_alike(averaged(belay, "ckpts", "-m", "uniform", *typed), parameters_of(ema.module))


# ---- TRL


def bema_callback() -> Any:
    """TRL's callback; its other requirements are many, and the tests do not ask for them."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install --no-deps trl")
    try:
        return trl.BEMACallback
    except (ImportError, RuntimeError) as error:  # its lazy modules raise RuntimeError
        pytest.skip(f"TRL cannot be imported: {str(error).splitlines()[-1]}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_power": 0.8, "bias_power": 0.4, "lag": 25, "multiplier": 0.5},
        {"ema_power": 0.9, "min_ema_multiplier": 0.1},
        {"bias_power": 0.0, "lag": 1},
    ],
    ids=str,
)
def test_bema_of_trl(options: dict[str, float], belay: Belay, tmp_path: Path) -> None:
    """Steps of a Llama, those of its parameters by hand, with the callback told of each as the Trainer tells it."""
    callback = bema_callback()(update_freq=SPACING, **options)
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerControl, TrainerState, TrainingArguments

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=False, **sizes)).double()
    arguments = TrainingArguments(output_dir=str(tmp_path / "trained"), report_to=[], use_cpu=True)
    told: dict[str, Any] = {"args": arguments, "state": TrainerState(), "control": TrainerControl(), "model": model}
    callback.on_train_begin(**told)
    callback.running_model.double()
    save(0, parameters_of(model))
    tokens = torch.arange(16).reshape(2, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(1, 6 * SPACING + 1):
        if step % 10 == 0:
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        told["state"].global_step = step
        callback.on_step_end(**told)
        if step % SPACING == 0:
            save(step // SPACING, parameters_of(model))
    typed = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    ours = averaged(belay, "ckpts", "-m", "bema", *typed)
    assert_alike(ours, parameters_of(callback.running_model))
    assert not torch.equal(ours["model.norm.weight"], model.model.norm.weight.double())


# ---- recursions written out, on the weights of the trained network


@pytest.fixture
def series() -> list[Weights]:
    """The trained network's weights in float64, which `ckpts` holds; steps 0 to 600."""
    found = [{name: tensor.double() for name, tensor in weights.items()} for weights in trained_weights()]
    for number, weights in enumerate(found):
        save(number, weights)
    return found


@pytest.mark.parametrize("eta", [0.0, 3.0, 8.5])
def test_polynomial_decay_averaging(eta: float, series: list[Weights], belay: Belay) -> None:
    """Shamir and Zhang, section 4: w̄_t = (1 − (η+1)/(t+η)) w̄_{t−1} + (η+1)/(t+η) w_t."""
    ours = averaged(belay, "ckpts", "-m", "polynomial", "--eta", str(eta))
    for name in ours:
        average = torch.zeros_like(series[0][name])
        for t, weights in enumerate(series, 1):
            average = (1 - (eta + 1) / (t + eta)) * average + (eta + 1) / (t + eta) * weights[name]
        torch.testing.assert_close(ours[name], average, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("window", [len(trained_weights()), 7])
def test_wsm(shape: str, window: int, series: list[Weights], belay: Belay) -> None:
    """Each stretch of the run once more, as much shorter as the rate would have been in the middle of it."""
    ours = averaged(belay, "ckpts", "-m", "wsm", "--shape", shape, "--window", str(window))
    taken = series[-window:]
    for name in ours:
        there = taken[0][name].clone()
        for number in range(1, window):
            u = torch.tensor((number - 0.5) / (window - 1), dtype=torch.float64)
            rate = {"linear": 1 - u, "cosine": 0.5 + 0.5 * torch.cos(torch.pi * u), "1-sqrt": 1 - u.sqrt()}[shape]
            there += rate * (taken[number][name] - taken[number - 1][name])
        torch.testing.assert_close(ours[name], there, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_power(width: float, series: list[Weights], belay: Belay) -> None:
    """EDM2, equation 127: β = (1 − Δt/t)^(γ+1), by the training step; the weights of step 0 stand for no time."""
    ours = averaged(belay, "ckpts", "-m", "power", "--sigma-rel", str(width))
    exponent = Power(width).resolve([0, 1], "step").parameters()["gamma"]
    assert isinstance(exponent, float)
    for name in ours:
        average = series[0][name]
        for number, weights in enumerate(series[1:], 1):
            beta = (1 - 1 / number) ** (exponent + 1)
            average = beta * average + (1 - beta) * weights[name]
        torch.testing.assert_close(ours[name], average, rtol=1e-12, atol=1e-12)
