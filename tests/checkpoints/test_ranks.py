"""Files of one rank each: by their names, with what lies beside them; and names that only look so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from belay_cli.checkpoints.order.ranks import are_parts, mend_for, parts_among, rank_of_name, refuse_parts, whole_alone
from belay_cli.errors import CheckpointError
from tests.conftest import Ran

RANKS = [
    ("consolidated.00.pth", "consolidated.*.pth", (0,)),
    ("consolidated.07.pth", "consolidated.*.pth", (7,)),
    ("rank0", "rank*", (0,)),
    ("rank_12.pt", "rank_*.pt", (12,)),
    ("model.rank3.pt", "model.rank*.pt", (3,)),
    ("pytorch_model_rank1.bin", "pytorch_model_rank*.bin", (1,)),
    ("mp_rank_00", "mp_rank_*", (0,)),
    ("mp_rank_01_003", "mp_rank_*_*", (1, 3)),
    ("mp_rank_02_model_states.pt", "mp_rank_*_model_states.pt", (2,)),
    ("tp_rank_01_pp_rank_000", "tp_rank_*_pp_rank_*", (1, 0)),
    ("tp_0", "tp_*", (0,)),
    ("tp0pp1.pt", "tp*pp*.pt", (0, 1)),
    ("model-tp-1.pt", "model-tp-*.pt", (1,)),
    ("model_rank_0.safetensors", "model_rank_*.safetensors", (0,)),
    ("ep0-ba100-rank0.pt", "ep0-ba100-rank*.pt", (0,)),
    ("pp_rank_1", "pp_rank_*", (1,)),
    (
        "bf16_zero_pp_rank_3_mp_rank_00_model_states.pt",
        "bf16_zero_pp_rank_*_mp_rank_*_model_states.pt",
        (3, 0),
    ),
    ("layer_01-model_00-model_states.pt", "layer_*-model_*-model_states.pt", (1, 0)),
    ("__1_0.distcp", "__*_*.distcp", (1, 0)),
    ("checkpoint_1_500-shard2.pt", "checkpoint_1_500-shard*.pt", (2,)),
    ("checkpoint_last-model_part-1.pt", "checkpoint_last-model_part-*.pt", (1,)),
    ("model-00-of-02.pt", "model-*-of-02.pt", (0,)),
    ("part_1_of_2.pt", "part_*_of_2.pt", (1,)),
    ("model.00001-of-00002.pth", "model.*-of-00002.pth", (1,)),
    ("model_world_size_8_rank_0.pt", "model_world_size_8_rank_*.pt", (0,)),
]


@pytest.mark.parametrize(("name", "template", "numbers"), RANKS)
def test_names_that_state_a_rank(name: str, template: str, numbers: tuple[int, ...]) -> None:
    assert rank_of_name(name) == (template, numbers)


@pytest.mark.parametrize(
    "name",
    [
        "step_100.pt",
        "checkpoint_1000",
        "epoch=1-step=200.ckpt",
        "model-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
        "epoch-03-of-10.pt",
        "fold_1_of_5.pt",
        "run_1_of_5.pt",
        "step_0100_of_0500.pt",
        "stage1-step101000",
        "crank0.pt",
        "http0.pt",
        "consolidated.safetensors",
        "ranked_10.pt",
        "model-1-of-1.pt",
        "shards",
    ],
)
def test_names_that_state_none(name: str) -> None:
    assert rank_of_name(name) is None


WHOLE = {
    "one rank": ["consolidated.00.pth"],
    "Composer without FSDP": ["ep0-ba200-rank0.pt", "ep0-ba400-rank0.pt"],
    "LoRA's rank": ["lora_rank8_step_100.safetensors", "lora_rank8_step_200.safetensors"],
    "two of LoRA's ranks": ["run-rank8-step100.pt", "run-rank16-step100.pt"],
    "an odd one of LoRA": ["lora-rank24.safetensors"],
    "a degree": ["llama-tp2-step100.pt", "llama-tp2-step200.pt"],
    "two degrees": ["llama-tp2-step100.pt", "llama-tp4-step100.pt"],
    "one file a step": ["rank0_step_100.pt", "rank0_step_200.pt"],
    "a codec": ["mp3_vae_100.pt", "mp3_vae_200.pt"],
    "Megatron on one device": ["mp_rank_00"],
    "ZeRO's optimizer beside": ["mp_rank_00_model_states.pt", "step_1.pt"],
}
PARTS = {
    "Llama": ["consolidated.00.pth", "consolidated.01.pth"],
    "one of Llama": ["consolidated.01.pth"],
    "a later rank alone": ["model_rank_5.pt"],
    "Megatron's rank 4": ["mp_rank_04"],
    "Composer": ["ep0-ba200-rank0.pt", "ep0-ba200-rank1.pt"],
    "tensor and pipeline": ["tp0pp0.pt", "tp0pp1.pt"],
    "short names": ["tp_0.safetensors", "tp_1.safetensors"],
    "by number": ["model-00-of-02.pt"],
    "verl": ["model_world_size_2_rank_0.pt"],
    "layers": ["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"],
    "ZeRO": ["zero_pp_rank_0_mp_rank_00_model_states.pt"],
    "fairscale": ["checkpoint_1_100-shard0.pt", "checkpoint_1_100-shard1.pt"],
    "fairseq": ["checkpoint_last-model_part-0.pt", "checkpoint_last-model_part-1.pt"],
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_models(case: str) -> None:
    assert parts_among(WHOLE[case]) == []
    assert whole_alone(WHOLE[case]) == {name for name in WHOLE[case] if rank_of_name(name)}


@pytest.mark.parametrize("case", PARTS)
def test_parts(case: str) -> None:
    assert parts_among(["config.json", *PARTS[case]]) == PARTS[case]
    assert whole_alone(PARTS[case]) == set()


MENDS = {
    "consolidated.00.pth": "convert_llama_weights_to_hf.py",
    "zero_pp_rank_0_mp_rank_00_model_states.pt": "zero_to_fp32.py",
    "layer_01-model_00-model_states.pt": "deepspeed_to_transformers.py",
    "mp_rank_00": "tools/checkpoint/convert.py",
    "tp_rank_00_pp_rank_000": "tools/checkpoint/convert.py",
    "tp0pp0.pt": "tools/checkpoint/convert.py",
    "model_world_size_8_rank_0.pt": "verl.model_merger",
    "ep0-ba100-rank0.pt": "Composer",
    "checkpoint-shard0.pt": "consolidate_shard_weights",
    "__0_0.distcp": "its directory is the checkpoint",
    "model_rank_0.pt": "accelerate merge-weights",
}


@pytest.mark.parametrize("name", MENDS)
def test_each_trainer_has_its_mend(name: str) -> None:
    assert MENDS[name] in mend_for(name)


def save(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"w": torch.full((4,), value)}, path)
    else:
        torch.save({"w": torch.full((4,), value)}, path)
    return path


@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("how", ["directory", "one by one", "one alone"])
def test_parts_are_refused_however_they_are_given(
    tmp_path: Path, belay: Callable[..., Ran], case: str, how: str
) -> None:
    paths = [save(tmp_path / "run" / (name if "." in name else f"{name}/model.pt")) for name in PARTS[case]]
    given = {"directory": [tmp_path / "run"], "one by one": paths, "one alone": paths[:1]}[how]
    ran = belay("average", *given, "-o", "out")
    assert ran.code == 1
    assert "as arguments" not in ran.err
    assert "--subfolder" not in ran.err
    if how == "one alone":
        assert "holds what one rank had" in ran.err


def test_what_is_said(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [save(tmp_path / "run" / name) for name in PARTS["Llama"]]
    hint = "\n       put them together first: convert_llama_weights_to_hf.py of transformers\n"
    ran = belay("plan", tmp_path / "run")
    assert ran.err == (
        f"belay: {tmp_path}/run: holds 2 files of one rank each: consolidated.00.pth, consolidated.01.pth{hint}"
    )
    ran = belay("plan", *paths, "--order", "given")
    assert ran.err == (f"belay: {paths[0]}: holds what one rank had; consolidated.01.pth holds what another had{hint}")
    paths[0].unlink()
    assert belay("plan", paths[1]).err == f"belay: {paths[1]}: holds what one rank had{hint}"


def test_directories_of_ranks(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for rank in (0, 1):
        save(tmp_path / f"run/rank_{rank}/model.safetensors")
    ran = belay("plan", tmp_path / "run")
    assert f"{tmp_path}/run: holds 2 files of one rank each: rank_0, rank_1" in ran.err
    ran = belay("plan", tmp_path / "run/rank_0")
    assert "run/rank_0: holds what one rank had; rank_1 holds what another had" in ran.err
    ran = belay("plan", tmp_path / "run/rank_0/model.safetensors")
    assert "model.safetensors: holds what one rank had; rank_1 holds what another had" in ran.err


def test_a_subfolder_of_one_rank(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        for rank in (0, 1):
            save(tmp_path / f"step-{step}/tp_{rank}/model.safetensors")
    given = [tmp_path / f"step-{step}" for step in (100, 200)]
    ran = belay("average", *given, "--subfolder", "tp_0", "-o", "out")
    assert ran.code == 1
    assert "step-100/tp_0: holds what one rank had; tp_1 holds what another had" in ran.err


def test_relative_paths(tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        save(tmp_path / f"mp_rank_0{rank}/model.pt")
    monkeypatch.chdir(tmp_path / "mp_rank_00")
    for argument in ("model.pt", "."):
        ran = belay("plan", argument)
        assert ran.err.startswith(f"belay: {argument}: holds what one rank had; mp_rank_01 holds what another had\n")


def test_the_ranks_of_every_checkpoint_in_one_folder(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        for rank in (0, 1):
            save(tmp_path / f"run/step_{step}_rank_{rank}.pt")
    for arguments in ([tmp_path / "run"], [tmp_path / f"run/step_{s}_rank_0.pt" for s in (100, 200)]):
        ran = belay("average", *arguments, "-o", "out")
        assert ran.code == 1
        assert "step_100_rank_0.pt: holds what one rank had; step_100_rank_1.pt holds what another had" in ran.err


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model_rank_0.pt"])
def test_one_rank_alone_is_a_whole_model(tmp_path: Path, belay: Callable[..., Ran], name: str) -> None:
    for step in (100, 200):
        save(tmp_path / f"step-{step}" / name, float(step))
    assert belay("plan", tmp_path / "step-100", tmp_path / "step-200").code == 0
    assert belay("plan", *sorted(tmp_path.glob(f"step-*/{name}")), "--order", "given").code == 0


def test_a_series_of_rank_zero(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [save(tmp_path / f"ep0-ba{batch}-rank0.pt") for batch in (200, 400)]
    assert belay("plan", *paths, "--order", "given").code == 0


def test_a_standard_set_beside_the_state_of_ranks(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        save(tmp_path / f"run/checkpoint-{step}/model.safetensors", float(step))
        for rank in (0, 1):
            save(tmp_path / f"run/checkpoint-{step}/extra_rank_{rank}.pt")
    assert belay("plan", tmp_path / "run").code == 0


@given(st.text(max_size=60), st.integers(0, 99_999))
def test_the_template_is_the_name_without_its_numbers(before: str, number: int) -> None:
    rank = rank_of_name(f"{before}_rank_{number}.pt")
    assert rank is not None
    assert rank.numbers[-1] == number
    assert rank.template.endswith("_rank_*.pt")


@given(st.sets(st.integers(0, 9999), min_size=2, max_size=5))
def test_several_ranks_with_the_first_are_parts(ranks: set[int]) -> None:
    assert are_parts("model_rank_*.pt", {(rank,) for rank in ranks | {0}})


def test_names_take_no_time(tmp_path: Path) -> None:
    began = time.perf_counter()
    for name in ("rank_" * 5000, "1-of-" * 5000, "_rank_0" * 150, "9" * 1000, "-01-of-02" * 110):
        rank_of_name(name)
    for number in range(2000):
        (tmp_path / f"step_{number}_rank_0.pt").touch()
    refuse_parts(sorted(tmp_path.iterdir()))
    assert time.perf_counter() - began < 5


def test_absent_paths_are_not_its_business(tmp_path: Path) -> None:
    refuse_parts([tmp_path / "nowhere/consolidated.00.pth"])
    with pytest.raises(CheckpointError, match="holds what one rank had"):
        refuse_parts([tmp_path / "nowhere/consolidated.01.pth"])


@pytest.mark.parametrize("word", ["part", "worker", "dp", "device", "node", "cuda", "chunk"])
def test_one_list_of_words_for_names_and_for_what_lies_beside(tmp_path: Path, word: str) -> None:
    paths = [tmp_path / f"step{step}/{word}{rank}.pt" for step in (9, 10) for rank in (0, 1)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with pytest.raises(CheckpointError, match=f"holds what one rank had; {word}1.pt holds what another had"):
        refuse_parts(paths[::2])
    for path in paths[1::2]:
        path.unlink()
    refuse_parts(paths[::2])


def test_ranks_of_nanotron_are_not_sent_to_megatron() -> None:
    assert mend_for("pp-rank-0-of-1_tp-rank-0-of-2.safetensors") == (
        "put them together first, as the code that wrote them does"
    )
