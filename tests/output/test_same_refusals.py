"""An output in the files of its last checkpoint: what does not go with that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli import average, averages, push, sweep
from belay_cli.errors import UsageError
from tests.conftest import Ran, tensors
from tests.output.same import saved


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return saved(tmp_path)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--format", "same", "--dtype", "float32"],
            2,
            "--dtype float32 does not go with --format same, which leaves every number the room that it has\n"
            "       leave one of them out",
        ),
        (
            ["-o", "out.pt", "--dtype", "bf16"],
            2,
            "--dtype bfloat16 does not go with --format same, which leaves every number the room that it has\n"
            "       leave one of them out",
        ),
        (
            ["--format", "same", "--max-shard-size", "1GB"],
            2,
            "--max-shard-size does not go with --format same: the files are those of the last checkpoint\n"
            "       leave one of them out",
        ),
        (
            ["-o", "out.pt", "--max-shard-size", "1GB"],
            2,
            "--max-shard-size does not go with --format same: the files are those of the last checkpoint\n"
            "       leave one of them out",
        ),
        (
            ["--format", "same", "--drop", "pl*"],
            2,
            "'plain' is left out, and --format same keeps what the last checkpoint has\n"
            "       to keep it as it is there: --last 'plain'",
        ),
        (
            ["--format", "same", "-o", "out.safetensors"],
            1,
            "out.safetensors: is not a name for a torch file, as LAST is one\n"
            "       -o out.pt, or leave out --format same",
        ),
        (
            ["--format", "same", "-o", "out"],
            1,
            "out: is not a name for a torch file, as LAST is one\n       -o out.pt, or leave out --format same",
        ),
        (
            ["--format", "safetensors", "-o", "out.pt"],
            1,
            "out.pt: is not a name for safetensors\n       -o out.safetensors",
        ),
        (
            ["--without-optimizer"],
            2,
            "--without-optimizer goes with --format same\n       leave it out: safetensors never hold one",
        ),
        (
            ["--format", "safetensors", "--without-optimizer"],
            2,
            "--without-optimizer goes with --format same\n       leave it out: safetensors never hold one",
        ),
        (
            ["--format", "same", "--without-optimizer"],
            2,
            "--without-optimizer: LAST has no file of an optimizer alone\n"
            "       leave it out; an average as safetensors, without --format same, holds no optimizer",
        ),
        (
            ["--format", "same", "--push-to-hub", "a/b"],
            2,
            "--push-to-hub does not go with --format same: what is published is safetensors\n"
            "       leave one of them out",
        ),
        (["--format", "torch"], 2, "--format torch is unknown\n       one of: safetensors, same"),
    ],
)
def test_refusals(series: list[Path], belay: Callable[..., Ran], options: list[str], code: int, message: str) -> None:
    ran = belay("average", *series, *options)
    assert (ran.code, ran.err) == (code, f"belay: {message}\n".replace("LAST", str(series[-1])))
    assert os.listdir() == []


def test_safetensors_are_refused(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2)]
    for step, path in enumerate(paths):
        save_file(tensors(step), path)
    ran = belay("average", *paths, "--format", "same")
    assert (ran.code, ran.err) == (
        2,
        f"belay: --format same is for torch files, and {paths[-1]} is safetensors, which any average is\n"
        "       leave it out\n",
    )
    ran = belay("average", *paths, "-o", "out.pt")
    assert (ran.code, ran.err) == (1, "belay: out.pt: is not a name for safetensors\n       -o out.safetensors\n")


def test_safetensors_before_a_torch_file_are_none_of_its_concern(tmp_path: Path) -> None:
    save_file(tensors(1), tmp_path / "step-1.safetensors")
    torch.save(tensors(2), tmp_path / "step-2.pt")
    average([tmp_path / "step-1.safetensors", tmp_path / "step-2.pt"], "out.pt")
    average([tmp_path / "step-1.safetensors", tmp_path / "step-2.pt"], "plain.safetensors")
    from safetensors.torch import load_file

    expected, out = load_file("plain.safetensors"), torch.load("out.pt")
    assert all(torch.equal(out[name], tensor) for name, tensor in expected.items())


def test_a_directory_with_the_name_of_a_file(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    for step, path in enumerate(paths):
        path.mkdir()
        torch.save(tensors(step), path / "pytorch_model.bin")
    ran = belay("average", *paths, "--format", "same", "-o", "out.safetensors")
    assert (ran.code, ran.err) == (
        1,
        f"belay: out.safetensors: is not a name for a directory, as {paths[-1]} is one\n"
        "       -o out, or leave out --format same\n",
    )
    ran = belay("average", *paths, "-o", "out.pt")
    assert (ran.code, ran.err) == (1, "belay: out.pt: is not a name for safetensors\n       -o out.safetensors\n")
    ran = belay("average", *paths, "--format", "same", "-o", "out.pt")
    assert (ran.code, ran.err) == (
        1,
        f"belay: out.pt: is not a name for a directory, as {paths[-1]} is one\n"
        "       -o out, or leave out --format same\n",
    )
    assert os.listdir() == []


def test_a_directory_that_has_the_name_of_a_file_itself(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    """As Lightning names the directories of torch.distributed.checkpoint."""
    paths = [tmp_path / f"step={step}.ckpt" for step in (1, 2)]
    for step, path in enumerate(paths):
        path.mkdir()
        torch.save(tensors(step), path / "pytorch_model.bin")
    assert belay("average", *paths, "--format", "same", "-o", "out.ckpt").code == 0
    assert sorted(os.listdir("out.ckpt")) == [".belay", "belay.json", "pytorch_model.bin"]


def test_a_file_that_stands_in_the_way(series: list[Path], belay: Callable[..., Ran]) -> None:
    Path("out.pt").write_text("mine")
    assert belay("average", *series, "-o", "out.pt", "--overwrite").err.splitlines()[-2:] == [
        "belay: out.pt: exists, and belay did not write it",
        "       write somewhere else: -o",
    ]
    Path("out.pt").unlink()
    Path("out.pt.belay.json").write_text("mine")
    assert belay("average", *series, "-o", "out.pt", "--overwrite").err.splitlines()[-2:] == [
        "belay: out.pt.belay.json: exists, and belay did not write it",
        "       write somewhere else: -o",
    ]
    Path("out.pt.belay.json").unlink()
    average(series, "out.pt")
    assert belay("average", *series, "-o", "out.pt").err.splitlines()[-2:] == [
        "belay: out.pt: exists",
        "       say --overwrite, or write somewhere else: -o",
    ]
    average(series, "out.pt", overwrite=True, method="uniform")
    torch.save({"mine": 1}, "out.pt")
    assert belay("average", *series, "-o", "out.pt", "--overwrite").err.splitlines()[-2:] == [
        "belay: out.pt: exists, and belay did not write it",
        "       write somewhere else: -o",
    ]
    assert torch.load("out.pt") == {"mine": 1}


def test_it_is_not_published(series: list[Path]) -> None:
    average(series, "out.pt")
    with pytest.raises(Exception, match="has the files of its last checkpoint") as caught:
        push("out.pt", "a/b", token="none")
    assert str(caught.value) == (
        "out.pt: has the files of its last checkpoint, to train on from; what is published is safetensors"
    )


def test_in_memory_there_are_no_files(series: list[Path]) -> None:
    with pytest.raises(UsageError, match="--format same is for an average that is written by itself"):
        list(averages(series, ["ema"], format="same"))
    with pytest.raises(UsageError, match="--format same is for an average that is written by itself"):
        sweep(series, ["ema"], evaluate=lambda state: 0.0, maximize=True, format="same")


def test_an_update_has_new_factors(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [tmp_path / f"step-{step}.pt" for step in (1, 2)]
    for path in paths:
        torch.save({"x.lora_A.weight": torch.randn(2, 5), "x.lora_B.weight": torch.randn(5, 2)}, path)
    ran = belay("average", *paths, "--format", "same", "--lora", "delta")
    assert (ran.code, ran.err) == (
        2,
        "belay: --lora delta does not go with --format same: the factors of an averaged update are new ones\n"
        "       --lora factors, or leave out --format same\n",
    )
    assert belay("average", *paths, "--format", "same", "--lora", "factors", "-q").code == 0
