"""Outputs that are several models: each where its library looks for it, exact, sharded, and replaced as one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from belay_cli import average
from belay_cli.errors import CheckpointError, OutputError, SeriesError, UsageError
from belay_cli.show.report import Report, TensorCounts
from tests.conftest import Ran, everything_in
from tests.several import averaged, make_pipelines, make_sentence_transformers, model, same, write

PIPELINE = [
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"),
    *(f"{name}/config.json" for name in ("text_encoder", "unet", "vae")),
]
WEIGHTS = [
    *("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"),
    "vae/diffusion_pytorch_model.safetensors",
]
RECORD = [".belay/local.json", "belay.json"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_pipelines(tmp_path / "run")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    return make_sentence_transformers(tmp_path / "run")


def files(directory: str) -> list[str]:
    return [name for name in everything_in(Path(directory)) if Path(directory, name).is_file()]


def contents(directory: str) -> dict[str, bytes]:
    return {name: Path(directory, name).read_bytes() for name in files(directory)}


def all_tensors(directory: str) -> dict[str, torch.Tensor]:
    paths = Path(directory).rglob("*.safetensors")
    return {f"{path.parent.name}/{name}": tensor for path in paths for name, tensor in load_file(path).items()}


def coefficients(report: Report) -> list[float]:
    return [checkpoint.coefficient for checkpoint in report.checkpoints]


def test_a_pipeline_comes_out_as_it_went_in(run: Path) -> None:
    report = average([run], "out", subfolder="all", unit="checkpoint")
    assert files("out") == sorted([*PIPELINE, *WEIGHTS, *RECORD])
    for name in WEIGHTS:
        same(load_file(f"out/{name}"), averaged(run, name, coefficients(report)))
    for name in PIPELINE:
        assert Path("out", name).read_bytes() == (run / "checkpoint-300" / name).read_bytes()
    assert report.notes[0] == "takes the weights in text_encoder, unet, vae, not unet_ema"
    assert report.warnings == []
    assert report.tensors == TensorCounts(averaged=6, last=3, dropped=0)
    assert {file.path for file in report.files} == {f"out/{n}" for n in [*PIPELINE, *WEIGHTS, "belay.json"]}
    assert all(Path(file.path).stat().st_size == file.bytes for file in report.files)


def test_sentence_transformers_need_no_option(sentences: Path) -> None:
    report = average([sentences], "out", unit="checkpoint")
    own = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "config.json"]
    own += ["config_sentence_transformers.json", "model.safetensors", "modules.json"]
    assert files("out") == sorted([*own, *RECORD])
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        same(load_file(f"out/{name}"), averaged(sentences, name, coefficients(report)))
    assert report.notes[0] == "takes the weights in the directory itself, 2_Dense"
    assert report.warnings == []


def test_torch_files_become_what_loaders_look_for(tmp_path: Path) -> None:
    run = make_pipelines(tmp_path / "run", suffix=".bin")
    report = average([run], "out", subfolder="all")
    assert {name for name in files("out") if name.endswith(".safetensors")} == set(WEIGHTS)
    for name, source in zip(WEIGHTS, ("pytorch_model", *["diffusion_pytorch_model"] * 2), strict=True):
        exact = averaged(run, f"{name.split('/')[0]}/{source}.bin", coefficients(report))
        same(load_file(f"out/{name}"), exact)


def test_what_a_list_does_not_name_is_the_last_one(run: Path, belay: Callable[..., Ran]) -> None:
    shutil.rmtree(run / "checkpoint-100/vae")
    report = average([run], "out", subfolder="unet,text_encoder")
    same(load_file(f"out/{WEIGHTS[2]}"), load_file(run / "checkpoint-300" / WEIGHTS[2]))
    for name in WEIGHTS[:2]:
        same(load_file(f"out/{name}"), averaged(run, name, coefficients(report)))
    assert "vae: not named by --subfolder, so as the last checkpoint has it" in report.notes
    record = json.loads(Path("out/belay.json").read_text())
    assert record["policies"] == {"average": [], "last": ["vae/*"], "drop": []}
    assert "--last 'vae/*' --subfolder text_encoder,unet checkpoint-100" in record["command"]
    assert files("out") == sorted([*PIPELINE, *WEIGHTS, *RECORD])
    assert belay("verify", "out", "--sample", "all").code == 0
    with pytest.raises(CheckpointError, match="names the component 'vae', which is not there"):
        average([run], "other", subfolder="all")


def test_the_order_of_a_list_changes_nothing(run: Path) -> None:
    average([run], "a", subfolder="unet,text_encoder")
    average([run], "b", subfolder="text_encoder/, unet,unet")
    assert contents("a") == contents("b")


def test_one_model_alone_is_as_ever(run: Path) -> None:
    average([run], "out", subfolder="unet")
    assert files("out") == sorted(["config.json", "diffusion_pytorch_model.safetensors", *RECORD])
    record = json.loads(Path("out/belay.json").read_text())
    assert "components" not in record
    assert set(record["digests"]) == set(model(0))


def test_names_begin_with_the_folder_but_in_the_files(run: Path) -> None:
    average([run], "out", subfolder="all")
    record = json.loads(Path("out/belay.json").read_text())
    assert record["components"] == ["text_encoder", "unet", "vae"]
    assert set(record["digests"]) == {f"{folder}/{name}" for folder in record["components"] for name in model(0)}
    with safe_open(f"out/{WEIGHTS[1]}", "pt") as file:
        assert set(file.keys()) == set(model(0))
        assert set(json.loads(file.metadata()["belay.digests"])) == {f"unet/{name}" for name in model(0)}


def test_policies_and_dtypes_by_name(run: Path) -> None:
    report = average([run], "out", subfolder="all", last=["vae/*"], drop=["*/seen"], dtype="float16")
    assert report.tensors == TensorCounts(averaged=4, last=2, dropped=3)
    found = load_file(f"out/{WEIGHTS[2]}")
    last = load_file(run / "checkpoint-300" / WEIGHTS[2])
    assert set(found) == {"conv.weight", "conv.bias"}
    assert torch.equal(found["conv.weight"], last["conv.weight"].half())
    assert json.loads(Path("out/text_encoder/config.json").read_text()) == {"dtype": "float16", "step": 300}
    assert Path("out/unet/config.json").read_bytes() == (run / "checkpoint-300/unet/config.json").read_bytes()


def test_a_model_that_is_dropped_whole(run: Path, belay: Callable[..., Ran]) -> None:
    average([run], "out", subfolder="all", drop=["vae/*"])
    assert WEIGHTS[2] not in files("out")
    assert belay("verify", "out").code == 0


def test_shards_and_an_index_for_each(run: Path, belay: Callable[..., Ran]) -> None:
    average([run], "out", subfolder="all", max_shard_size="90")
    average([run], "whole", subfolder="all")
    for name in WEIGHTS:
        folder, stem = name.removesuffix(".safetensors").split("/")
        index = json.loads(Path(f"out/{folder}/{stem}.safetensors.index.json").read_text())
        shards = {path.name for path in Path("out", folder).glob("*.safetensors")}
        assert set(index["weight_map"].values()) == shards
        assert len(shards) > 1
        parts = {shard: load_file(f"out/{folder}/{shard}") for shard in shards}
        assert {name: owner for owner, part in parts.items() for name in part} == index["weight_map"]
        whole = load_file(f"whole/{name}")
        same({name: tensor for part in parts.values() for name, tensor in part.items()}, whole)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert belay("verify", "out", "--sample", "all").code == 0


def test_only_one_of_them_is_sharded(sentences: Path, belay: Callable[..., Ran]) -> None:
    save = {"conv.weight": torch.ones(100, 3), "conv.bias": torch.ones(100)}
    for path in sentences.glob("*/2_Dense/model.safetensors"):
        save_file(save, path)
    average([sentences], "out", max_shard_size="1200")
    assert sorted(path.name for path in Path("out").glob("*.safetensors*")) == ["model.safetensors"]
    assert len(list(Path("out/2_Dense").glob("*.safetensors"))) == 2
    assert belay("verify", "out").code == 0


@pytest.mark.parametrize("options", [{"chunk": 64}, {"threads": 1}, {"max_shard_size": "100"}, {"sync": False}])
def test_bytes_depend_on_nothing_else(run: Path, options: dict[str, Any]) -> None:
    average([run], "one", subfolder="all", threads=2)
    average([run], "other", subfolder="all", **options)
    same(*(all_tensors(directory) for directory in ("one", "other")))
    assert "max_shard_size" in options or contents("one") == contents("other")


def test_tied_weights_within_one(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for seed in (1, 2):
        shared = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        state = {"embed.weight": shared, "head.weight": shared}
        own = {"te/pytorch_model.bin": state, "unet/model.safetensors": model(seed)}
        write(tmp_path / f"run/checkpoint-{seed}", own)
    average([tmp_path / "run"], "out", subfolder="all")
    with safe_open("out/te/model.safetensors", "pt") as file:
        assert set(file.keys()) == {"embed.weight"}
        assert file.metadata()["head.weight"] == "embed.weight"
        assert json.loads(file.metadata()["belay.aliases"]) == {"te/head.weight": "te/embed.weight"}
    with safe_open("out/unet/model.safetensors", "pt") as file:
        assert "head.weight" not in file.metadata()
    assert belay("verify", "out").code == 0
    average([tmp_path / "run"], "apart", subfolder="all", last=["te/head.weight"])
    found = load_file("apart/te/model.safetensors")
    assert torch.equal(found["head.weight"], shared)
    assert not torch.equal(found["embed.weight"], shared)
    assert belay("verify", "apart").code == 0


def test_a_tied_head_that_only_some_checkpoints_of_one_have(tmp_path: Path) -> None:
    for seed in (1, 2):
        state = {"embed.weight": torch.full((2, 2), float(seed)), "seen": torch.tensor(1)}
        state |= {"lm_head.weight": torch.ones(2, 2)} if seed == 1 else {}
        files = {"te/model.safetensors": state, "te/config.json": {"tie_word_embeddings": True}}
        write(tmp_path / f"run/checkpoint-{seed}", {**files, "unet/model.safetensors": model(seed)})
    report = average([tmp_path / "run"], "out", subfolder="all")
    assert "te/lm_head.weight is only in some checkpoints" in " ".join(report.notes)
    assert "lm_head.weight" not in load_file("out/te/model.safetensors")


def test_metadata_of_one_goes_with_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        for folder in ("a", "b"):
            path = tmp_path / f"run/checkpoint-{seed}/{folder}/model.safetensors"
            path.parent.mkdir(parents=True)
            save_file(model(seed), path, metadata={"format": "pt", "of": folder, "differs": str(seed)})
    report = average([tmp_path / "run"], "out", subfolder="all")
    for folder in ("a", "b"):
        with safe_open(f"out/{folder}/model.safetensors", "pt") as file:
            assert file.metadata()["of"] == folder
            assert "differs" not in file.metadata()
    assert [note for note in report.notes if "'differs'" in note and "'of'" not in note]


def test_packed_weights_are_found_by_the_configuration_of_each(tmp_path: Path) -> None:
    packed = {"q": torch.ones(4, 4, dtype=torch.int8), "norm": torch.ones(4)}
    for step in (1, 2):
        config = {"quantization_config": {"quant_method": "hqq"}}
        write(
            tmp_path / f"run/checkpoint-{step}",
            {"a/model.safetensors": model(step), "b/model.safetensors": packed, "b/config.json": config},
        )
    with pytest.raises(SeriesError, match="'b/q' is packed by HQQ"):
        average([tmp_path / "run"], "out", subfolder="all")
    average([tmp_path / "run"], "out", subfolder="all", last=["b/q"])


def test_adapters_of_several_models(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    for step in (1, 2):
        for folder in ("te", "unet"):
            a, b = torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g)
            factors = {"m.l.lora_A.weight": a, "m.l.lora_B.weight": b}
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
            adapter = {"adapter_model.safetensors": factors, "adapter_config.json": config}
            write(tmp_path / f"run/checkpoint-{step}", {f"{folder}/{name}": value for name, value in adapter.items()})
    with pytest.raises(SeriesError, match="is an adapter"):
        average([tmp_path / "run"], "out", subfolder="all")
    with pytest.raises(UsageError, match="--lora delta is for one adapter") as caught:
        average([tmp_path / "run"], "out", subfolder="all", lora="delta")
    assert caught.value.hint == "take one of them: --subfolder NAME"
    average([tmp_path / "run"], "out", subfolder="all", lora="factors")
    assert Path("out/te/adapter_config.json").is_file()


@pytest.mark.parametrize("command", ["average", "plan"])
def test_one_file_is_refused(run: Path, belay: Callable[..., Ran], command: str) -> None:
    ran = belay(command, run, "--subfolder", "all", "-o", "x.safetensors")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "belay: x.safetensors is one file, and the checkpoints are several models: text_encoder, unet, vae\n"
        "       write a directory: -o x\n"
    )
    assert os.listdir(".") == []


def test_a_plan_says_what_comes(run: Path, belay: Callable[..., Ran]) -> None:
    planned = belay("plan", run, "--subfolder", "all", "--json").json
    done = belay("average", run, "--subfolder", "all", "--json").json
    for name in ("bytes_read", "bytes_written", "files", "tensors"):
        assert planned[name] == done[name]


# ---- over another output, and when a step fails


def test_overwriting_replaces_what_belay_wrote_in_folders_too(run: Path) -> None:
    average([run], "out", subfolder="all", max_shard_size="100")
    write(Path("out"), {"unet/notes.md": "mine", "notes.md": "mine"})
    with pytest.raises(OutputError, match="exists"):
        average([run], "out", subfolder="all")
    average([run], "out", subfolder="unet", overwrite=True)
    assert files("out") == sorted(
        ["config.json", "diffusion_pytorch_model.safetensors", "notes.md", "unet/notes.md", *RECORD]
    )
    assert not Path("out/vae").exists()
    average([run], "out", subfolder="all", overwrite=True)
    assert files("out") == sorted([*PIPELINE, *WEIGHTS, "notes.md", "unet/notes.md", *RECORD])


@pytest.mark.parametrize("name", ["unet/other.safetensors", "vae/diffusion_pytorch_model.safetensors"])
def test_weights_of_others_in_a_folder_stay(run: Path, name: str) -> None:
    average([run], "out", subfolder="all")
    save_file(model(5), f"out/{name}")
    before = contents("out")
    with pytest.raises(OutputError, match=f"holds {name}, which belay did not write"):
        average([run], "out", subfolder="all", overwrite=True)
    assert contents("out") == before


@pytest.mark.parametrize("components", [["../beside"], [3], "unet", [["unet"]], ["/"]])
def test_a_record_cannot_lead_out_of_the_output(run: Path, components: Any) -> None:
    average([run], "out", subfolder="unet")
    average([run], "beside", subfolder="unet", method="belay")
    before = contents("beside")
    record = json.loads(Path("out/belay.json").read_text())
    Path("out/belay.json").write_text(json.dumps({**record, "components": components}))
    average([run], "out", subfolder="unet", overwrite=True)
    assert contents("beside") == before


class Break:
    """Fails at the n-th call of any of these functions of os, but for those that clean up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: Any) -> None:
        self.calls, self.at, self.error = 0, at, error
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a step like others, but nobody pulls the plug here
        for name in ("mkdir", "ftruncate", "pwrite", "fsync", "rename", "link", "unlink"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise self.error
            return function(*arguments, **keywords)

        return wrapped


@pytest.mark.parametrize("new", ["all", "unet"])
def test_whatever_step_breaks_there_is_the_old_output_or_the_new(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new: str
) -> None:
    options: dict[str, Any] = {"method": "belay", "subfolder": new}
    average([run], tmp_path / "old", subfolder="all", max_shard_size="100", sync=False)
    average([run], "new", **options)
    expected, at, finished = contents("new"), 0, False
    while not finished:
        at += 1
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(tmp_path / "old", "out")
        before, folders = contents("out"), everything_in(Path("out"))
        with monkeypatch.context() as patch:
            broken = Break(patch, at, OSError(errno.EIO, "Input/output error"))
            try:
                average([run], "out", overwrite=True, **options)
            except OutputError:
                assert contents("out") in (before, expected), f"step {at}"
                assert contents("out") == expected or everything_in(Path("out")) == folders, f"step {at}"
            finished = broken.calls < at
        average([run], "out", overwrite=True, **options)
        assert contents("out") == expected
        assert sorted(os.listdir(".")) == ["new", "out"]
    assert at > 20


def test_whatever_step_breaks_a_new_output_is_whole_or_absent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, finished = 0, False
    while not finished:
        at += 1
        shutil.rmtree("out", ignore_errors=True)
        with monkeypatch.context() as patch:
            broken = Break(patch, at, KeyboardInterrupt())
            try:
                average([run], "out", subfolder="all")
            except KeyboardInterrupt:
                assert os.listdir(".") == [] or files("out") == sorted([*PIPELINE, *WEIGHTS, *RECORD])
            finished = broken.calls < at
    assert files("out") == sorted([*PIPELINE, *WEIGHTS, *RECORD])
    assert at > 20
