"""Wrong inputs and wrong usage: one clear line, its exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.damaged import lie, truncated, with_tensor
from tests.conftest import Ran, make_files, shard, tensors

BAD_INPUTS: dict[str, tuple[Callable[..., Any], str]] = {
    "no such file": (
        lambda d, p: [*p, d / "x.safetensors"],
        "{d}/x.safetensors: does not exist",
    ),
    "no weights": (
        lambda d, p: [(d / "empty").mkdir() or d / "empty"],
        "{d}/empty: holds no weights that belay reads\n       it is empty; looked for *.safetensors, *.pt, *.pth, "
        "*.bin, *.ckpt, in it and in its folders",
    ),
    "truncated": (
        lambda d, p: [*p[:3], truncated(p[3])],
        "{d}/step-400.safetensors: is cut short: its tensors take 1832 bytes, and 1827 are there\n"
        "       the file is incomplete; copy or save it again, or leave the checkpoint out",
    ),
    "lies about offsets": (
        lambda d, p: [lie(d / "step-1.safetensors", data_offsets=[0, 1 << 50])],
        "{d}/step-1.safetensors: has a header that cannot be right: 'w' is 2 of float32, 8 bytes, but has "
        "1125899906842624",
    ),
    "lies about dtype": (
        lambda d, p: [lie(d / "step-1.safetensors", dtype="F64")],
        "{d}/step-1.safetensors: has a header that cannot be right: 'w' is 2 of float64, 16 bytes, but has 8",
    ),
    "lies about size": (
        lambda d, p: [lie(d / "step-1.safetensors", shape=[4], data_offsets=[0, 16])],
        "{d}/step-1.safetensors: is cut short: its tensors take 16 bytes, and 8 are there\n"
        "       the file is incomplete; copy or save it again, or leave the checkpoint out",
    ),
    "header over 100 MB": (
        lambda d, p: [(d / "h.safetensors").write_bytes((1 << 40).to_bytes(8, "little")) and d / "h.safetensors"],
        "{d}/h.safetensors: claims a header of 1099511627776 bytes; safetensors allows 100000000\n"
        "       it is not a safetensors file, or it is damaged",
    ),
    "a key differs": (
        lambda d, p: with_tensor(p[2], extra=torch.zeros(1)) and p,
        "{d}/step-200.safetensors: has no 'extra', which step-300.safetensors has\n"
        "       a series has one architecture; to leave the tensor out: --drop 'extra'; "
        "to leave the later checkpoints out: --to-step 200",
    ),
    "a shape differs": (
        lambda d, p: with_tensor(p[2], scale=torch.zeros(3, 4)) and p,
        "{d}/step-300.safetensors: 'scale' is 3×4; in step-200.safetensors it is a scalar\n"
        "       a series has one architecture; to leave the later checkpoints out: --to-step 200",
    ),
    "a dtype differs": (
        lambda d, p: with_tensor(p[2], scale=torch.zeros((), dtype=torch.float16)) and p,
        "{d}/step-300.safetensors: 'scale' is float16; in step-200.safetensors it is float32\n"
        "       save every checkpoint in the same dtype",
    ),
    "two at one step": (
        lambda d, p: [*p, *make_files(d / "other", steps=(1, 400))],
        "{d}/other/step-400.safetensors: is at step 400, and so is {d}/step-400.safetensors, with other weights\n"
        "       a series has one checkpoint a step; leave one of them out",
    ),
    "NaN": (
        lambda d, p: with_tensor(p[2], scale=torch.tensor(float("nan"))) and p,
        "{d}/step-300.safetensors: 'scale' holds NaN\n"
        "       leave the checkpoint out; to average it all the same: --allow-nonfinite",
    ),
    "infinity": (
        lambda d, p: with_tensor(p[0], scale=torch.tensor(-float("inf"))) and p,
        "{d}/step-100.safetensors: 'scale' holds -inf\n"
        "       for a mask, keep the last checkpoint's: --last 'scale'; to average it all the same: --allow-nonfinite",
    ),
    "a shard as a file": (
        lambda d, p: [p[0].rename(d / "model-00001-of-00002.safetensors")],
        "{d}/model-00001-of-00002.safetensors: is one shard of several\n       the checkpoint is its directory: {d}",
    ),
    "fp8": (
        lambda d, p: with_tensor(p[3], scale=torch.zeros((), dtype=torch.float8_e4m3fn)) and p[3:],
        "'scale' is float8_e4m3, whose numbers mean nothing without their scales\n"
        "       average before quantization; to keep the last one's: --last 'scale'",
    ),
    "control characters": (
        lambda d, p: [d / "\x1b[31mred\n.safetensors"],
        "{d}/\\x1b[31mred\\n.safetensors: does not exist",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_end_with_one_clear_line(tmp_path: Path, belay: Callable[..., Ran], case: str) -> None:
    make, message = BAD_INPUTS[case]
    directory = tmp_path / "d"
    arguments = make(directory, make_files(directory))
    ran = belay("average", *arguments, "-o", "out.safetensors", "-q")
    assert ran.err == f"belay: {message.format(d=directory)}\n"
    assert (ran.code, ran.out, os.listdir(".")) == (1, "", [])


def bad_index(change: Callable[..., Any]) -> Callable[..., Any]:
    def make(directory: Path, paths: list[Path]) -> Path:
        parts = tensors()
        shard(directory / "c", [{"seen": parts.pop("seen")}, parts])
        index = directory / "c/model.safetensors.index.json"
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))
        return directory / "c"

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(a="model-00009-of-00009.safetensors"), "names the shard model-00009-of-00009.safetensors"),
        (lambda m: m.update(a="../step-100.safetensors"), "puts 'a' into '../step-100.safetensors', which is not a"),
        (lambda m: m.pop("scale"), "does not fit its shards: 'scale' lies in model-00002-of-00002.safetensors"),
    ],
)
def test_bad_indices_end_with_one_clear_line(
    tmp_path: Path, belay: Callable[..., Ran], change: Callable[..., Any], message: str
) -> None:
    directory = bad_index(change)(tmp_path, make_files(tmp_path))
    ran = belay("average", directory, "-q")
    assert ran.code == 1
    assert ran.err.startswith(f"belay: {directory}/model.safetensors.index.json: {message}")
    assert ran.err.count("\n") == 2
    assert os.listdir(".") == []


BAD_USAGE = {
    "--decay 1": "--decay must lie in [0, 1), not 1",
    "--decay -0.5": "--decay must lie in [0, 1), not -0.5",
    "--decay nan": "--decay must lie in [0, 1), not nan",
    "--decay x": "--decay takes a number, not x",
    "-m belay --decay 0.1 --curvature 5": "these dynamics are unstable: a disturbance grows by",
    "--feedback 1": "--method ema takes no --feedback\n       --feedback belongs to --method belay",
    "-m swa": "--method swa is unknown",
    "--half-life 0": "--half-life '0' is not a positive half-life",
    "--half-life 10steps --order given": "--half-life 10steps needs the step of every checkpoint",
    "--device tpu": "--device tpu is unknown",
    "--device cuda:x": "--device cuda:x is unknown",
    "--dtype int8": "--dtype int8 is unknown",
    "--max-shard-size 1GB": "--max-shard-size does not go with the single file belay-average.safetensors",
    "-o out --max-shard-size big": "--max-shard-size 'big' is not a size",
    "--threads 0": "--threads must be 1 or more, not 0",
    "--max-memory 10kB": "--max-memory is too small: one thread takes 0.",
    "--max-memory 0": "--max-memory '0' is not a size",
    "--every 0": "--every must be 1 or more, not 0",
    "--from-step 1000": "no checkpoint lies between --from-step and --to-step: the series has steps 100 to 400",
    "--last nothing.like.it": "--last 'nothing.like.it' matches no tensor",
    "--average seen": "--average 'seen' matches no floating point tensor",
    "--frobnicate": "No such option: --frobnicate",
    "--inertia 1": "inertia must lie in [0, 1), not 1",
    "--unit epoch": "--unit epoch is unknown",
}


@pytest.mark.parametrize("words", BAD_USAGE)
def test_wrong_usage_is_exit_2(tmp_path: Path, belay: Callable[..., Ran], words: str) -> None:
    ran = belay("average", *make_files(tmp_path), *words.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"belay: {BAD_USAGE[words]}")
    assert ran.err.count("\n") <= 2
    assert os.listdir(".") == []


@pytest.mark.parametrize("arguments", [[""], ["ckpts", "-o", ""], ["ckpts", "--drop", "*"]])
def test_empty_variables_and_empty_outputs_are_wrong_usage(belay: Callable[..., Ran], arguments: list[str]) -> None:
    make_files(Path("ckpts"))
    assert belay("average", *arguments).code == 2
    assert os.listdir(".") == ["ckpts"]


def test_what_lies_behind_the_wanted_steps_need_not_be_whole(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    truncated(paths[3])
    assert belay("plan", *paths).code == 1
    assert belay("plan", *paths, "--to-step", "300", "-q").code == 0


def test_what_the_system_refuses_is_one_line(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("plan", tmp_path / ("x" * 300))
    assert ran.code == 2
    assert "unexpected" not in ran.err
    assert ran.err.count("\n") == 1
