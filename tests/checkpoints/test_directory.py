"""Directories: variants of weights, and a checkpoint that holds what is named as checkpoints is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import find_series, open_checkpoint
from belay_cli.errors import CheckpointError
from tests.conftest import make_run, shard, tensors


def variant_shards(directory: Path, stem: str, variant: str, old: bool = False) -> Path:
    """Shards of a variant as diffusers and transformers write them: only the index has the variant last."""
    parts = tensors(1, torch.float16)
    split = [{k: parts.pop(k) for k in ("embed.weight", "seen")}, parts]
    owners: dict[str, str] = {}
    for number, part in enumerate(split, 1):
        count = f"{number:05d}-of-00002"
        name = f"{stem}-{count}.{variant}.safetensors" if old else f"{stem}.{variant}-{count}.safetensors"
        save_file(part, directory / name)
        owners |= dict.fromkeys(part, name)
    index = directory / f"{stem}.safetensors.index.{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    return index


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
@pytest.mark.parametrize("old", [False, True])
def test_the_shards_of_a_variant(tmp_path: Path, stem: str, old: bool) -> None:
    index = variant_shards(tmp_path, stem, "fp16", old)
    only = open_checkpoint(tmp_path)
    assert only.weights.stem == f"{stem}.fp16"
    assert {tensor.dtype for tensor in only.tensors.values()} == {"F16", "I64"}
    assert only.notes == ()
    save_file(tensors(), tmp_path / f"{stem}.safetensors")
    both = open_checkpoint(tmp_path)
    assert both.weights.stem == stem
    assert {tensor.dtype for tensor in both.tensors.values()} == {"F32", "I64"}
    assert both.notes == (f"takes {stem}.safetensors, not {index.name}",)


def test_a_variant_whose_index_is_gone(tmp_path: Path) -> None:
    variant_shards(tmp_path, "model", "bf16").unlink()
    save_file(tensors(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds shards of model.bf16.safetensors but no"):
        open_checkpoint(tmp_path)


def test_sharded_weights_beside_the_shards_of_their_variant(tmp_path: Path) -> None:
    whole = tensors()
    shard(tmp_path, [{"embed.weight": whole.pop("embed.weight")}, whole])
    variant_shards(tmp_path, "model", "fp16")
    found = open_checkpoint(tmp_path)
    assert found.tensors["embed.weight"].dtype == "F32"
    assert found.notes == ("takes model.safetensors.index.json, not model.safetensors.index.fp16.json",)


def test_two_variants_alone_are_asked_about(tmp_path: Path) -> None:
    for variant in ("fp16", "bf16"):
        variant_shards(tmp_path, "model", variant)
    with pytest.raises(CheckpointError, match="holds 2 sets of weights") as error:
        open_checkpoint(tmp_path)
    assert error.value.hint == "leave the one to be averaged in the directory, and move the others away"


def test_a_single_variant_is_noted(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    save_file(tensors(0, torch.float16), tmp_path / "model.fp16.safetensors")
    assert open_checkpoint(tmp_path).notes == ("takes model.safetensors, not model.fp16.safetensors",)


STATES = ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", "nothing"]


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_deepspeed_inside_a_checkpoint(tmp_path: Path, state: str) -> None:
    run = make_run(tmp_path / "run", steps=(100, 200))
    for step in (100, 200):
        inside = run / f"checkpoint-{step}/global_step{step}"
        inside.mkdir()
        (inside / state).write_bytes(b"")
    for arguments in ([run], sorted(run.glob("checkpoint-*"))):
        series = find_series(arguments)
        assert series.ticks == (100, 200)
        assert [c.files[0].path.name for c in series.checkpoints] == ["model.safetensors"] * 2
        assert series.notes == ()


@pytest.mark.parametrize("name", ["consolidated.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_other_weights_beside_the_state_of_deepspeed(tmp_path: Path, name: str) -> None:
    for step in (100, 200):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / f"global_step{step}").mkdir(parents=True)
        (checkpoint / f"global_step{step}" / STATES[0]).write_bytes(b"")
        (checkpoint / name).parent.mkdir(exist_ok=True)
        save_file(tensors(), checkpoint / name)
    assert find_series(sorted(tmp_path.glob("checkpoint-*"))).ticks == (100, 200)


def test_the_state_of_deepspeed_alone_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100/global_step100").mkdir(parents=True)
    (tmp_path / "checkpoint-100/global_step100" / STATES[0]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds shards of DeepSpeed ZeRO"):
        find_series([tmp_path / "checkpoint-100"])


def test_a_run_with_its_final_model_on_top(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(100, 200))
    save_file(tensors(9), run / "model.safetensors")
    series = find_series([run])
    assert series.ticks == (100, 200)
    assert series.notes[0] == f"{run}: takes the 2 checkpoints inside, not model.safetensors"
