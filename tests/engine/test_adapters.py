"""Adapters: the average of the updates is exact, checked with the real peft; what cannot be is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from belay_cli import Ema, average
from belay_cli.engine.low_rank import average_update, relative_error
from belay_cli.show.report import Report
from tests.conftest import Ran

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = (100, 200, 300)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(19, 12)
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.first = torch.nn.Linear(12, 16)
        self.second = torch.nn.Linear(16, 10)


def adapter(seed: int = 0, modules: tuple[str, ...] = ("first", "second", "conv", "embed"), **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": list(modules), **options}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model


def run(**options: Any) -> None:
    for seed, step in enumerate(STEPS):
        adapter(seed, **options).save_pretrained(f"run/checkpoint-{step}")


def updates(model: Any) -> dict[str, torch.Tensor]:
    """Every update, by module, as peft computes it."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def loaded(directory: str) -> Any:
    from peft import PeftModel

    torch.manual_seed(0)
    return PeftModel.from_pretrained(Net(), directory)


def expected(report: Report, **options: Any) -> Any:
    found: dict[str, Any] = {}
    for seed, entry in enumerate(report.checkpoints):
        for name, update in updates(adapter(seed, **options)).items():
            found[name] = found.get(name, 0) + entry.coefficient * update
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["second"], "modules": ("first", "embed")},
    ],
)
def test_the_average_of_updates_is_exact(options: dict[str, Any], belay: Callable[..., Ran]) -> None:
    run(**options)
    report = average(["run"], "out", method=Ema(half_life="60%"), lora="delta", lora_rank=6)
    assert report.discarded_energy is not None and report.discarded_energy < 1e-12
    assert not any("no tensor is averaged" in warning for warning in report.warnings)
    found, exact = updates(loaded("out")), expected(report, **options)
    assert found.keys() == exact.keys()
    for name, update in exact.items():
        error = torch.linalg.vector_norm(found[name] - update) / torch.linalg.vector_norm(update)
        assert error < 1e-6, (name, float(error))
    assert json.loads(Path("out/adapter_config.json").read_text())["r"] == 6
    assert belay("verify", "out", "--sample", "all").code == 0


def test_its_own_rank_is_the_best_of_that_rank(belay: Callable[..., Ran]) -> None:
    run(modules=("first", "second"))
    report = average(["run"], "out", method=Ema(half_life="60%"), lora="delta")
    found, exact = updates(loaded("out")), expected(report, modules=("first", "second"))
    worst = 0.0
    for name, update in exact.items():
        u, s, vt = np.linalg.svd(update.numpy())
        best = (u[:, :2] * s[:2]) @ vt[:2]
        assert np.linalg.norm(found[name].numpy() - best) <= 1e-6 * np.linalg.norm(best)
        worst = max(worst, float(np.sqrt((s[2:] ** 2).sum() / (s**2).sum())))
    assert report.discarded_energy == pytest.approx(worst, rel=1e-6)
    assert belay("verify", "out").code == 0
    assert Path("out/adapter_config.json").read_bytes() == Path("run/checkpoint-300/adapter_config.json").read_bytes()


