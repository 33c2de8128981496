"""Checkpoints that are several models: which folders are taken, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Selection, find_series, open_checkpoint
from belay_cli.checkpoints.beside import left_beside
from belay_cli.checkpoints.components import find_folders
from belay_cli.checkpoints.fingerprint import fingerprint
from belay_cli.checkpoints.weights import Opening
from belay_cli.errors import CheckpointError, UsageError
from tests.conftest import Ran
from tests.several import INDEX, MODULES, ST, make_pipelines, make_sentence_transformers, model, write

ALL = Opening(subfolder="all")


def folders(directory: Path, subfolder: str | None = None, **options: Any) -> tuple[str, ...]:
    return find_folders(directory, Opening(subfolder=subfolder, **options)).taken


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    return make_sentence_transformers(tmp_path / "run") / "checkpoint-100"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return make_pipelines(tmp_path / "run") / "checkpoint-100"


def test_modules_with_weights(sentences: Path) -> None:
    assert folders(sentences) == folders(sentences, "all") == ("", "2_Dense")
    assert folders(sentences, "2_Dense") == ()
    checkpoint = open_checkpoint(sentences)
    own = [*model(0)]
    assert sorted(checkpoint.tensors) == sorted([*own, *(f"2_Dense/{name}" for name in own)])
    assert checkpoint.directory == sentences
    assert (checkpoint.step, checkpoint.step_from) == (100, "recorded in trainer_state.json")
    assert checkpoint.notes == ("takes the weights in the directory itself, 2_Dense",)
    assert checkpoint.weights.recognised["components"] == ". (3 tensors), 2_Dense (3 tensors)"
    assert left_beside(checkpoint) == []


def test_a_first_module_in_a_folder(tmp_path: Path) -> None:
    modules = [{"path": "0_Transformer", "type": f"{ST}.Transformer"}]
    write(tmp_path, {"modules.json": modules, "0_Transformer/model.safetensors": model(0)})
    assert folders(tmp_path) == ("0_Transformer",)
    assert "0_Transformer/conv.weight" in open_checkpoint(tmp_path).tensors


def test_a_model_of_one_module_is_a_plain_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, {"modules.json": MODULES[:2], "model.safetensors": model(0), "1_Pooling/config.json": {}})
    assert folders(tmp_path) == ()
    assert sorted(open_checkpoint(tmp_path).tensors) == sorted(model(0))


def test_modules_between_which_one_chooses(tmp_path: Path) -> None:
    inner = {"query_0_Dense": f"{ST}.Dense", "query_1_Normalize": f"{ST}.Normalize", "document_0_X": f"{ST}.X"}
    router = {"types": inner, "structure": {"query": ["query_0_Dense"], "document": ["document_0_X"]}}
    files = {f"{folder}/model.safetensors": model(0) for folder in ("query_0_Dense", "document_0_X")}
    write(tmp_path, {**files, "modules.json": [{"path": "", "type": f"{ST}.Router"}], "router_config.json": router})
    assert folders(tmp_path) == ("document_0_X", "query_0_Dense")
    write(tmp_path, {"router_config.json": {"types": {"../elsewhere": "x"}, "structure": {}}})
    with pytest.raises(
        CheckpointError, match=r"router_config.json: names '../elsewhere', which is no folder beside it"
    ):
        folders(tmp_path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("{", "is not valid JSON"),
        ({"path": ""}, "is no list of modules"),
        (["2_Dense"], "is no list of modules"),
        ([{"path": "../other"}], r"names '../other', which is no folder beside it"),
        ([{"path": "/etc"}], r"names '/etc', which is no folder beside it"),
        ([{"path": "2_Dense/../.."}], r"names '2_Dense/../..', which is no folder beside it"),
        ([{"path": "..\\x"}], "which is no folder beside it"),
        ([{"path": "a\0b"}], "which is no folder beside it"),
        ([{"path": None}], "names None, which is no folder beside it"),
        ([{"type": f"{ST}.Dense"}], "names None, which is no folder beside it"),
        ([{"path": "4_Dense", "type": f"{ST}.Dense"}], "names the module '4_Dense', which is not there"),
        ([{"path": "\ud800", "type": "x"}], r"names '\\ud800', which is no folder beside it"),
        ([{"path": "", "n": "x" * 1_000_000}], "is over 1 MB"),
        ([{"path": f"{i}_Normalize", "type": f"{ST}.Normalize"} for i in range(300)], None),
        ([{"path": "", "i": i} for i in range(300)], None),
    ],
)
def test_modules_that_cannot_be(sentences: Path, modules: Any, message: str | None) -> None:
    write(sentences, {"modules.json": modules})
    if message is None:
        assert folders(sentences) == ()
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(sentences)
    assert caught.value.file == str(sentences / "modules.json")


def test_more_modules_than_there_can_be(sentences: Path) -> None:
    for i in range(201):
        (sentences / f"m{i}").mkdir()
    write(sentences, {"modules.json": [{"path": f"m{i}"} for i in range(201)]})
    with pytest.raises(CheckpointError, match=r"modules.json: has 201 models, more than the 200 that belay takes"):
        open_checkpoint(sentences)


def test_a_module_whose_weights_are_broken(sentences: Path) -> None:
    (sentences / "2_Dense/model.safetensors").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match="2_Dense/model.safetensors: is 1 bytes, too short"):
        open_checkpoint(sentences)


def test_a_pipeline_is_several_models_only_if_asked(pipeline: Path) -> None:
    assert folders(pipeline) == ()
    assert find_folders(pipeline, ALL) == (("text_encoder", "unet", "vae"), ("unet_ema",))
    checkpoint = open_checkpoint(pipeline, ALL)
    assert checkpoint.notes == ("takes the weights in text_encoder, unet, vae, not unet_ema",)
    assert left_beside(checkpoint) == []


def test_without_an_index_every_folder_with_weights(pipeline: Path) -> None:
    (pipeline / "model_index.json").unlink()
    assert find_folders(pipeline, ALL) == (("text_encoder", "unet", "vae"), ("unet_ema",))
    assert folders(pipeline, "all", source="ema") == ("unet_ema",)
    write(pipeline, {"model.safetensors": model(3)})
    assert folders(pipeline, "all") == ("", "text_encoder", "unet", "vae")


def test_what_the_index_does_not_name_is_beside(pipeline: Path) -> None:
    write(pipeline, {"other/model.safetensors": model(1), "v1-5.safetensors": model(2), "unet/x.bin": model(3)})
    assert folders(pipeline, "all") == ("text_encoder", "unet", "vae")
    assert left_beside(open_checkpoint(pipeline, ALL)) == ["other/model.safetensors", "unet/x.bin", "v1-5.safetensors"]


def test_a_list_names_some_of_them(pipeline: Path) -> None:
    assert folders(pipeline, "vae,unet") == ("text_encoder", "unet", "vae")
    with_ema = Opening(subfolder="unet_ema, vae/")
    assert find_folders(pipeline, with_ema) == (("text_encoder", "unet", "unet_ema", "vae"), ())
    assert "unet_ema/conv.weight" in open_checkpoint(pipeline, with_ema).tensors
    with pytest.raises(CheckpointError, match="holds no weights in scheduler") as caught:
        folders(pipeline, "unet,scheduler")
    assert caught.value.hint == "it has weights in: text_encoder, unet, unet_ema, vae"
    with pytest.raises(UsageError, match=r"--subfolder \.\. is no folder inside a checkpoint"):
        folders(pipeline, "unet,..")


def test_a_list_has_one_form() -> None:
    assert Selection(subfolder="vae,unet/, vae").opening.subfolder == "unet,vae"
    assert Selection(subfolder="unet/").opening.subfolder == "unet/"


def test_a_list_that_leaves_out_what_lies_at_the_top(sentences: Path) -> None:
    with pytest.raises(UsageError, match="leaves out the weights that lie in") as caught:
        folders(sentences, "2_Dense,1_Pooling")
    assert (caught.value.hint or "").startswith("take all of them: --subfolder all")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[", "is not valid JSON"),
        ([], "is no index of a pipeline"),
        ({**INDEX, "a/../../b": ["x", "Y"]}, r"names 'a/../../b', which is no folder beside it"),
        ({**INDEX, "image_encoder": ["x", "Y"]}, "names the component 'image_encoder', which is not there"),
        ({f"c{i}": ["x", "Y"] for i in range(201)}, "has 201 models"),
        ({"_x": "y" * 1_000_000}, "is over 1 MB"),
    ],
)
def test_an_index_that_cannot_be(pipeline: Path, index: Any, message: str) -> None:
    write(pipeline, {"model_index.json": index})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(pipeline, ALL)
    assert caught.value.file == str(pipeline / "model_index.json")


def test_only_a_list_need_not_have_every_component(pipeline: Path) -> None:
    write(pipeline, {"model_index.json": {**INDEX, "image_encoder": ["x", "Y"]}})
    assert folders(pipeline, "unet,vae") == ("text_encoder", "unet", "vae")


def test_all_of_a_plain_checkpoint(tmp_path: Path) -> None:
    save_file(model(0), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights in all") as caught:
        open_checkpoint(tmp_path, ALL)
    assert caught.value.hint == "leave --subfolder out"
    with pytest.raises(UsageError, match="--subfolder all is for directories"):
        open_checkpoint(tmp_path / "model.safetensors", ALL)


def test_a_name_that_leads_into_another_folder(tmp_path: Path) -> None:
    nested = Opening(subfolder="a,a/b")
    write(tmp_path, {"a/model.safetensors": model(0), "a/b/model.safetensors": model(1)})
    assert "a/b/conv.weight" in open_checkpoint(tmp_path, nested).tensors
    write(tmp_path, {"a/model.safetensors": {"b/conv.weight": torch.ones(1)}})
    with pytest.raises(CheckpointError, match="has a tensor 'a/b/conv.weight' whose name leads into another folder"):
        open_checkpoint(tmp_path, nested)


def test_an_architecture_is_compared_by_component(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_pipelines(tmp_path / "run")
    save_file(model(0, 99), run / "checkpoint-200/vae/diffusion_pytorch_model.safetensors")
    ran = belay("plan", run, "--subfolder", "all")
    assert ran.code == 1
    assert "checkpoint-200: 'vae/conv.weight' is 6×99; in checkpoint-100 it is 6×5" in ran.err
    assert belay("plan", run, "--subfolder", "all", "--drop", "vae/conv.weight").code == 0


def test_layouts_that_are_equal_share_their_tensors(tmp_path: Path) -> None:
    run = make_pipelines(tmp_path / "run")
    one, other, _ = find_series([run], Selection(subfolder="all")).checkpoints
    assert one.tensors is other.tensors


def test_a_fingerprint_is_of_all_files_and_their_folders(tmp_path: Path) -> None:
    run = make_pipelines(tmp_path / "run")
    before = fingerprint(open_checkpoint(run / "checkpoint-100", ALL))
    one, other = (run / f"checkpoint-100/{name}" for name in ("unet", "vae"))
    one.rename(run / "x")
    other.rename(one)
    (run / "x").rename(other)
    assert fingerprint(open_checkpoint(run / "checkpoint-100", ALL)) != before


@pytest.mark.parametrize("recorded", [["../x"], ["unet", 3], [["unet"]], ["nowhere"], ["scheduler"], ["a"] * 300])
def test_a_record_that_lies(pipeline: Path, recorded: list[Any]) -> None:
    write(pipeline, {"belay.json": {"schema": 1, "components": recorded}})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(pipeline)
    assert caught.value.file == str(pipeline / "belay.json")


def test_inspect_lists_them(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    run = make_pipelines(tmp_path / "run")
    ran = belay("inspect", run, "--subfolder", "all", "--tensors")
    assert ran.code == 0, ran.err
    assert "components  text_encoder (3 tensors), unet (3 tensors), vae (3 tensors)" in ran.out
    assert "unet/conv.weight" in ran.out
    found = belay("inspect", run, "--subfolder", "all", "--json", "--tensors").json
    assert found["checkpoints"][0]["recognised"]["components"].startswith("text_encoder (3 tensors)")
    assert len(found["tensors"]) == 9
    assert json.loads(json.dumps(found)) == found
