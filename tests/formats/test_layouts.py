"""One training run, saved in every layout by the real libraries, gives the same average, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from belay_cli import Ema, average
from belay_cli.show.report import Report
from tests.conftest import Ran

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = (100, 200, 300, 400)


class Net(torch.nn.Module):
    """Two layers that share a weight, a convolution, a counter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = torch.nn.Embedding(23, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(8, 23, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=g))
        self.head.weight = self.embed.weight
        self.norm.get_buffer("num_batches_tracked").fill_(7)


def states() -> dict[int, Any]:
    return {step: Net(seed).state_dict() for seed, step in enumerate(STEPS)}


def averaged(
    paths: list[str], output: str = "out.safetensors", **options: Any
) -> tuple[dict[str, torch.Tensor], Report]:
    report = average(paths, output, method=Ema(half_life="50%"), **options)
    file = Path(output) if output.endswith(".safetensors") else Path(output, "model.safetensors")
    return load_file(file), report


@pytest.fixture
def expected() -> dict[str, torch.Tensor]:
    """The average from plain safetensors files, the shared weight once."""
    Path("safe").mkdir()
    for step, state in states().items():
        save_file({k: v.contiguous() for k, v in state.items() if k != "head.weight"}, f"safe/step-{step}.safetensors")
    return averaged(["safe"], "expected.safetensors")[0]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert found[name].numpy().tobytes() == expected[name].numpy().tobytes(), name


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_state_dicts(expected: dict[str, torch.Tensor], suffix: str) -> None:
    Path("run").mkdir()
    for step, state in states().items():
        torch.save(state, f"run/step-{step}{suffix}")
    found, _ = averaged(["run"])
    same(found, expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_state_dicts_in_a_checkpoint(expected: dict[str, torch.Tensor], key: str) -> None:
    Path("run").mkdir()
    for step, state in states().items():
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters())
        net.embed(torch.tensor([1])).sum().backward()
        optimizer.step()
        named = {f"module._orig_mod.{name}": value for name, value in state.items()}
        torch.save({key: named, "optimizer": optimizer.state_dict(), "epoch": 3}, f"run/model-{step}.pt")
    found, report = averaged(["run"])
    same(found, expected)
    assert any("_orig_mod." in note for note in report.notes)
    assert any("module." in note for note in report.notes)
    same(averaged(["run"], "again.safetensors", state_key=key)[0], expected)


def test_channels_last(expected: dict[str, torch.Tensor]) -> None:
    Path("run").mkdir()
    for seed, step in enumerate(STEPS):
        torch.save(Net(seed).to(memory_format=torch.channels_last).state_dict(), f"run/step-{step}.pt")  # type: ignore[call-overload]
    same(averaged(["run"])[0], expected)


@pytest.mark.parametrize("sharded", [False, True])
def test_directories_of_bin(expected: dict[str, torch.Tensor], sharded: bool) -> None:
    for step, state in states().items():
        directory = Path(f"run/checkpoint-{step}")
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        torch.save({"state": {}}, directory / "optimizer.bin")
        state = {name: value for name, value in state.items() if name != "head.weight"}
        if not sharded:
            torch.save(state, directory / "pytorch_model.bin")
            continue
        names = sorted(state)
        parts = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
        for file, part in parts.items():
            torch.save({name: state[name] for name in part}, directory / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (directory / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        )
    found, _ = averaged(["run"], "out")
    same(found, expected)
    assert sorted(os.listdir("out")) == [".belay", "belay.json", "config.json", "model.safetensors"]


def test_an_index_of_bin_files_that_lies() -> None:
    directory = Path("run")
    directory.mkdir()
    for number in (1, 2):
        torch.save({f"w{number}": torch.zeros(2)}, directory / f"pytorch_model-0000{number}-of-00002.bin")
    weight_map = {f"w{number}": f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)}
    index = directory / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, "w3": weight_map["w1"]}}))
    from belay_cli import BelayError

    with pytest.raises(BelayError, match="does not fit its shards: 'w3' is not in pytorch_model-00001-of-00002.bin"):
        average(["run"], "out")
    index.write_text(json.dumps({"weight_map": {"w1": weight_map["w1"], "w2": "../x.bin"}}))
    with pytest.raises(BelayError, match="which is not a .bin file of this directory"):
        average(["run"], "out")


def test_tied_weights_are_written_once_and_load(expected: dict[str, torch.Tensor]) -> None:
    Path("run").mkdir()
    for step, state in states().items():
        torch.save(state, f"run/step-{step}.pt")
    averaged(["run"])
    with safe_open("out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["belay.aliases"]) == {"head.weight": "embed.weight"}
        assert file.metadata()["head.weight"] == "embed.weight"
    net = Net(99)
    missing, unexpected = load_model(net, "out.safetensors")
    assert not missing and not unexpected
    assert torch.equal(net.head.weight, expected["embed.weight"])


LIGHTNING = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.formats.test_layouts import Net, STEPS

class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self):
        super().__init__()
        self.net = Net()
    def training_step(self, batch, number):
        return self.net.embed(torch.tensor([1, 2])).square().sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(40), batch_size=1)

