"""Outputs that are several models: checked, published, and loaded by the libraries that they are for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from belay_cli import average
from belay_cli.storage import retry
from tests.conftest import Ran
from tests.fakes.hub import HubServer, hub_client
from tests.several import averaged, make_pipelines, make_sentence_transformers, model, same

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = {
    "sentences": ["2_Dense/model.safetensors", "model.safetensors"],
    "pipeline": [
        "text_encoder/model.safetensors",
        *(f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae")),
    ],
}


@pytest.fixture(params=["sentences", "pipeline"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def run(tmp_path: Path, kind: str) -> Path:
    return (make_pipelines if kind == "pipeline" else make_sentence_transformers)(tmp_path / "run")


@pytest.fixture
def output(run: Path, kind: str) -> Path:
    options: dict[str, Any] = {"subfolder": "all"} if kind == "pipeline" else {}
    average([run], "out", **options)
    return Path("out")


def checks(ran: Ran) -> dict[str, str]:
    return {check["name"]: check["status"] for check in ran.json["checks"]}


# ---- verify


def test_a_whole_output_passes(output: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("verify", output, "--sample", "all", "--json")
    assert (ran.code, set(checks(ran).values())) == (0, {"held"})
    assert ran.json["warnings"] == []


def test_on_another_machine(output: Path, run: Path, belay: Callable[..., Ran], tmp_path: Path) -> None:
    shutil.rmtree(output / ".belay")
    run.rename(tmp_path / "elsewhere")
    assert checks(belay("verify", output, "--json"))["inputs"] == "not checked"
    assert belay("verify", output, "--checkpoints", tmp_path / "elsewhere", "--sample", "all").code == 0


def test_a_flipped_bit_in_any_of_them_is_found(output: Path, kind: str, belay: Callable[..., Ran]) -> None:
    for name in WEIGHTS[kind]:
        path = output / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
        ran = belay("verify", output, "--json")
        assert ran.code == 1
        assert checks(ran)["digests"] == "failed"
        tensor = ran.json["error"]["tensor"]
        assert tensor.startswith("/".join([*Path(name).parts[:-1], ""]))
        path.write_bytes(whole)
    assert belay("verify", output).code == 0


@pytest.mark.parametrize("how", ["folder", "file", "record too"])
def test_a_missing_model_is_found(output: Path, kind: str, belay: Callable[..., Ran], how: str) -> None:
    gone = output / WEIGHTS[kind][0]
    if how == "folder":
        shutil.rmtree(gone.parent)
    else:
        gone.unlink()
    if how == "record too":
        record = json.loads((output / "belay.json").read_text())
        record["components"].remove(gone.parent.name)
        record["digests"] = {k: v for k, v in record["digests"].items() if not k.startswith(f"{gone.parent.name}/")}
        (output / "belay.json").write_text(json.dumps(record))
    ran = belay("verify", output)
    assert ran.code == 1
    if how == "record too":
        assert "record failed: belay.json says something else than the metadata of the weights" in ran.err
    else:
        assert f"belay.json: names weights in '{gone.parent.name}', which are not there" in ran.err


def test_two_that_changed_places_are_found(output: Path, kind: str, belay: Callable[..., Ran]) -> None:
    one, other = (output / name for name in WEIGHTS[kind][-2:])
    one.rename("x")
    other.rename(one)
    Path("x").rename(other)
    assert belay("verify", output).code == 1


def test_a_changed_value_of_a_model_that_was_taken_as_it_is(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_pipelines(tmp_path / "run")
    average([run], "out", subfolder="unet,text_encoder")
    path = run / "checkpoint-300/vae/diffusion_pytorch_model.safetensors"
    save_file(model(77, 5), path, metadata={"format": "pt"})
    ran = belay("verify", "out")
    assert ran.code == 1
    assert "inputs failed: checkpoint-300 is not the one that was recorded" in ran.err


def test_an_average_is_no_checkpoint(output: Path, kind: str, belay: Callable[..., Ran]) -> None:
    option = ["--subfolder", "all"] if kind == "pipeline" else []
    ran = belay("average", output, "-o", "again", *option)
    assert ran.code == 1
    assert "was written by belay" in ran.err
    assert belay("average", output, "-o", "again", "--allow-averages", *option).code == 0
    for name in WEIGHTS[kind]:
        same(load_file(f"again/{name}"), load_file(output / name))


# ---- push


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    with HubServer(tokens={"hf_w": "write"}) as server, hub_client(server, tmp_path / "home", token="hf_w"):
        yield server


def published(server: HubServer) -> dict[str, bytes]:
    return server.repo("org/name").files("main")


def files(output: Path) -> set[str]:
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".belay/")}


def test_what_is_pushed_is_all_of_it_and_verifies(
    output: Path, kind: str, run: Path, server: HubServer, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    assert "not uploaded" not in ran.err
    assert files(output) | {".gitattributes", "README.md", "coefficients.png"} == set(published(server))
    text = published(server)["README.md"].decode()
    loads = "TinyPipeline.from_pretrained" if kind == "pipeline" else "SentenceTransformer"
    assert f'model = {loads}("org/name")' in text
    there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    assert belay("verify", there, "--checkpoints", run).code == 0
    assert belay("push", output, "org/name", "--json").json["status"] == "unchanged"


def test_older_shards_in_folders_go(
    output: Path, kind: str, run: Path, server: HubServer, belay: Callable[..., Ran]
) -> None:
    options: dict[str, Any] = {"subfolder": "all"} if kind == "pipeline" else {}
    average([run], "sharded", max_shard_size="60", **options)
    assert belay("push", "sharded", "org/name").code == 0
    assert sum(name.endswith(".index.json") for name in published(server)) == len(WEIGHTS[kind])
    assert belay("push", output, "org/name").code == 0
    assert {n for n in published(server) if ".safetensors" in n} == set(WEIGHTS[kind])


def test_weights_of_others_stay_and_ours_go(
    output: Path, kind: str, server: HubServer, belay: Callable[..., Ran]
) -> None:
    (output / "old").mkdir()
    for name in (f"{Path(WEIGHTS[kind][0]).parent}/other.bin", "old/model.safetensors"):
        save_file(model(0), output / name)
    (output / "old/config.json").write_text("{}")
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    assert "2 more are not uploaded: weights that are no part of the average, or files beside them" in " ".join(
        ran.err.split()
    )
    assert {n for n in published(server) if n.endswith((".safetensors", ".bin"))} == set(WEIGHTS[kind])
    assert not any(name.startswith("old/") for name in published(server))


def test_nothing_of_it_can_be_left_out(output: Path, kind: str, server: HubServer, belay: Callable[..., Ran]) -> None:
    for name in WEIGHTS[kind]:
        ran = belay("push", output, "org/name", "--exclude", name)
        assert ran.code == 1
        assert f"{name} would not be uploaded, and the average is nothing without it" in ran.err


def test_a_card_without_a_library_loads_every_folder(
    tmp_path: Path, server: HubServer, belay: Callable[..., Ran]
) -> None:
    run = make_pipelines(tmp_path / "run")
    for index in run.glob("*/model_index.json"):
        index.unlink()
    average([run], "out", subfolder="all")
    assert belay("push", "out", "org/name").code == 0
    text = published(server)["README.md"].decode()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert 'root.rglob("*.safetensors")' in code
    found: dict[str, Any] = {}
    exec(code.replace('snapshot_download("org/name")', '"out"'), found)
    same(found["weights"]["unet"], load_file("out/unet/diffusion_pytorch_model.safetensors"))


def test_from_revisions_of_the_hub(
    output: Path, kind: str, run: Path, server: HubServer, belay: Callable[..., Ran]
) -> None:
    option = ["--subfolder", "all"] if kind == "pipeline" else []
    revisions = {
        path.name.replace("checkpoint-", "step"): {name: (path / name).read_bytes() for name in files(path)}
        for path in run.iterdir()
    }
    server.make_repo("org/run", {"main": {"README.md": b"x"}, **revisions})
    urls = [f"hf://org/run@step{step}" for step in (100, 200, 300)]
    ran = belay("average", *urls, "-o", "there", *option)
    assert ran.code == 0, ran.err
    assert files(Path("there")) == files(output)
    for name in WEIGHTS[kind]:
        same(load_file(f"there/{name}"), load_file(output / name))


# ---- real libraries


def loaded(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("named", ["all", "text_encoder,unet"])
def test_a_pipeline_of_diffusers(tmp_path: Path, belay: Callable[..., Ran], named: str) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    size = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, step in enumerate((100, 200, 300)):
        torch.manual_seed(seed)
        StableDiffusionPipeline(
            vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8),
            text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=32, max_position_embeddings=8, **text)),
            tokenizer=None,
            unet=UNet2DConditionModel(cross_attention_dim=8, attention_head_dim=2, **size, **blocks),
            scheduler=DDIMScheduler(num_train_timesteps=100 + seed),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(tmp_path / f"run/checkpoint-{step}", safe_serialization=named == "all")
    report = average([tmp_path / "run"], "out", subfolder=named, max_shard_size="50kB")
    assert len(list(Path("out/unet").glob("*.safetensors"))) > 1
    assert belay("verify", "out", "--sample", "all").code == 0
    pipeline = DiffusionPipeline.from_pretrained("out", tokenizer=None)
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.scheduler.config.num_train_timesteps == 102
    coefficients = [checkpoint.coefficient for checkpoint in report.checkpoints]
    for name in ("text_encoder", "unet", "vae"):
        (source,) = (p.name for p in (tmp_path / f"run/checkpoint-300/{name}").iterdir() if p.suffix != ".json")
        used = [0.0, 0.0, 1.0] if name not in named and named != "all" else coefficients
        found = loaded(getattr(pipeline, name))
        exact = averaged(tmp_path / "run", f"{name}/{source}", used)
        same({key: found[key] for key in exact}, exact)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("safe", [True, False])
def test_a_model_of_sentence_transformers(tmp_path: Path, belay: Callable[..., Ran], safe: bool) -> None:
    import sentence_transformers
    from sentence_transformers import models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = Path("vocab.txt")
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    BertTokenizerFast(str(words)).save_pretrained("base")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, step in enumerate((100, 200, 300)):
        torch.manual_seed(seed)
        BertModel(BertConfig(vocab_size=7, max_position_embeddings=16, **size)).save_pretrained("base")
        modules = [models.Transformer("base"), models.Pooling(8), models.Dense(8, 4), models.Normalize()]
        made = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
        made.save(str(tmp_path / f"run/checkpoint-{step}"), create_model_card=False, safe_serialization=safe)
    report = average([tmp_path / "run"], "out")
    assert belay("verify", "out", "--sample", "all").code == 0
    found = sentence_transformers.SentenceTransformer("out", device="cpu")
    assert [type(module).__name__ for module in found] == ["Transformer", "Pooling", "Dense", "Normalize"]
    (source,) = (p.name for p in (tmp_path / "run/checkpoint-300/2_Dense").iterdir() if p.suffix != ".json")
    coefficients = [checkpoint.coefficient for checkpoint in report.checkpoints]
    same(loaded(found[2]), averaged(tmp_path / "run", f"2_Dense/{source}", coefficients))
    top = averaged(tmp_path / "run", "model.safetensors", coefficients)
    inner = loaded(found[0].auto_model)
    same({name: inner[name] for name in top}, top)
    assert found.encode(["a b"]).shape == (1, 4)
