"""`belay average` as a person meets it: exact words, warnings that name the mend, and exit codes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import Ran, make_files, make_run, tensors


def without_buffers(text: str) -> str:
    """Which depend on the engine, as what a run takes does on the machine."""
    return re.sub(r", about [\d.]+ s here", "", re.sub(r"[\d.]+ MB of buffers", "N MB of buffers", text))


def test_average_without_any_option(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path / "ckpts")
    ran = belay("average", *paths, "--threads", 2, "--device", "cpu")
    assert ran.code == 0
    assert re.fullmatch(r"✓ belay-average\.safetensors  6 tensors, \d\.\d+ kB in \d+\.\d s · cpu, 2 threads\n", ran.out)
    assert without_buffers(ran.err).splitlines() == [
        "ckpts: 4 checkpoints, steps 100 to 400, every 100 · 456 parameters, float32, 2.27 kB each",
        "EMA, half-life 100 steps = 1.0 checkpoints (default) · decay 0.99309 a step",
        "",
        "  step   weight",
        "  100    18.0%  ████████████████████",
        "  200    18.0%  ████████████████████",
        "  300    35.9%  ████████████████████████████████████████",
        "  400    28.1%  ███████████████████████████████▎",
        "  mean lag 126 steps · effective number of checkpoints 3.7",
        "  the last checkpoint stands for the half interval behind it, the others for two halves",
        "",
        "reads 9.06 kB, writes 4.30 kB, N MB of buffers, cpu with 2 threads",
        "note: seen: integers that differ between checkpoints; those of the last one are taken",
        '  load it:  safetensors.torch.load_file("belay-average.safetensors")',
    ]
    assert load_file("belay-average.safetensors").keys() == tensors().keys()


def test_a_run_directory_becomes_a_directory(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", make_run(tmp_path / "run"), "-q")
    assert (ran.code, ran.out, ran.err) == (0, "belay-average\n", "")
    assert sorted(os.listdir("belay-average")) == [
        *(".belay", "belay.json", "config.json", "model.safetensors", "tokenizer.json")
    ]


def test_belay_says_how_far_it_lags(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("plan", *make_files(tmp_path), "-m", "belay")
    assert (
        "BELAY, half-life 100 steps = 1.0 checkpoints (default), feedback 1, curvature 1 · decay 0.99309 a step"
        in ran.out
    )
    assert re.search(r"mean lag \d+ steps \(the EMA of this half-life: 126\)", ran.out)


def test_an_overflow_of_float16(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    save_file({"w": torch.full((3,), 1e6)}, tmp_path / "step-1.safetensors")
    ran = belay("average", tmp_path / "step-1.safetensors", "--dtype", "float16", "-q")
    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == [
        "belay: the average of 'w' is too large for float16",
        "       write a wider dtype: --dtype bfloat16 or --dtype float32",
    ]
    assert os.listdir(".") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("average", *make_files(tmp_path), "--device", "cuda", "-q")
    assert ran.code == 1
    assert ran.err == ("belay: --device cuda: this machine, or this build of torch, has no CUDA\n       --device cpu\n")
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["--decay", "0.5"], "the half-life, 1 steps, is 0.01 of the distance between checkpoints"),
        (["--decay", "0.5"], "so the last one weighs 99%; for the decay from one checkpoint to the next: --unit"),
        (
            ["--half-life", "5000"],
            "the average is nearly step-100.safetensors alone (96.6%); take a shorter --half-life, or --debias",
        ),
        (
            ["--half-life", "300"],
            "the average leans on the first checkpoint, step-100.safetensors (56.2%); take a shorter --half-life",
        ),
        (
            ["-m", "belay", "--half-life", "300"],
            "(64.2%); take a shorter --half-life or a larger --curvature",
        ),
        (["-m", "belay", "--curvature", "0"], "without curvature 50% of the weight stays on the first checkpoint"),
    ],
)
def test_warnings_name_the_mend(tmp_path: Path, belay: Callable[..., Ran], options: list[str], warning: str) -> None:
    ran = belay("plan", *make_files(tmp_path), *options)
    assert ran.code == 0
    assert any(line.startswith("warning: ") and warning in line for line in ran.err.splitlines()), ran.err
    assert warning in " ".join(belay("plan", *make_files(tmp_path), *options, "--json").json["warnings"])


def test_no_warning_without_a_reason(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    assert belay("plan", *make_files(tmp_path, steps=range(100, 3000, 100))).err == ""


def test_identical_checkpoints_are_warned_about(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    warning = "step-300.safetensors looks the same as step-200.safetensors: was it saved or downloaded wrongly?"
    ran = belay("average", *paths, "-o", "a.safetensors")
    assert f"warning: {warning}" in ran.err.splitlines()
    assert warning in belay("average", *paths, "-o", "b.safetensors", "--json").json["warnings"]
    assert warning in belay("inspect", *paths, "--json").json["warnings"]


def test_batch_norm_and_adapters_are_warned_about(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for i in range(3):
        save_file(
            {"bn.running_mean": torch.ones(2), "bn.running_var": torch.ones(2)}, tmp_path / f"step-{i}.safetensors"
        )
    assert (
        "warning: BatchNorm statistics are averaged like weights (bn.running_mean and 1 more)"
        in belay("plan", tmp_path).err
    )
    for i in range(3):
        save_file({"q.lora_A.weight": torch.ones(2)}, tmp_path / f"step-{i}.safetensors")
    assert "warning: these are adapters: their factors A and B are averaged apart" in (
        belay("plan", tmp_path, "--lora", "factors").err
    )


def test_an_average_of_an_ordered_series_is_repeated_by_its_recorded_command(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", steps=(100, 200, 900))
    arguments = [run / f"checkpoint-{step}" for step in (900, 100, 200)]
    assert belay("average", *arguments, "--order", "given", "-o", "a", "-q").code == 0
    with safe_open("a/model.safetensors", framework="pt") as file:
        command = file.metadata()["belay.command"]
    monkeypatch.chdir(run)
    assert belay(*shlex.split(command)[1:], "-o", tmp_path / "b", "-q").code == 0
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "work/a/model.safetensors").read_bytes()


def test_mends_work_for_names_with_brackets(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for i in range(3):
        value = float("nan") if i == 1 else 1.0
        save_file(
            {"l[0].w": torch.tensor([-float("inf"), value]), "v": torch.ones(1)}, tmp_path / f"step-{i}.safetensors"
        )
    ran = belay("average", tmp_path, "-q")
    assert ran.code == 1
    save_file({"l[0].w": torch.tensor([-float("inf"), 1.0]), "v": torch.ones(1)}, tmp_path / "step-1.safetensors")
    hint = belay("average", tmp_path, "--json").json["error"]["hint"]
    (glob,) = re.findall(r"--last ('[^']*')", hint)
    assert belay("average", tmp_path, "-q", "--last", *shlex.split(glob)).code == 0


def test_checkpoints_without_steps_are_counted_and_that_is_said(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = [path.rename(tmp_path / f"model_{i}.safetensors") for i, path in enumerate(make_files(tmp_path))]
    said = (
        "note: model_0.safetensors states no step, as step_500 or checkpoint-500 do: checkpoints are counted, in this "
        "order: model_0.safetensors, model_1.safetensors, model_2.safetensors, model_3.safetensors\n"
    )
    assert said in belay("plan", *paths).err
    assert "checkpoints are counted" not in belay("plan", *paths, "--unit", "checkpoint").err


def test_many_sets_of_weights_are_not_all_listed(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for i in range(50):
        torch.save({"w": torch.ones(2)}, tmp_path / f"net{chr(97 + i // 26)}{chr(97 + i % 26)}.pt")
    ran = belay("plan", tmp_path)
    assert ran.code == 1
    assert ran.err == (
        f"belay: {tmp_path}: holds 50 sets of weights: netaa.pt, netab.pt, netac.pt …\n"
        f"       give the files themselves as arguments: {tmp_path}/*.pt\n"
    )