def test_a_changed_update_is_found(belay: Callable[..., Ran]) -> None:
    run(modules=("first",))
    average(["run"], "out", lora="delta")
    record = json.loads(Path("out/belay.json").read_text())
    from safetensors import safe_open

    with safe_open("out/adapter_model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    state = load_file("out/adapter_model.safetensors")
    name = next(name for name in state if "lora_A" in name)
    state[name][0] *= 1.001
    import hashlib

    record["digests"][name] = hashlib.sha256(state[name].numpy().tobytes()).hexdigest()
    metadata["belay.digests"] = json.dumps(record["digests"])
    save_file(state, "out/adapter_model.safetensors", metadata=metadata)
    Path("out/belay.json").write_text(json.dumps(record))
    ran = belay("verify", "out")
    assert ran.code == 1
    assert "off the average of the updates" in ran.out


def test_factors_are_averaged_as_they_are(belay: Callable[..., Ran]) -> None:
    run()
    ran = belay("average", "run", "-o", "out", "--lora", "factors")
    assert ran.code == 0
    assert "warning: these are adapters: their factors A and B are averaged apart" in ran.err
    assert belay("verify", "out").code == 0


def test_without_a_choice_both_are_explained(belay: Callable[..., Ran]) -> None:
    run()
    ran = belay("average", "run", "-o", "out")
    assert (ran.code, os.listdir(".")) == (1, ["run"])
    assert ran.err.splitlines()[-2:] == [
        "belay: run/checkpoint-300: is an adapter: the average of its factors A and B is not the average of the "
        "updates B·A",
        "       --lora delta averages the updates, kept low-rank; --lora factors averages A and B as they are",
    ]


def config(change: dict[str, Any], step: int = 300) -> None:
    path = Path(f"run/checkpoint-{step}/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "step", "said"),
    [
        ({"lora_alpha": 5}, 100, "has lora_alpha 5; in checkpoint-300 it is 6, so their updates are scaled diff"),
        ({"use_rslora": True}, 200, "has use_rslora true; in checkpoint-300 it is false"),
        ({"target_parameters": ["experts.up"]}, 300, "is an adapter of the kind LoRA on single parameters (experts)"),
        ({"use_dora": True}, 300, "is an adapter of the kind DoRA, whose update is no product B·A"),
        ({"peft_type": "LOHA"}, 300, 'is an adapter of the kind "LOHA", whose update is no product'),
    ],
)
def test_what_delta_refuses(belay: Callable[..., Ran], change: dict[str, Any], step: int, said: str) -> None:
    run(modules=("first",))
    config(change, step)
    ran = belay("average", "run", "-o", "out", "--lora", "delta")
    assert ran.code == 1
    assert said in ran.err
    assert os.listdir(".") == ["run"]


@pytest.mark.parametrize("choice", [[], ["--lora", "delta"], ["--lora", "factors"]])
def test_what_is_linear_needs_no_choice(belay: Callable[..., Ran], choice: list[str]) -> None:
    from peft import IA3Config, get_peft_model

    for seed, step in enumerate(STEPS):
        torch.manual_seed(seed)
        config = IA3Config(target_modules=["first", "second"], feedforward_modules=["second"], init_ia3_weights=False)
        get_peft_model(Net(), config).save_pretrained(f"run/checkpoint-{step}")
    ran = belay("average", "run", "-o", "out", "--unit", "checkpoint", *choice)
    assert (ran.code, ran.err.count("warning")) == (0, 0), ran.err
    assert belay("verify", "out").code == 0


def test_another_rank_after_an_orthogonal_beginning(belay: Callable[..., Ran]) -> None:
    run(modules=("first", "second"), init_lora_weights="orthogonal")
    report = average(["run"], "out", method=Ema(half_life="60%"), lora="delta", lora_rank=5)
    assert len(updates(loaded("out"))) == 2
    assert report.discarded_energy is not None and report.discarded_energy < 0.5


def test_dora_is_known_by_its_tensors(belay: Callable[..., Ran]) -> None:
    run(modules=("first",), use_dora=True)
    config({"use_dora": False}, 100)
    for step in STEPS:
        config({"use_dora": False}, step)
    assert (
        "is an adapter of the kind DoRA, whose update is no product B·A"
        in belay("average", "run", "-o", "out", "--lora", "delta").err
    )


def test_options_that_do_not_fit(belay: Callable[..., Ran], tmp_path: Path) -> None:
    run(modules=("first",))
    assert belay("average", "run", "--lora", "both").code == 2
    assert belay("average", "run", "--lora", "factors", "--lora-rank", "3").code == 2
    name = "base_model.model.first.lora_A.weight"
    ran = belay("average", "run", "--lora", "delta", "--last", name)
    assert (ran.code, "are one update, and need one policy" in ran.err) == (2, True)
    for step in STEPS:
        config({"init_lora_weights": "pissa_niter_16"}, step)
    ran = belay("average", "run", "-o", "out", "--lora", "delta", "--lora-rank", "3")
    assert (ran.code, "these adapters began with pissa_niter_16" in ran.err) == (2, True)
    for step in STEPS:
        config({"init_lora_weights": True}, step)
    for step in STEPS:
        config({"rank_pattern": {"first": 2}}, step)
    ran = belay("average", "run", "-o", "out", "--lora", "delta", "--lora-rank", "3")
    assert (ran.code, "these adapters have several" in ran.err) == (2, True)
    assert belay("average", "run", "-o", "out", "--lora", "delta").code == 0
    save_file({"w": torch.zeros(2)}, tmp_path / "step-1.safetensors")
    assert belay("average", tmp_path / "step-1.safetensors", "--lora", "delta").code == 2


def test_the_same_bytes_every_time() -> None:
    run()
    for name, threads in (("one", 1), ("two", 2)):
        average(["run"], name, lora="delta", threads=threads)
    assert Path("one/adapter_model.safetensors").read_bytes() == Path("two/adapter_model.safetensors").read_bytes()


@example(sizes=(1, 1, 4, 4), seed=98, scale=1e4)  # products that nearly cancel
@example(sizes=(1, 1, 4, 1), seed=72, scale=1e-6)  # terms of one product that do
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 8)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_sums_of_products(sizes: tuple[int, ...], seed: int, scale: float) -> None:
    out, into, r, count = sizes
    rng = np.random.default_rng(seed)
    parts = [
        (float(rng.standard_normal()), rng.standard_normal((out, r)) * scale, rng.standard_normal((r, into)))
        for _ in range(count)
    ]
    exact = sum((c * b @ a for c, b, a in parts), np.zeros((out, into)))
    found = average_update(parts, count * r)
    assert np.linalg.norm(found.b @ found.a - exact) <= 1e-12 * max(1e-30, scale * count * r * 100)
    assert found.discarded < 1e-12
    terms = sum(float(np.linalg.norm(abs(c) * abs(b) @ abs(a))) for c, b, a in parts)
    cancelled = terms / max(float(np.linalg.norm(exact)), 1e-300)  # what terms lose of each other, it loses
    expected = np.concatenate([c * b for c, b, _ in parts], 1), np.concatenate([a for *_, a in parts], 0)
    assert relative_error((found.b, found.a), expected) < 1e-6 * cancelled


def test_many_factors_take_little_memory_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from belay_cli.engine import low_rank

    monkeypatch.setattr(low_rank, "_WIDEST", 8)
    rng = np.random.default_rng(0)
    parts = [(0.1, rng.standard_normal((40, 4)), rng.standard_normal((4, 30))) for _ in range(50)]
    exact = sum((c * b @ a for c, b, a in parts), np.zeros((40, 30)))
    found = low_rank.average_update(parts, 30)
    assert np.linalg.norm(found.b @ found.a - exact) <= 1e-12 * np.linalg.norm(exact)
