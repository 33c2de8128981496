"""Inputs after public bug reports: each is averaged rightly, or refused with the true reason and the mend."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import Ran

pytestmark = pytest.mark.filterwarnings("ignore")

GIVEN = "       give the checkpoints in order, with --order given\n"


def const(value: int) -> dict[str, torch.Tensor]:
    return {"l.weight": torch.full((4, 3), float(value)), "l.bias": torch.full((4,), float(value))}


def names_in_order(ran: Ran) -> list[str]:
    """The checkpoints of a plan in the order of the series."""
    return [entry["name"] for entry in ran.json["checkpoints"]]


def value(path: str) -> float:
    """The one value of an average of constants."""
    (found,) = set(load_file(path)["l.bias"].tolist())
    return float(found)


# ---- adapters


def test_adapters_of_kohya(belay: Callable[..., Ran]) -> None:
    g = torch.Generator().manual_seed(0)
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    factors = []
    for i in (1, 2, 3):
        down, up = torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g)
        factors.append((up.double(), down.double()))
        saved = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        metadata = {"ss_network_module": "networks.lora", "ss_network_dim": "2"}
        save_file(saved, f"x-{i:06d}.safetensors", metadata=metadata)
    paths = sorted(Path.cwd().glob("x-*"))
    ran = belay("average", *paths, "-o", "o.safetensors")
    assert ran.code == 1
    assert "--lora delta" in ran.err
    assert not Path("o.safetensors").exists()
    ran = belay("average", *paths, "--lora", "delta", "--lora-rank", "6", "-o", "o.safetensors", "--json")
    assert ran.code == 0
    c = [entry["coefficient"] for entry in ran.json["checkpoints"]]
    expected = sum(k * up @ down for k, (up, down) in zip(c, factors, strict=True))
    found = load_file("o.safetensors")
    product = found[f"{name}.lora_up.weight"].double() @ found[f"{name}.lora_down.weight"].double()
    scale = float(found[f"{name}.alpha"]) / found[f"{name}.lora_down.weight"].shape[0]
    assert torch.linalg.norm(scale * product - 0.5 * expected) <= 1e-6 * torch.linalg.norm(0.5 * expected)


# ---- what lies beside the weights


def test_configurations_of_other_libraries_are_copied(belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        directory = Path(f"out/step-{step:08d}")
        directory.mkdir(parents=True)
        torch.save({"model": const(step)}, directory / "lit_model.pth")
        for name in ("model_config.yaml", "hyperparameters.yaml", "tokenizer.json"):
            (directory / name).write_text("{}")
    assert belay("average", "out", "-o", "avg").code == 0
    for name in ("model_config.yaml", "hyperparameters.yaml", "tokenizer.json"):
        assert Path("avg", name).read_text() == "{}"


def test_a_configuration_says_the_dtype_of_the_weights(belay: Callable[..., Ran]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    for step in (100, 200):
        model.save_pretrained(f"run/checkpoint-{step}")
    assert belay("average", "run", "--dtype", "bfloat16", "-o", "out").code == 0
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    assert next(LlamaForCausalLM.from_pretrained("out").parameters()).dtype == torch.bfloat16
    assert belay("average", "run", "-o", "same").code == 0
    assert Path("same/config.json").read_bytes() == Path("run/checkpoint-200/config.json").read_bytes()


@pytest.mark.parametrize(
    ("beside", "options"),
    [
        ("non_lora_trainables.bin", ["--lora", "delta"]),
        ("value_head.safetensors", []),
        ("model_1.safetensors", []),
        ("style/adapter_model.safetensors", ["--lora", "delta"]),
        ("v_head.bin", []),
        ("2_Dense/pytorch_model.bin", []),
        ("critic/model.safetensors", []),
        ("text_projection.pt", []),
    ],
)
@pytest.mark.parametrize("command", ["average", "plan", "inspect"])
def test_weights_left_beside_are_listed(
    belay: Callable[..., Ran], beside: str, options: list[str], command: str
) -> None:
    g = torch.Generator().manual_seed(0)
    for step in (100, 200, 300):
        directory = Path(f"run/checkpoint-{step}")
        (directory / beside).parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(exist_ok=True)
        if options:
            factors = {"lora_A": torch.randn(2, 6, generator=g), "lora_B": torch.randn(5, 2, generator=g)}
            save_file({f"m.l.{k}.weight": v for k, v in factors.items()}, directory / "adapter_model.safetensors")
            (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
        else:
            save_file(const(step), directory / "model.safetensors")
        other = {"v.weight": torch.randn(1, 4, generator=g)}
        save = save_file if beside.endswith(".safetensors") else torch.save
        save(other, directory / beside)
        torch.save({"state": {}}, directory / "optimizer.pt")
        torch.save({"state": {}}, directory / "rng_state_0.pth")
    ran = belay(command, "run", *([] if command == "inspect" else options))
    assert ran.code == 0, ran.err
    said = " ".join(ran.err.split())
    assert f"warning: checkpoint-300 has other weights, which are in no average: {beside}" in said
    if command == "average":
        ran = belay("verify", "belay-average")
        assert ran.code == 0
        assert beside in ran.err + ran.out


def test_the_run_of_a_trainer_with_deepspeed(belay: Callable[..., Ran]) -> None:
    for step in (100, 200, 300):
        directory = Path(f"run/checkpoint-{step}")
        (directory / f"global_step{step}").mkdir(parents=True)
        save_file(const(step), directory / "model.safetensors", metadata={"format": "pt"})
        torch.save({}, directory / f"global_step{step}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
        (directory / "zero_to_fp32.py").write_text("")
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (directory / "config.json").write_text("{}")
    one = belay("plan", "run", "--json").json
    other = belay("plan", *sorted(Path.cwd().glob("run/checkpoint-*")), "--json").json
    assert [c["step"] for c in one["checkpoints"]] == [c["step"] for c in other["checkpoints"]] == [100, 200, 300]
    assert belay("average", "run", "-o", "a").code == belay("average", "run/checkpoint-200", "-o", "b").code == 0
    assert value("b/model.safetensors") == 200


# ---- raw weights and averages


def test_a_generator_a_discriminator_and_an_average(belay: Callable[..., Ran]) -> None:
    for step in (10000, 20000):
        saved = {"g": const(step), "d": const(5), "g_ema": const(7), "g_optim": {"state": {}, "param_groups": []}}
        torch.save(saved, f"{step:06d}.pt")
    for options in ([], ["--source", "raw"]):
        ran = belay("average", "010000.pt", "020000.pt", *options)
        assert ran.code == 1
        assert ran.err == (
            "belay: 010000.pt: holds several state dicts: g, d, and an EMA g_ema\n       say which: --state-key g\n"
        )
    assert belay("average", "010000.pt", "020000.pt", "--state-key", "g", "-o", "g.safetensors").code == 0
    assert value("g.safetensors") == 15000
    assert belay("average", "010000.pt", "020000.pt", "--source", "ema", "-o", "ema.safetensors").code == 0
    assert value("ema.safetensors") == 7


def test_mmengine_swaps_the_weights_and_their_average(belay: Callable[..., Ran]) -> None:
    for i in (1, 2, 3):
        held = {"steps": torch.tensor(100 * i), **{f"module.{k}": v for k, v in const(10 * i).items()}}
        meta = {"epoch": i, "iter": 100 * i, "mmengine_version": "0.10.7"}
        torch.save({"meta": meta, "state_dict": const(i), "ema_state_dict": held}, f"epoch_{i}.pth")
    paths = [f"epoch_{i}.pth" for i in (1, 2, 3)]
    assert belay("average", *paths).code == 1
    for source, expected in (("raw", 22.5), ("ema", 2.25)):
        assert belay("average", *paths, "--source", source, "-o", f"{source}.safetensors").code == 0
        assert sorted(load_file(f"{source}.safetensors")) == ["l.bias", "l.weight"]
        assert value(f"{source}.safetensors") == expected
        assert belay("verify", f"{source}.safetensors", *(w for p in paths for w in ("--checkpoints", p))).code == 0


@pytest.mark.parametrize(
    "name",
    [
        "model_step_{}_ema.safetensors",
        "model_step_{}_ema.pt",
        "ema_0.9999_{:06d}.pt",
        "step={}-EMA.ckpt",
        "ema_model_{}.safetensors",
        "network-{}-ema.pt",
    ],
)
def test_an_average_by_the_name_of_the_file(belay: Callable[..., Ran], name: str) -> None:
    for step in (100, 200):
        save = save_file if name.endswith(".safetensors") else torch.save
        save(const(step), name.format(step))
    paths = [name.format(step) for step in (100, 200)]
    ran = belay("average", *paths, "-o", "o.safetensors")
    assert ran.code == 1
    assert "only an average of weights (by the name of the file)" in " ".join(ran.err.split())
    assert "--source ema" in ran.err
    assert belay("average", *paths, "--source", "ema", "--unit", "checkpoint", "-o", "o.safetensors").code == 0
    assert value("o.safetensors") == 150


def test_the_source_that_is_asked_for_in_dcp(belay: Callable[..., Ran]) -> None:
    from torch.distributed import checkpoint as dcp

    for step in (100, 200, 300):
        dcp.save({**const(step), "ema": const(10 * step)}, checkpoint_id=f"step-{step}", no_dist=True)
    paths = [f"step-{step}" for step in (100, 200, 300)]
    assert belay("average", *paths, "--source", "ema", "-o", "ema").code == 0
    assert belay("average", *paths, "-o", "raw").code == 0
    assert value("ema/model.safetensors") == pytest.approx(1921.7244, abs=1e-3)
    assert value("raw/model.safetensors") == pytest.approx(192.17244, abs=1e-4)
    assert belay("verify", "ema").code == belay("verify", "raw").code == 0


# ---- the order


REFUSED = {
    "an average beside the epochs": ("epoch-27.pt", "epoch-28.pt", "epoch-29.pt", "epoch-30.pt", "epoch-30-avg-9.pt"),
    "fractions of an epoch": ("epoch_0.25.pt", "epoch_0.50.pt", "epoch_0.75.pt", "epoch_1.00.pt"),
    "epochs and steps": (
        *("checkpoint-step-500.pth", "checkpoint-epoch-1.pth"),
        *("checkpoint-step-1500.pth", "checkpoint-epoch-2.pth"),
    ),
}
IN_ORDER = {
    "exponents": ("step_2e4.pt", "step_5e4.pt", "step_1e5.pt"),
    "suffixes": ("step_500k.pt", "step_900k.pt", "step_1M.pt"),
}
EITHER = {
    "OneTrainer": (
        "2024-05-02_08-11-45-save-530-5-30.safetensors",
        "2024-05-02_08-21-45-save-750-7-50.safetensors",
        "2024-05-02_08-31-45-save-1010-10-10.safetensors",
    ),
    "timestamps": (*("model_2024-05-01_22-58-41.pt", "model_2024-05-01_23-40-12.pt", "model_2024-05-02_00-21-05.pt"),),
}


def make(names: tuple[str, ...]) -> list[str]:
    for number, name in enumerate(names, 1):
        save = save_file if name.endswith(".safetensors") else torch.save
        save(const(number), name)
    return sorted(names)


@pytest.mark.parametrize("names", REFUSED.values(), ids=REFUSED)
def test_an_order_that_cannot_be_proved_is_asked_for(belay: Callable[..., Ran], names: tuple[str, ...]) -> None:
    ran = belay("plan", *make(names))
    assert ran.code == 1
    assert "--order given" in ran.err or "--allow-averages" in ran.err
    ran = belay("plan", *names, "--order", "given", "--allow-averages", "--json")
    assert names_in_order(ran) == list(names)


@pytest.mark.parametrize("names", IN_ORDER.values(), ids=IN_ORDER)
def test_numbers_as_people_write_them(belay: Callable[..., Ran], names: tuple[str, ...]) -> None:
    ran = belay("plan", *make(names), "--json")
    assert names_in_order(ran) == list(names)
    steps = {"exponents": [20_000, 50_000, 100_000], "suffixes": [500_000, 900_000, 1_000_000]}
    assert [entry["step"] for entry in ran.json["checkpoints"]] in steps.values()


@pytest.mark.parametrize("names", EITHER.values(), ids=EITHER)
def test_dates_are_no_counters(belay: Callable[..., Ran], names: tuple[str, ...]) -> None:
    ran = belay("plan", *make(names), "--json")
    if ran.code:
        assert ran.json["error"]["hint"] == "give the checkpoints in order, with --order given"
    else:
        assert names_in_order(ran) == list(names)


def test_hashes_of_commits_are_no_counters(belay: Callable[..., Ran]) -> None:
    commits = ("7d1c0bb0a3f64c9eab12f0f34c5a8d9e01b7c6fa", "0e9f3a2b1c4d5e6f708192a3b4c5d6e7f8091abc")
    for number, commit in enumerate((*commits, "c0ffee12345678900987654321deadbeefcafe03"), 1):
        Path("models--org--m/snapshots", commit).mkdir(parents=True)
        save_file(const(number), f"models--org--m/snapshots/{commit}/model.safetensors")
    ran = belay("plan", *Path("models--org--m/snapshots").iterdir())
    assert ran.code == 1
    assert ran.err.endswith(GIVEN)


def test_the_integer_that_varies_orders(belay: Callable[..., Ran]) -> None:
    for batch in (200, 600, 1000):
        torch.save({"state": {"model": const(batch)}}, f"ep0-ba{batch}-rank0.pt")
    shell = ["ep0-ba1000-rank0.pt", "ep0-ba200-rank0.pt", "ep0-ba600-rank0.pt"]
    ran = belay("plan", *shell, "--state-key", "state.model", "--json")
    assert names_in_order(ran) == [f"ep0-ba{batch}-rank0.pt" for batch in (200, 600, 1000)]
    ran = belay("plan", *shell, "--state-key", "state.model", "--order", "given")
    assert ran.code == 0
    assert "warning: " in ran.err
    assert "ep0-ba200-rank0.pt" in ran.err


def test_only_whole_names_are_checkpoints_of_a_run(belay: Callable[..., Ran]) -> None:
    for step in (100, 200, 300):
        Path(f"run/step-{step}").mkdir(parents=True)
        save_file(const(step), f"run/step-{step}/model.safetensors")
    for name in ("step-400.backup", "foo-step-250", "step-500.tmp"):
        Path(f"run/{name}").mkdir()
        save_file(const(999), f"run/{name}/model.safetensors")
    ran = belay("average", "run", "-o", "out")
    assert ran.code == 0
    said = " ".join(ran.err.split())
    for name in ("step-400.backup", "foo-step-250", "step-500.tmp"):
        assert name in said
    assert value("out/model.safetensors") == pytest.approx(192.17244, abs=1e-4)


def test_the_forms_of_run_directories(belay: Callable[..., Ran]) -> None:
    for step in (1000, 2000, 3000):
        Path(f"hf_format/samples_{step}").mkdir(parents=True)
        save_file(const(step), f"hf_format/samples_{step}/model.safetensors")
        for name, held in (("pretrained_model/model", const(step)), ("training_state/optimizer_state", const(1))):
            path = Path(f"checkpoints/{step:06d}/{name}.safetensors")
            path.parent.mkdir(parents=True)
            save_file(held, path)
    os.symlink("003000", "checkpoints/last")
    numbers = [f"{step:06d}" for step in (1000, 2000, 3000)]
    forms = {
        "samples": ["hf_format"],
        "a run": ["checkpoints"],
        "its checkpoints": [f"checkpoints/{number}" for number in numbers],
        "the models in them": [f"checkpoints/{number}/pretrained_model" for number in numbers],
        "all of them": [*sorted(map(str, Path("checkpoints").iterdir())), "--subfolder", "pretrained_model"],
    }
    for form, arguments in forms.items():
        ran = belay("average", *arguments, "-o", form, "--half-life", "1checkpoints", "--json")
        assert ran.code == 0, (form, ran.err)
        assert len(ran.json["checkpoints"]) == 3, form
        assert value(f"{form}/model.safetensors") == pytest.approx(2250, rel=0.2), form
    values = {value(f"{form}/model.safetensors") for form in forms}
    assert len(values) <= 2  # by steps, and by checkpoints
    assert belay("plan", "hf_format", "--subfolder", "samples_1000").code != 0


# ---- right refusals, and no wrong ones


def test_what_cannot_be_averaged_is_said_as_it_is(belay: Callable[..., Ran]) -> None:
    complex64 = torch.polar(torch.ones(4, 2), torch.ones(4, 2))
    save_file({**const(1), "freqs_cis": complex64}, "step_1.safetensors")
    ran = belay("plan", "step_1.safetensors")
    assert ran.code == 1
    assert "'freqs_cis' is complex64" in ran.err
    assert "scales" not in ran.err
    assert "--last 'freqs_cis'" in ran.err
    assert belay("average", "step_1.safetensors", "--last", "freqs_cis", "-o", "last.safetensors").code == 0
    assert torch.equal(load_file("last.safetensors")["freqs_cis"], complex64)
    torch.save({**const(1), "freqs_cis": torch.ones(4, dtype=torch.complex128)}, "step_2.pt")
    ran = belay("plan", "step_2.pt")
    assert "'freqs_cis' is of dtype complex128, which safetensors does not have" in " ".join(ran.err.split())
    assert belay("average", "step_2.pt", "--drop", "freqs_cis", "-o", "drop.safetensors").code == 0
    assert sorted(load_file("drop.safetensors")) == ["l.bias", "l.weight"]


def test_a_file_is_what_its_first_bytes_say(belay: Callable[..., Ran]) -> None:
    torch.save({"iteration": 1000, "state_dict": const(1)}, "checkpoint_1000")
    torch.save(const(1), "wrong.safetensors")
    for name in ("checkpoint_1000", "wrong.safetensors"):
        ran = belay("plan", name)
        assert ran.code == 1
        assert "is a torch file" in ran.err
        assert ".pt" in ran.err
    save_file(const(1), "wrong.pt")
    assert "rename it to end in .safetensors" in belay("plan", "wrong.pt").err


def test_lightning_before_1_6_counted_one_too_low_in_names(belay: Callable[..., Ran]) -> None:
    saved = {"epoch": 0, "global_step": 10, "pytorch-lightning_version": "1.5.10", "state_dict": const(1)}
    torch.save(saved, "epoch=0-step=9.ckpt")
    torch.save({**saved, "epoch": 1, "global_step": 20, "state_dict": const(2)}, "epoch=1-step=19.ckpt")
    ran = belay("plan", "epoch=0-step=9.ckpt", "epoch=1-step=19.ckpt", "--json")
    assert ran.code == 0
    assert [entry["step"] for entry in ran.json["checkpoints"]] == [10, 20]


def test_metadata_that_is_null(belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        entries = {"__metadata__": None, "w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
        head = json.dumps(entries).encode()
        data = struct.pack("<Q", len(head)) + head + np.full(3, step, np.float32).tobytes()
        Path(f"step_{step}.safetensors").write_bytes(data)
    paths = ["step_100.safetensors", "step_200.safetensors"]
    assert belay("average", *paths, "--unit", "checkpoint", "-o", "o.safetensors").code == 0
    assert load_file("o.safetensors")["w"].tolist() == [150.0] * 3
    with safe_open("o.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_vectors_of_a_spectral_norm(belay: Callable[..., Ran]) -> None:
    torch.manual_seed(0)
    for step in (100, 200, 300):
        layer = torch.nn.utils.spectral_norm(torch.nn.Linear(32, 32), n_power_iterations=30)
        layer(torch.randn(2, 32))
        torch.save(layer.state_dict(), f"step_{step}.pt")
    ran = belay("average", *(f"step_{step}.pt" for step in (100, 200, 300)), "-o", "o.safetensors")
    assert ran.code == 0
    said = " ".join(ran.err.split())
    assert "weight_u" in said
    assert "train" in said
    layer.load_state_dict(load_file("o.safetensors"))
    layer.eval()
    layer(torch.zeros(1, 32))
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) > 2
    layer.train()
    with torch.no_grad():
        for _ in range(20):
            layer(torch.zeros(1, 32))
    layer.eval()
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, abs=0.02)


def test_a_variant_beside_the_model(belay: Callable[..., Ran]) -> None:
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    for step in (100, 200):
        unet.float().save_pretrained(f"run/checkpoint-{step}/unet")
        unet.half().save_pretrained(f"run/checkpoint-{step}/unet", variant="fp16", max_shard_size="30KB")
    assert len(list(Path("run/checkpoint-100/unet").glob("*.fp16*.safetensors"))) > 1
    ran = belay("average", "run", "-o", "out")
    assert ran.code == 0
    assert {t.dtype for t in load_file("out/diffusion_pytorch_model.safetensors").values()} == {torch.float32}
