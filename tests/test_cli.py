"""The command line as a person meets it: exact words, exit codes, JSON, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from belay_cli import __version__, average, console
from belay_cli.checkpoints import series as series_module
from tests.conftest import belay_process, make_files, make_run, raw_safetensors, shard, tensors


def test_average_without_any_option(tmp_path, belay):
    paths = make_files(tmp_path / "ckpts")
    ran = belay("average", *paths, "--threads", 2)
    assert ran.code == 0
    assert re.fullmatch(r"✓ belay-average\.safetensors  6 tensors, \d\.\d+ kB in \d+\.\d s\n", ran.out)
    assert ran.err.splitlines() == [
        "ckpts: 4 checkpoints, steps 100 to 400, every 100 · 456 parameters, float32, 2.27 kB each",
        "EMA, half-life 100 steps = 1.0 checkpoints (default) · decay 0.99309 a step",
        "",
        "  step   weight",
        "  100    18.0%  ████████████████████",
        "  200    18.0%  ████████████████████",
        "  300    35.9%  ████████████████████████████████████████",
        "  400    28.1%  ███████████████████████████████▎",
        "  mean lag 126 steps · as good as 3.7 checkpoints averaged equally",
        "",
        "reads 9.06 kB, writes 4.22 kB, 21.0 MB of buffers, CUDA if there is one, else cpu with 2 threads",
        "note: seen: integers that differ between checkpoints; those of the last one are taken",
    ]
    assert load_file("belay-average.safetensors").keys() == tensors().keys()


def test_a_run_directory_becomes_a_directory(tmp_path, belay):
    ran = belay("average", make_run(tmp_path / "run"), "-q")
    assert (ran.code, ran.out, ran.err) == (0, "belay-average\n", "")
    assert sorted(os.listdir("belay-average")) == [
        *(".belay", "belay.json", "config.json", "model.safetensors", "tokenizer.json")
    ]


def test_belay_says_how_far_it_lags(tmp_path, belay):
    ran = belay("plan", *make_files(tmp_path), "-m", "belay")
    assert (
        "BELAY, half-life 100 steps = 1.0 checkpoints (default), feedback 1, curvature 1 · decay 0.99309 a step"
        in ran.out
    )
    assert re.search(r"mean lag \d+ steps \(the EMA of this half-life: 126\)", ran.out)


def test_plan_is_a_result_and_writes_nothing(tmp_path, belay):
    ran = belay("plan", *make_files(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path.name}: 4 checkpoints")
    assert os.listdir(".") == []
    assert belay("average", *make_files(tmp_path), "--dry-run").out == ran.out
    assert os.listdir(".") == []


REPORT = {
    "command": str,
    "version": str,
    "device": str,
    "output": str,
    "seconds": float,
    "rule": dict,
    "checkpoints": list,
    "summary": dict,
    "tensors": dict,
    "bytes_read": int,
    "bytes_written": int,
    "planned_memory": int,
    "peak_memory": int,
    "files": list,
    "warnings": list,
    "notes": list,
    "discarded_energy": type(None),
    "published": type(None),
}


def test_json_of_average_and_plan(tmp_path, belay):
    paths = make_files(tmp_path)
    options = ["-o", "out.safetensors", "--json", "-m", "belay", "--damping-ratio", "2", "--drop", "scale"]
    planned = belay("plan", *paths, *options).json
    ran = belay("average", *paths, *options)
    assert ran.err == ""
    done = ran.json
    assert {name: type(value) for name, value in done.items()} == REPORT
    assert done["version"] == __version__
    assert done["rule"].keys() == {
        *("method", "unit", "decay", "half_life", "feedback", "curvature", "inertia", "debias", "damping_ratio")
    }
    assert done["checkpoints"][0].keys() == {"name", "path", "step", "tick", "coefficient", "bytes"}
    assert done["tensors"] == {"averaged": 4, "last": 1, "dropped": 1}
    assert done["bytes_written"] == Path("out.safetensors").stat().st_size == done["files"][0]["bytes"]
    assert sum(entry["coefficient"] for entry in done["checkpoints"]) == pytest.approx(1, abs=1e-15)
    unknown = {"command", "device", "seconds", "peak_memory", "published", "notes"}
    assert {k: v for k, v in done.items() if k not in unknown} == {k: v for k, v in planned.items() if k not in unknown}
    assert [planned[name] for name in ("device", "seconds", "peak_memory")] == [None] * 3
    assert planned["command"] == "plan"


def test_an_error_as_json(tmp_path, belay):
    ran = belay("average", tmp_path / "nowhere", "--json")
    assert (ran.code, ran.err) == (1, "")
    path = str(tmp_path / "nowhere")
    assert ran.json == {"error": {"message": f"{path}: does not exist", "file": path, "tensor": None, "hint": None}}
    usage = belay("average", "--json", "--threads", "many")
    assert usage.code == 2
    assert usage.json["error"]["hint"] == "belay average --help"


def lie(path, **changes):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return raw_safetensors(path, {"w": entry}, b"12345678")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])
    return path


def with_tensor(path, **changes):
    save_file(tensors(1) | changes, path)


BAD_INPUTS = {
    "no such file": (
        lambda d, p: [*p, d / "x.safetensors"],
        "{d}/x.safetensors: does not exist",
    ),
    "no weights": (
        lambda d, p: [(d / "empty").mkdir() or d / "empty"],
        "{d}/empty: holds no weights that belay reads\n       leave it out; a checkpoint or a run directory is needed",
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
        lambda d, p: with_tensor(p[2], extra=torch.zeros(1)) or p,
        "{d}/step-200.safetensors: has no 'extra', which step-300.safetensors has\n"
        "       a series has one architecture; to leave the tensor out: --drop 'extra'; "
        "to leave the later checkpoints out: --to-step 200",
    ),
    "a shape differs": (
        lambda d, p: with_tensor(p[2], scale=torch.zeros(3, 4)) or p,
        "{d}/step-300.safetensors: 'scale' is 3×4; in step-200.safetensors it is a scalar\n"
        "       a series has one architecture; to leave the later checkpoints out: --to-step 200",
    ),
    "a dtype differs": (
        lambda d, p: with_tensor(p[2], scale=torch.zeros((), dtype=torch.float16)) or p,
        "{d}/step-300.safetensors: 'scale' is float16; in step-200.safetensors it is float32\n"
        "       save every checkpoint in the same dtype",
    ),
    "two at one step": (
        lambda d, p: [*p, *make_files(d / "other", steps=(1, 400))],
        "{d}/other/step-400.safetensors: is at step 400, and so is {d}/step-400.safetensors, with other weights\n"
        "       a series has one checkpoint a step; leave one of them out",
    ),
    "NaN": (
        lambda d, p: with_tensor(p[2], scale=torch.tensor(float("nan"))) or p,
        "{d}/step-300.safetensors: 'scale' holds NaN\n"
        "       leave the checkpoint out; to average it all the same: --allow-nonfinite",
    ),
    "infinity": (
        lambda d, p: with_tensor(p[0], scale=torch.tensor(-float("inf"))) or p,
        "{d}/step-100.safetensors: 'scale' holds -inf\n"
        "       for a mask, keep the last checkpoint's: --last 'scale'; to average it all the same: --allow-nonfinite",
    ),
    "a shard as a file": (
        lambda d, p: [p[0].rename(d / "model-00001-of-00002.safetensors")],
        "{d}/model-00001-of-00002.safetensors: is one shard of several\n       the checkpoint is its directory: {d}",
    ),
    "fp8": (
        lambda d, p: with_tensor(p[3], scale=torch.zeros((), dtype=torch.float8_e4m3fn)) or p[3:],
        "'scale' is float8_e4m3, whose numbers mean nothing without their scales\n"
        "       average before quantization; to keep the last one's: --last 'scale'",
    ),
    "control characters": (
        lambda d, p: [d / "\x1b[31mred\n.safetensors"],
        "{d}/\\x1b[31mred\\n.safetensors: does not exist",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_end_with_one_clear_line(tmp_path, belay, case):
    make, message = BAD_INPUTS[case]
    directory = tmp_path / "d"
    arguments = make(directory, make_files(directory))
    ran = belay("average", *arguments, "-o", "out.safetensors", "-q")
    assert ran.err == f"belay: {message.format(d=directory)}\n"
    assert (ran.code, ran.out, os.listdir(".")) == (1, "", [])


def bad_index(change):
    def make(directory, paths):
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
def test_bad_indices_end_with_one_clear_line(tmp_path, belay, change, message):
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
    "--decay x": "Invalid value for '--decay': Input should be a valid number, unable to parse string as a number",
    "-m belay --decay 0.1 --curvature 3": "these dynamics are unstable: a disturbance grows by",
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
    "--max-memory 10kB": "--max-memory is too small: one thread takes 0.2 MB for 1 output",
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
def test_wrong_usage_is_exit_2(tmp_path, belay, words):
    ran = belay("average", *make_files(tmp_path), *words.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"belay: {BAD_USAGE[words]}")
    assert ran.err.count("\n") <= 2
    assert os.listdir(".") == []


def test_an_overflow_of_float16(tmp_path, belay):
    save_file({"w": torch.full((3,), 1e6)}, tmp_path / "step-1.safetensors")
    ran = belay("average", tmp_path / "step-1.safetensors", "--dtype", "float16", "-q")
    assert ran.code == 1
    assert ran.err.splitlines()[-2:] == [
        "belay: the average of 'w' is too large for float16",
        "       write a wider dtype: --dtype bfloat16 or --dtype float32",
    ]
    assert os.listdir(".") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(tmp_path, belay):
    ran = belay("average", *make_files(tmp_path), "--device", "cuda", "-q")
    assert ran.code == 1
    assert ran.err == ("belay: --device cuda: this machine, or this build of torch, has no CUDA\n       --device cpu\n")
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["--decay", "0.5"], "the half-life, 1 steps, is 0.01 of the distance between checkpoints"),
        (["--decay", "0.5"], "the average is nearly step-400.safetensors alone (99.0%); take a longer --half-life"),
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
def test_warnings_name_the_mend(tmp_path, belay, options, warning):
    ran = belay("plan", *make_files(tmp_path), *options)
    assert ran.code == 0
    assert any(line.startswith("warning: ") and warning in line for line in ran.err.splitlines()), ran.err
    assert warning in " ".join(belay("plan", *make_files(tmp_path), *options, "--json").json["warnings"])


def test_no_warning_without_a_reason(tmp_path, belay):
    assert belay("plan", *make_files(tmp_path, steps=range(100, 3000, 100))).err == ""


def test_identical_checkpoints_are_warned_about(tmp_path, belay):
    paths = make_files(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    warning = "step-300.safetensors looks the same as step-200.safetensors: was it saved or downloaded wrongly?"
    ran = belay("average", *paths, "-o", "a.safetensors")
    assert f"warning: {warning}" in ran.err.splitlines()
    assert warning in belay("average", *paths, "-o", "b.safetensors", "--json").json["warnings"]
    assert warning in belay("inspect", *paths, "--json").json["warnings"]


def test_batch_norm_and_adapters_are_warned_about(tmp_path, belay):
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


def test_inspect_a_series(tmp_path, belay):
    ran = belay("inspect", make_run(tmp_path / "run", steps=(1000, 200)))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "run: 2 checkpoints, every 800 · Tiny · 456 parameters",
        "",
        "  checkpoint       step  tensors  dtype              size",
        "  checkpoint-200    200        6  float32, int64  2.27 kB",
        "  checkpoint-1000  1000        6  float32, int64  2.27 kB",
        "",
        "recognised:",
        "  format      safetensors",
        "  state dict  at the top",
        "  weights     raw",
        "  step        recorded in trainer_state.json",
        "",
        "one series; what an average of it would be: belay plan, with the same arguments",
    ]


def test_inspect_lists_everything_that_is_wrong(tmp_path, belay):
    paths = make_files(tmp_path, steps=(100, 200, 300, 700))
    truncated(paths[1])
    save_file(tensors() | {"scale": torch.zeros(3)}, paths[2])
    ran = belay("inspect", *paths, tmp_path / "nowhere")
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("belay: ")]
    assert [re.sub(r"^belay: .*/", "", line) for line in errors] == [
        "step-200.safetensors: is cut short: its tensors take 1832 bytes, and 1827 are there",
        "nowhere: does not exist",
        "step-300.safetensors: 'scale' is 3; in step-100.safetensors it is a scalar",
        "step-700.safetensors: 'scale' is a scalar; in step-300.safetensors it is 3",
    ]
    assert "warning: 400 steps lie behind step-300.safetensors, 200 elsewhere: is a checkpoint missing?" in ran.err
    found = belay("inspect", *paths, "--json")
    assert found.code == 1
    assert len(found.json["problems"]) == 3
    assert [entry["step"] for entry in found.json["checkpoints"]] == [100, 300, 700]


def test_inspect_lists_tensors(tmp_path, belay):
    ran = belay("inspect", *make_files(tmp_path), "--tensors")
    assert "  embed.weight  float32  37×11     average" in ran.out.splitlines()
    assert "  seen          int64    a scalar  last" in ran.out.splitlines()
    listed = belay("inspect", *make_files(tmp_path), "--tensors", "--json").json["tensors"]
    assert {"name": "layer.bias", "dtype": "float32", "shape": [8], "bytes": 32} in listed


def test_inspect_without_an_order(tmp_path, belay):
    ran = belay("inspect", *make_files(tmp_path, steps=("a", "b"), name="{}.safetensors"))
    assert ran.code == 1
    assert "a.safetensors: has no step and no integer in its name" in ran.err


@pytest.mark.parametrize("command", [[], ["average"], ["plan"], ["inspect"], ["verify"]])
def test_help_fits_80_columns_and_shows_examples(command, belay):
    ran = belay(*command, "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80
    assert not command or f"belay {command[0]} " in ran.out.partition("Examples")[2]


def test_version_and_no_arguments(belay):
    assert belay("--version").out == f"belay {__version__}\n"
    nothing = belay()
    assert nothing.code == 2
    assert "average" in nothing.out + nothing.err


def test_a_traceback_only_with_debug(tmp_path):
    quiet = belay_process("average", tmp_path / "nowhere")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert quiet.stderr == f"belay: {tmp_path}/nowhere: does not exist\n"
    debug = belay_process("average", tmp_path / "nowhere", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_mistake_of_ours_is_one_line_too(tmp_path, belay, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(series_module, "order_checkpoints", broken)
    ran = belay("plan", *make_files(tmp_path))
    assert ran.code == 1
    assert ran.err == (
        "belay: ZeroDivisionError: division by zero\n       this is unexpected; --debug shows where it happened\n"
    )


def test_plan_imports_no_torch_and_is_quick_on_many_checkpoints(tmp_path):
    # Time is not asserted here; benchmarks/ has it.
    make_files(tmp_path / "many", steps=range(1, 1001))
    program = (
        "import sys; from belay_cli.cli import run; code = run(['plan', sys.argv[1], '-q']); "
        "assert code == 0; sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program, str(tmp_path / "many")])
    assert done == 0


def test_output_without_unicode(tmp_path):
    done = belay_process("plan", *make_files(tmp_path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout
    assert "every 100 - 456 parameters" in done.stdout


def test_a_closed_pipe_is_no_traceback(tmp_path):
    make_files(tmp_path, steps=range(1000))
    command = f"{sys.executable} -m belay_cli inspect {tmp_path} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{tmp_path.name}: 1000 checkpoints, every 1 · 456 parameters\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("coefficients", "rows"),
    [
        ([1.0], [(0, 0)]),
        ([0.5, 0.5], [(0, 0), (1, 1)]),
        ([0.011] * 10 + [0.2, 0.3, 0.39], [(0, 8), (9, 9), (10, 10), (11, 11), (12, 12)]),
        ([1 / 24] * 24, [(0, 1), *((i, i + 1) for i in range(2, 24, 2))]),
    ],
)
def test_rows_of_the_table_fit_on_a_screen(coefficients, rows):
    grouped = console.group_rows(coefficients)
    assert grouped == rows
    assert len(grouped) <= 12
    assert [i for first, last in grouped for i in range(first, last + 1)] == list(range(len(coefficients)))


def test_the_progress_bar_is_for_terminals_only(tmp_path):
    paths = make_files(tmp_path)
    leader, follower = pty.openpty()
    done = belay_process("average", *paths, "-o", "a.safetensors")
    assert "Replaying" not in done.stderr
    command = [sys.executable, "-m", "belay_cli", "average", *map(str, paths), "-o", "b.safetensors"]
    process = subprocess.Popen(command, stderr=follower, stdout=subprocess.DEVNULL)
    process.wait(60)
    os.close(follower)
    seen = b""
    try:
        while part := os.read(leader, 65536):
            seen += part
    except OSError:
        pass
    os.close(leader)
    assert b"Replaying" in seen


def test_an_average_of_an_ordered_series_is_repeated_by_its_recorded_command(tmp_path, belay, monkeypatch):
    run = make_run(tmp_path / "run", steps=(100, 200, 900))
    arguments = [run / f"checkpoint-{step}" for step in (900, 100, 200)]
    assert belay("average", *arguments, "--order", "given", "-o", "a", "-q").code == 0
    with safe_open("a/model.safetensors", framework="pt") as file:
        command = file.metadata()["belay.command"]
    monkeypatch.chdir(run)
    assert belay(*shlex.split(command)[1:], "-o", tmp_path / "b", "-q").code == 0
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "work/a/model.safetensors").read_bytes()


def test_mends_work_for_names_with_brackets(tmp_path, belay):
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


@pytest.mark.parametrize("arguments", [[""], ["ckpts", "-o", ""], ["ckpts", "--drop", "*"]])
def test_empty_variables_and_empty_outputs_are_wrong_usage(belay, arguments):
    make_files(Path("ckpts"))
    assert belay("average", *arguments).code == 2
    assert os.listdir(".") == ["ckpts"]


def test_what_lies_behind_the_wanted_steps_need_not_be_whole(tmp_path, belay):
    paths = make_files(tmp_path)
    truncated(paths[3])
    assert belay("plan", *paths).code == 1
    assert belay("plan", *paths, "--to-step", "300", "-q").code == 0


def test_a_closed_or_full_stdout_is_no_traceback(tmp_path):
    paths = " ".join(map(str, make_files(tmp_path)))
    for end in (">&-", ">/dev/full"):
        command = f"{sys.executable} -m belay_cli plan {paths} --json {end}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_one_line(tmp_path, belay):
    ran = belay("plan", tmp_path / ("x" * 300))
    assert ran.code == 1
    assert "unexpected" not in ran.err
    assert ran.err.count("\n") == 1


def test_json_is_one_object_though_the_picture_fails(tmp_path, belay):
    make_files(tmp_path)
    for plot, code, message in (
        ("w.jpg", 2, "w.jpg is no name for a picture"),
        ("nowhere/w.png", 1, "nowhere/w.png: No such file or directory"),
    ):
        ran = belay("plan", tmp_path, "--json", "--plot", plot)
        assert ran.code == code
        assert ran.json["error"]["message"] == message


def test_json_of_a_failure_has_an_error(tmp_path, belay):
    paths = make_files(tmp_path)
    ran = belay("inspect", *paths, "nowhere", "--json")
    assert ran.code == 1
    assert ran.json["error"]["message"] == "nowhere: does not exist"
    assert ran.json["problems"][0] == ran.json["error"]
    average(paths, "out.safetensors")
    ran = belay("verify", "out.safetensors", "--json")
    assert ran.code == 1
    assert ran.json["verified"] is False
    assert ran.json["error"]["message"].startswith("out.safetensors: is not verified: a file does not say where")


def test_checkpoints_without_steps_are_counted_and_that_is_said(tmp_path, belay):
    paths = [path.rename(tmp_path / f"model_{i}.safetensors") for i, path in enumerate(make_files(tmp_path))]
    said = (
        "note: model_0.safetensors states no step, as step_500 or checkpoint-500 do: checkpoints are counted, in this "
        "order: model_0.safetensors, model_1.safetensors, model_2.safetensors, model_3.safetensors\n"
    )
    assert said in belay("plan", *paths).err
    assert "checkpoints are counted" not in belay("plan", *paths, "--unit", "checkpoint").err


def test_many_sets_of_weights_are_not_all_listed(tmp_path, belay):
    for i in range(50):
        torch.save({"w": torch.ones(2)}, tmp_path / f"net{chr(97 + i // 26)}{chr(97 + i % 26)}.pt")
    ran = belay("plan", tmp_path)
    assert ran.code == 1
    assert ran.err == (
        f"belay: {tmp_path}: holds 50 sets of weights: netaa.pt, netab.pt, netac.pt …\n"
        f"       give the files themselves as arguments: {tmp_path}/*.pt\n"
    )
