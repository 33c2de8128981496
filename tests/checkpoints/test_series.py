"""Arguments into a series: what is taken, in which order, and what is refused in which words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import Selection, Series, find_series, open_checkpoint
from belay_cli.checkpoints.compare import first_difference
from belay_cli.checkpoints.fingerprint import file_fingerprint, fingerprint
from belay_cli.checkpoints.order.names import names_a_checkpoint, step_in_name
from belay_cli.errors import BelayError, CheckpointError, SeriesError, UsageError
from belay_cli.formats.safetensors import read_header
from belay_cli.storage.files import OpenFiles, Stored, StoredFile, open_files
from tests.conftest import make_files, make_run, raw_safetensors, shard, tensors


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step_1000", 1000),
        ("step1000", 1000),
        ("step-900", 900),
        ("epoch=1-step=200", 200),
        ("model-000500", 500),
        ("global_step42", 42),
        ("stage1-step101000-tokens424B", 101000),
        ("iter_7", 7),
        ("ckpt-12", 12),
        ("checkpoint_3", None),
        ("epoch_3", None),
        ("model", None),
        ("model2", None),
        ("footsteps", None),
        ("timestep5", None),
        ("step-" + "9" * 30, None),
    ],
)
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_in_name(name) == step


def test_checkpoint_names() -> None:
    assert names_a_checkpoint("checkpoint_3")
    assert names_a_checkpoint("step-7")
    assert not names_a_checkpoint("2_Dense")
    assert not names_a_checkpoint("runs")


def names(series: Series) -> list[str]:
    return [checkpoint.name for checkpoint in series.checkpoints]


def test_steps_are_ordered_as_integers(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(1000, 200, 30))
    series = find_series(paths)
    assert names(series) == ["step-30.safetensors", "step-200.safetensors", "step-1000.safetensors"]
    assert (series.ticks, series.unit, series.name) == ((30, 200, 1000), "step", tmp_path.name)


def test_a_recorded_step_counts_and_must_not_contradict_the_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"step": "50"})
    save_file(tensors(), tmp_path / "b.safetensors", metadata={"step": "7"})
    assert find_series([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).ticks == (7, 50)
    save_file(tensors(), tmp_path / "step-8.safetensors", metadata={"step": "9"})
    with pytest.raises(SeriesError, match="records step 9, but its name says 8"):
        open_checkpoint(tmp_path / "step-8.safetensors")
    paths = [tmp_path / "step-8.safetensors", tmp_path / "b.safetensors"]
    given = find_series(paths, Selection(order="given"))  # the mend that the error names
    assert [checkpoint.step for checkpoint in given.checkpoints] == [None, 7]


def test_trainer_state_gives_the_step_and_must_not_contradict_the_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "checkpoint-100").rename(run / "first")
    assert open_checkpoint(run / "first").step == 100
    (run / "checkpoint-200").rename(run / "checkpoint-250")
    with pytest.raises(SeriesError, match="records step 200, but its name says 250"):
        open_checkpoint(run / "checkpoint-250")
    (run / "checkpoint-300/trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="trainer_state.json: is not valid JSON"):
        open_checkpoint(run / "checkpoint-300")


def test_without_steps_the_last_integer_orders_and_checkpoints_are_the_unit(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(10, 9, 11), name="epoch_{}.safetensors")
    series = find_series(paths)
    assert names(series) == ["epoch_9.safetensors", "epoch_10.safetensors", "epoch_11.safetensors"]
    assert (series.ticks, series.unit) == ((0, 1, 2), "checkpoint")
    with pytest.raises(SeriesError, match="states no step"):
        find_series(paths, Selection(unit="step"))


def test_the_save_counter_of_accelerate_is_no_step(tmp_path: Path) -> None:
    for n in (2, 10):
        (tmp_path / f"checkpoint_{n}").mkdir()
        save_file(tensors(n), tmp_path / f"checkpoint_{n}/model.safetensors")
    series = find_series([tmp_path])
    assert (names(series), series.unit) == (["checkpoint_2", "checkpoint_10"], "checkpoint")


def test_without_any_integer_the_order_is_asked_for(tmp_path: Path) -> None:
    a, b = make_files(tmp_path, steps=("a", "b"), name="{}.safetensors")
    with pytest.raises(SeriesError, match="has no step and no integer in its name") as caught:
        find_series([a, b])
    assert caught.value.hint == "give the checkpoints in order, with --order given"
    assert names(find_series([b, a], Selection(order="given"))) == ["b.safetensors", "a.safetensors"]


def test_one_number_twice_without_steps(tmp_path: Path) -> None:
    a, b = make_files(tmp_path, steps=("1", "01"), name="a{}.safetensors")
    with pytest.raises(SeriesError, match="has the same number 1 as"):
        find_series([a, b])


def test_two_checkpoints_at_one_step_with_other_weights(tmp_path: Path) -> None:
    one = make_files(tmp_path / "x", steps=(5, 7))
    other = make_files(tmp_path / "y", steps=(1, 5))[1]
    with pytest.raises(SeriesError, match=r"step-5.safetensors: is at step 5, and so is .*step-5.safetensors"):
        find_series([*one, other])


def test_twins_count_once(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(5, 7))
    (tmp_path / "copy").mkdir()
    shutil.copy(paths[1], tmp_path / "copy/step-7.safetensors")
    series = find_series([*paths, tmp_path / "copy/step-7.safetensors", paths[0]])
    assert series.ticks == (5, 7)
    assert sorted(note.rsplit(" ", 4)[-1] for note in series.notes) == ["once", "once"]


def test_part_of_a_series(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=range(10, 100, 10))
    assert find_series(paths, Selection(from_step=20, to_step=50)).ticks == (20, 30, 40, 50)
    assert find_series(paths, Selection(every=3)).ticks == (30, 60, 90)
    with pytest.raises(UsageError, match="no checkpoint lies between .* steps 10 to 90"):
        find_series(paths, Selection(from_step=200))
    with pytest.raises(UsageError, match="need the step of every checkpoint"):
        find_series(make_files(tmp_path / "e", steps=(1, 2), name="e_{}.safetensors"), Selection(to_step=1))


@pytest.mark.parametrize(
    "selection", [{"order": "size"}, {"unit": "epoch"}, {"every": 0}, {"order": "given", "unit": "step"}]
)
def test_selections_that_cannot_be(selection: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Selection(**selection)


def test_a_run_directory_is_the_checkpoints_inside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(1000, 200))
    save_file(tensors(9), run / "model.safetensors")
    series = find_series([run])
    assert names(series) == ["checkpoint-200", "checkpoint-1000"]
    assert series.name == "run"
    assert series.notes == (f"{run}: takes the 2 checkpoints inside, not model.safetensors",)


def test_a_directory_of_files_with_steps_is_a_run(tmp_path: Path) -> None:
    make_files(tmp_path, steps=(100, 20))
    assert find_series([tmp_path]).ticks == (20, 100)


def test_an_incomplete_checkpoint_in_a_run_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "checkpoint-200/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="checkpoint-200: holds no weights that belay reads"):
        find_series([run])


def test_files_in_checkpoint_directories_take_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    series = find_series(sorted(run.glob("checkpoint-*/model.safetensors")))
    assert series.ticks == (100, 200, 300, 400)
    assert names(series)[0] == "checkpoint-100/model.safetensors"


def test_diffusers_checkpoints_take_the_raw_model(tmp_path: Path) -> None:
    for step in (10, 20):
        for part in ("unet", "unet_ema"):
            directory = tmp_path / f"checkpoint-{step}/{part}"
            directory.mkdir(parents=True)
            save_file(tensors(step), directory / "diffusion_pytorch_model.safetensors")
    series = find_series([tmp_path])
    assert series.ticks == (10, 20)
    assert series.last.weights.stem == "diffusion_pytorch_model"
    assert series.notes[0] == "takes unet, not unet_ema"
    given = find_series(sorted(tmp_path.glob("checkpoint-*/unet")))
    assert (given.ticks, names(given)) == ((10, 20), ["checkpoint-10/unet", "checkpoint-20/unet"])


def test_several_models_in_a_checkpoint_are_listed(tmp_path: Path) -> None:
    for part in ("unet", "text_encoder"):
        (tmp_path / "pipe" / part).mkdir(parents=True)
        save_file(tensors(), tmp_path / "pipe" / part / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds several models: text_encoder, unet"):
        open_checkpoint(tmp_path / "pipe")


def test_several_sets_of_weights(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    save_file(tensors(), tmp_path / "model.fp16.safetensors")
    assert open_checkpoint(tmp_path).weights.stem == "model"
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match=r"sets of weights: consolidated.safetensors, model.fp16.safetensors"):
        open_checkpoint(tmp_path)


def test_directories_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights that belay reads"):
        open_checkpoint(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"")
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no weights that belay reads"):
        open_checkpoint(tmp_path)


FOREIGN = {
    "model.gguf": "GGUF, which is quantized for inference",
    "zero_to_fp32.py": "shards of DeepSpeed ZeRO",
    "global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt": "shards of DeepSpeed ZeRO",
    "mp_rank_00/model_optim_rng.pt": "ranks of Megatron-LM",
    "model_world_size_8_rank_0.pt": "one file a rank of FSDP",
    "_CHECKPOINT_METADATA": "a checkpoint of JAX (orbax or Flax)",
    "flax_model.msgpack": "a checkpoint of JAX (orbax or Flax)",
    "model.weights.h5": "a checkpoint of Keras or TensorFlow",
    "model.nemo": "an archive of NeMo",
    "run.tar.gz": "an archive",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_cannot_be_read_says_how_to_get_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert error.value.message == f"holds {FOREIGN[name]}, which belay does not read"
    assert error.value.hint
    if not name.endswith((".py", ".pt", "DATA")):
        with pytest.raises(CheckpointError, match="which belay does not read"):
            open_checkpoint(path)


def test_things_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is neither a safetensors nor a torch file"):
        open_checkpoint(tmp_path / "x.txt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="pipe.safetensors: is not a file"):
        open_checkpoint(tmp_path / "pipe.safetensors")
    with pytest.raises(UsageError, match="no checkpoint was given"):
        find_series([])


def test_an_average_is_no_checkpoint(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(1, 2))
    save_file(tensors(), paths[1], metadata={"belay.version": "1"})
    with pytest.raises(SeriesError, match="was written by belay"):
        find_series(paths)
    assert len(find_series(paths, Selection(allow_averages=True)).ticks) == 2


def sharded(directory: Path) -> Path:
    parts = tensors()
    shard(directory, [{k: parts.pop(k) for k in ("embed.weight", "seen")}, parts])
    return directory / "model.safetensors.index.json"


def test_a_sharded_directory(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(tensors())
    stored = checkpoint.stored("layer.bias")
    assert isinstance(stored, Stored)
    file, offset = stored
    assert file.path.name == "model-00002-of-00002.safetensors"
    assert file.path.read_bytes()[offset : offset + 32] == tensors()["layer.bias"].numpy().tobytes()
    with pytest.raises(CheckpointError, match="is one shard of several"):
        open_checkpoint(file.path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"holds shards of model.safetensors but no model.safetensors.index.json"):
        open_checkpoint(tmp_path)


def test_a_shard_that_the_index_does_not_name(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"] = {n: f for n, f in content["weight_map"].items() if f.startswith("model-00001")}
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"does not name model-00002-of-00002.safetensors, which lies"):
        open_checkpoint(tmp_path)


def test_a_name_that_takes_no_time_to_read(tmp_path: Path) -> None:
    make_files(tmp_path, steps=[1])
    (tmp_path / f"rng_{'1' * 40}!.bin").write_bytes(b"")
    (tmp_path / f"optim{'_1' * 40}!.bin").write_bytes(b"")
    program = (
        "import pathlib, sys; from belay_cli.checkpoints.directory import weight_sets; "
        "weight_sets(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"x": "model-00003-of-00003.safetensors"}), "names the shard model-00003-of-00003"),
        (lambda m: m.update({"x": "model-00001-of-00002.safetensors"}), "'x' is not in model-00001-of-00002"),
        (lambda m: m.pop("scale"), "'scale' lies in model-00002-of-00002.safetensors, which the index does not say"),
        (lambda m: m.update(scale="model-00001-of-00002.safetensors"), "'scale' is not in model-00001-of-00002"),
        (lambda m: m.update(scale="../secret.safetensors"), "puts 'scale' into '../secret.safetensors'"),
        (lambda m: m.update(scale="/etc/passwd"), "puts 'scale' into '/etc/passwd'"),
        (lambda m: m.update(scale="config.json"), "puts 'scale' into 'config.json'"),
        (lambda m: m.update(scale=5), "has no weight_map"),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    index = sharded(tmp_path / "x")
    raw_safetensors(tmp_path / "secret.safetensors", {})
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "x")
    assert message in caught.value.message
    assert caught.value.file == str(index)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    sharded(tmp_path).write_text(content)
    with pytest.raises(CheckpointError, match=r"is not valid JSON|has no weight_map"):
        open_checkpoint(tmp_path)


def test_shards_beside_a_single_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds both model.safetensors and shards of the same name"):
        open_checkpoint(tmp_path)


def series_with(tmp_path: Path, change: Callable[..., Any]) -> Series:
    paths = make_files(tmp_path, steps=(800, 900))
    other = tensors(1)
    change(other)
    save_file(other, paths[1])
    return find_series(paths)


@pytest.mark.parametrize(
    ("change", "message", "tensor"),
    [
        (
            lambda t: t.update({"layer.weight": torch.zeros(8, 6)}),
            "'layer.weight' is 8×6; in step-800.safetensors it is 8×5",
            "layer.weight",
        ),
        (
            lambda t: t.update({"scale": torch.zeros(1)}),
            "'scale' is 1; in step-800.safetensors it is a scalar",
            "scale",
        ),
        (
            lambda t: t.update({"layer.bias": torch.zeros(8, dtype=torch.float16)}),
            "'layer.bias' is float16; in step-800.safetensors it is float32",
            "layer.bias",
        ),
        (lambda t: t.pop("seen"), "has no 'seen', which step-800.safetensors has", "seen"),
        (lambda t: t.update({"new": torch.zeros(1)}), "has no 'new', which step-900.safetensors has", "new"),
    ],
)
def test_a_series_has_one_architecture(tmp_path: Path, change: Callable[..., Any], message: str, tensor: str) -> None:
    error = first_difference(series_with(tmp_path, change).checkpoints)
    assert error is not None
    assert (error.message, error.tensor) == (message, tensor)
    assert first_difference(series_with(tmp_path, change).checkpoints, lambda name: name == tensor) is None


def test_the_mend_of_a_change_half_way_is_a_shorter_series(tmp_path: Path) -> None:
    error = first_difference(series_with(tmp_path, lambda t: t.pop("seen")).checkpoints)
    assert error is not None
    assert error.hint is not None
    assert error.hint.endswith("to leave the later checkpoints out: --to-step 800")


def test_a_fingerprint_sees_header_size_and_blocks(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3 << 20)}, tmp_path / "a")
    whole = file_fingerprint(read_header(tmp_path / "a"))
    assert len(whole) == 64
    data_start = read_header(tmp_path / "a").data_start
    for place, seen in ((data_start, True), (data_start + (12 << 20) - 1, True), (data_start + 70_000, False)):
        content = bytearray((tmp_path / "a").read_bytes())
        content[place] = 1
        (tmp_path / "b").write_bytes(content)
        assert (file_fingerprint(read_header(tmp_path / "b")) != whole) is seen
    save_file({"v": torch.zeros(3 << 20)}, tmp_path / "b")
    assert file_fingerprint(read_header(tmp_path / "b")) != whole


def test_a_small_file_is_fingerprinted_whole(tmp_path: Path) -> None:
    paths = make_files(tmp_path, steps=(1, 2))
    assert fingerprint(open_checkpoint(paths[0])) != fingerprint(open_checkpoint(paths[1]))


def test_the_fingerprint_of_shards(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    sharded(tmp_path / "b")
    one, other = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != file_fingerprint(one.files[0])


def test_few_files_stay_open(tmp_path: Path) -> None:
    stored = [StoredFile(path, path.stat().st_size) for path in make_files(tmp_path, steps=range(20))]
    open_before = len(os.listdir("/proc/self/fd"))
    buffer = bytearray(8)
    with OpenFiles(limit=3) as files:
        for file in [*stored, *stored, stored[-1]]:
            files.read_into(file, memoryview(buffer), 4)
            assert buffer == file.path.read_bytes()[4:12]
            assert len(os.listdir("/proc/self/fd")) <= open_before + 3
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert 1 <= open_files(1_000_000) <= open_files(2) <= open_files(1) <= 4096


def test_errors_name_the_file() -> None:
    assert str(BelayError("is odd", file="a/b")) == "a/b: is odd"
    assert str(BelayError("is odd")) == "is odd"


def test_shards_that_are_shared_in_a_cache_do_not_merge_checkpoints(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    parts = {"frozen": {"a": torch.ones(3)}, "head1": {"b": torch.ones(3)}, "head2": {"b": torch.zeros(3)}}
    for name, part in parts.items():
        save_file(part, blobs / name)
    for step in (1, 2):
        snapshot = tmp_path / f"step{step}"
        shard(snapshot, [parts["frozen"], parts[f"head{step}"]])
        for number, blob in ((1, "frozen"), (2, f"head{step}")):
            file = snapshot / f"model-{number:05d}-of-00002.safetensors"
            file.unlink()
            file.symlink_to(blobs / blob)
    assert find_series([tmp_path / "step1", tmp_path / "step2"]).ticks == (1, 2)


def test_what_a_run_directory_leaves_out_is_noted(tmp_path: Path) -> None:
    make_files(tmp_path, steps=(100, 20))
    save_file(tensors(), tmp_path / "final.safetensors")
    series = find_series([tmp_path])
    assert series.ticks == (20, 100)
    assert series.notes == (f"{tmp_path}: takes the 2 checkpoints inside, not final.safetensors",)


def test_a_run_directory_is_in_integer_order_even_as_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(1000, 200, 1100))
    assert names(find_series([run], Selection(order="given"))) == [
        "checkpoint-200",
        "checkpoint-1000",
        "checkpoint-1100",
    ]


def test_a_stray_shard_at_the_top_of_a_run_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save_file(tensors(), run / "model-00001-of-00002.safetensors")
    assert find_series([run]).ticks == (100, 200, 300, 400)