callbacks = [ModelCheckpoint(dirpath="run", every_n_train_steps=10, save_top_k=-1, save_last=True)]
if len(sys.argv) > 1:
    from lightning.pytorch.callbacks import EMAWeightAveraging
    callbacks.append(EMAWeightAveraging(decay=0.5))
lightning.Trainer(
    max_steps=40, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=callbacks,
).fit(Module())
"""


def lightning_run(*arguments: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", LIGHTNING, *arguments], check=True, capture_output=True, env=environ)


def test_a_lightning_run() -> None:
    lightning_run()
    found, report = averaged(["run"])
    assert [entry.step for entry in report.checkpoints] == [10, 20, 30, 40]
    assert any("last.ckpt is the same as" in note for note in report.notes)
    Path("safe").mkdir()
    for path in Path("run").glob("epoch*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        step = path.stem.rpartition("=")[2]
        save_file({k: v.clone() for k, v in state.items() if k != "net.head.weight"}, f"safe/step-{step}.safetensors")
    same(found, averaged(["safe"], "safe.safetensors")[0])


def test_a_lightning_run_with_an_average_of_its_own(belay: Callable[..., Ran]) -> None:
    lightning_run("ema")
    ran = belay("average", "run", "-o", "out.safetensors")
    assert ran.code == 1
    assert "--source raw" in ran.err
    raw, _ = averaged(["run"], "raw.safetensors", source="raw")
    ema, _ = averaged(["run"], "ema.safetensors", source="ema")
    last = torch.load("run/last.ckpt", weights_only=True)
    assert not torch.equal(raw["net.embed.weight"], ema["net.embed.weight"])
    states = {"raw": last["current_model_state"], "ema": last["state_dict"]}
    for source, found in (("raw", raw), ("ema", ema)):
        alone, _ = averaged(["run/last.ckpt"], f"last-{source}.safetensors", source=source)
        names = [name for name in states[source] if name.endswith("embed.weight")]
        assert torch.equal(alone["net.embed.weight"], states[source][names[0]])
        assert found.keys() == alone.keys()


def test_a_dcp_run(expected: dict[str, torch.Tensor]) -> None:
    from torch.distributed import checkpoint as dcp

    for seed, step in enumerate(STEPS):
        net = Net(seed)
        optimizer = torch.optim.AdamW(net.parameters())
        net.embed(torch.tensor([1])).sum().backward()
        state = {"model": {k: v for k, v in net.state_dict().items() if k != "head.weight"}}
        optimizer.step()
        state = {"model": {k: v for k, v in Net(seed).state_dict().items() if k != "head.weight"}}
        dcp.save({**state, "optimizer": optimizer.state_dict()}, checkpoint_id=f"run/step-{step}")
    found, report = averaged(["run"], "out")
    same(found, expected)
    assert [entry.step for entry in report.checkpoints] == list(STEPS)


def test_a_diffusers_run(belay: Callable[..., Ran]) -> None:
    from diffusers import UNet2DModel

    for seed, step in enumerate(STEPS[:2]):
        torch.manual_seed(seed)
        for name in ("unet", "unet_ema"):
            UNet2DModel(
                sample_size=8,
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            ).save_pretrained(f"run/checkpoint-{step}/{name}")
    ran = belay("average", "run", "-o", "out")
    assert ran.code == 0
    assert "note: takes unet, not unet_ema\n" in ran.err
    assert UNet2DModel.from_pretrained("out").config.sample_size == 8
    assert belay("average", "run", "-o", "ema", "--subfolder", "unet_ema").code == 0
    assert Path("out/diffusion_pytorch_model.safetensors").read_bytes() != (
        Path("ema/diffusion_pytorch_model.safetensors").read_bytes()
    )
    Path("run/checkpoint-100/unet_ema").rename("run/checkpoint-100/vae")
    ran = belay("average", "run", "-o", "third")
    assert ran.code == 1
    hint = "choose one of them: --subfolder unet; or take all of them: --subfolder all"
    assert f"holds several models: unet, vae\n       {hint}\n" in ran.err
    ran = belay("average", "run", "-o", "third", "--subfolder", "text_encoder")
    assert "holds no weights in text_encoder\n       it has weights in: unet, vae" in ran.err


def test_more_dcp_files_than_may_be_open(tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp

    state = {f"w{i}": torch.full((3,), float(i)) for i in range(300)}
    writer = dcp.FileSystemWriter("run/step-1", single_file_per_rank=False)
    dcp.save({"model": state}, storage_writer=writer)
    assert len(list(Path("run/step-1").glob("*.distcp"))) == 300
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from belay_cli import average; average(['run/step-1'], 'out', threads=2)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    same(load_file("out/model.safetensors"), state)
