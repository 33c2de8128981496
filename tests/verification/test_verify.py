"""`belay verify` passes on what belay wrote, and finds whatever was changed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from belay_cli import Belay, Ema, average
from belay_cli.verification.values import BLOCK, blocks
from tests.conftest import Ran, make_files, make_run, tensors
from tests.engine.test_replay import RULES

NAMES = ["structure", "headers", "record", "files", "digests", "coefficients", "inputs", "values"]


@pytest.mark.parametrize("rule", [*RULES, Ema(debias=True), Belay(inertia=0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_output_passes(tmp_path: Path, belay: Callable[..., Ran], rule: Any, dtype: torch.dtype) -> None:
    run = make_run(tmp_path / "run", dtype=dtype)
    average([run], "out", max_shard_size="1kB", last="scale", drop="layer.bias", method=rule)
    ran = belay("verify", "out", "--json", "--sample", "all")
    assert ran.code == 0, ran.out
    found = ran.json
    assert found["verified"] is True
    assert [(check["name"], check["status"]) for check in found["checks"]] == [(name, "held") for name in NAMES]


@pytest.mark.parametrize("target", ["float64", "float32", "bfloat16", "float16"])
def test_other_dtypes_and_single_files_pass(tmp_path: Path, belay: Callable[..., Ran], target: Any) -> None:
    paths = make_files(tmp_path / "ckpts")
    average(paths, "out.safetensors", dtype=target)
    assert belay("verify", "out.safetensors", "--checkpoints", tmp_path / "ckpts").code == 0


def test_what_could_not_be_checked_is_no_pass(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    ran = belay("verify", "out.safetensors")
    assert ran.code == 1
    assert ran.out.splitlines()[-2:] == [
        "  not checked  inputs        a file does not say where the checkpoints lay; give them with --checkpoints",
        "  not checked  values        without the checkpoints they cannot be",
    ]
    assert ran.err.startswith("belay: out.safetensors: is not verified: a file does not say where the checkpoints lay;")


def test_one_flipped_bit_in_any_tensor_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    content = Path("out.safetensors").read_bytes()
    with safe_open("out.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name != "nothing"]  # noqa: SIM118
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name in names:
        begin, end = header[name]["data_offsets"]
        changed = bytearray(content)
        changed[start + (begin + end) // 2] ^= 1
        Path("out.safetensors").write_bytes(changed)
        ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
        assert ran.code == 1
        assert f"failed       digests       the bytes of '{name}' are not those that were written" in ran.out


def rewritten(path: str, **changes: Any) -> None:
    """The output with other metadata or tensors, its digests in order."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name, change in changes.items():
        metadata[f"belay.{name}"] = change(metadata.get(f"belay.{name}", ""))
    save_file(load_file(path), path, metadata=metadata)


def test_a_changed_coefficient_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")

    def change(text: str) -> str:
        series = json.loads(text)
        series[1]["coefficient"] += 1e-6
        return json.dumps(series)

    rewritten("out.safetensors", series=change)
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert ran.code == 1
    assert "failed       coefficients  step-200.safetensors is recorded with" in ran.out


def test_a_changed_rule_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    rewritten("out.safetensors", rule=lambda text: json.dumps({**json.loads(text), "a": 0.02}))
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert "has a damaged record of how it was made: its parameters contradict each other" in ran.err
    other = Ema(half_life=7).resolve([100, 200], "step").parameters()
    rewritten("out.safetensors", rule=lambda text: json.dumps({**json.loads(text), **other}))
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path, "--json")
    assert {check["name"]: check["status"] for check in ran.json["checks"]} == {
        "structure": "held",
        "headers": "failed",
        "record": "held",
        "files": "held",
        "digests": "held",
        "coefficients": "failed",
        "inputs": "held",
        "values": "failed",
    }


def test_a_swapped_checkpoint_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    average(paths, "out.safetensors")
    save_file(tensors(77), paths[2], metadata={"format": "pt"})
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert ran.code == 1
    assert "failed       inputs        step-300.safetensors is not the one that was recorded" in ran.out


def test_a_checkpoint_that_is_not_given_is_named(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out")
    shutil.rmtree(tmp_path / "run/checkpoint-100")
    ran = belay("verify", "out", "--checkpoints", tmp_path / "run")
    assert ran.code == 1
    assert "failed       inputs        checkpoint-100 is not among the checkpoints given" in ran.out


def tick_of(value: float) -> Callable[..., Any]:
    def change(text: str) -> str:
        series = json.loads(text)
        series[-1]["tick"] = value
        return json.dumps(series)

    return change


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"series": tick_of(float("inf"))}, "has a damaged record of how it was made"),
        ({"series": tick_of(10**400)}, "has a damaged record of how it was made"),
        ({"series": tick_of(2**53)}, "has a damaged record of how it was made"),
        ({"x": lambda text: "hello"}, "has a damaged record of how it was made"),
        ({"x": lambda text: "[" * 100_000}, "has a damaged record of how it was made"),
        (
            {"rule": lambda text: json.dumps({**json.loads(text), "feedback": 1e6})},
            "has a damaged record of how it was made: its parameters are not those of its method",
        ),
        (
            {"rule": lambda text: text.replace('"method":"ema"', '"method":"belay","method":"ema"')},
            "has a damaged record of how it was made: a key in it is there twice",
        ),
        (
            {
                "rule": lambda text: json.dumps(
                    {**json.loads(text), "method": "belay", "feedback": 1.0, "curvature": 1e6}
                ),
                "command": lambda text: text.replace("ema", "belay"),
            },
            "failed       coefficients  the recorded rule is none: ",
        ),
    ],
)
def test_a_record_that_lies_is_found(
    tmp_path: Path, belay: Callable[..., Ran], changes: dict[str, Callable[..., Any]], said: str
) -> None:
    average([make_run(tmp_path / "run")], "out")
    rewritten("out/model.safetensors", **{"x": lambda text: "1", **changes})
    ran = belay("verify", "out")
    assert ran.code == 1
    assert said in ran.out + ran.err
    assert "unexpected" not in ran.err


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", '{"checkpoints": 5}', "{"])
def test_a_local_record_that_is_none(tmp_path: Path, belay: Callable[..., Ran], content: str) -> None:
    average([make_run(tmp_path / "run")], "out")
    Path("out/.belay/local.json").write_text(content)
    ran = belay("verify", "out")
    assert ran.code == 1
    assert "the checkpoints are not where they were; give them with --checkpoints" in ran.out


def test_an_output_does_not_choose_whom_this_machine_asks(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out")
    asked = []

    def listen(listener: Any) -> None:
        with contextlib.suppress(OSError):
            asked.append(listener.accept())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.safetensors"
        Path("out/.belay/local.json").write_text(json.dumps({"checkpoints": [url]}))
        listener.settimeout(1)
        waiting = threading.Thread(target=listen, args=(listener,))
        waiting.start()
        ran = belay("verify", "out")
        waiting.join()
    assert ran.code == 1
    assert "the checkpoints lay at URLs, which are asked only if given: --checkpoints" in ran.out
    assert asked == []


def test_a_policy_that_is_not_recorded(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path / "x")
    content = load_file(paths[-1])
    save_file({**content, "extra": torch.ones(3)}, paths[-1])
    average(paths, "out.safetensors", last="extra")
    rewritten("out.safetensors", policies=lambda text: '{"average":[],"last":[],"drop":[]}')
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path / "x")
    assert ran.code == 1
    assert "values        'extra' is not in step-100.safetensors" in ran.out


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_threads_that_are_none(tmp_path: Path, belay: Callable[..., Ran], threads: str) -> None:
    average(make_files(tmp_path), "out.safetensors")
    ran = belay("verify", "out.safetensors", "--threads", threads)
    assert (ran.code, ran.err) == (2, f"belay: --threads must be 1 or more, not {threads}\n")


@pytest.mark.parametrize("options", [{}, {"debias": True}])
def test_steps_that_count_tokens(tmp_path: Path, belay: Callable[..., Ran], options: dict[str, Any]) -> None:
    paths = make_files(tmp_path, steps=[10**9 * i for i in range(1, 5)])
    average(paths, "out.safetensors", method=Ema(half_life="5%", **options))
    assert belay("verify", "out.safetensors", "--checkpoints", tmp_path, "--sample", "all").code == 0


def test_a_record_that_contradicts_the_weights_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out")
    document = json.loads(Path("out/belay.json").read_text())
    document["series"][0]["coefficient"] = 0.5
    Path("out/belay.json").write_text(json.dumps(document))
    ran = belay("verify", "out")
    assert ran.code == 1
    assert "  failed       record        belay.json says something else than the metadata of the weights" in ran.out


@pytest.mark.parametrize("name", ["belay.json", "config.json"])
def test_a_missing_file_is_found(tmp_path: Path, belay: Callable[..., Ran], name: str) -> None:
    average([make_run(tmp_path / "run")], "out")
    Path("out", name).unlink()
    ran = belay("verify", "out")
    assert ran.code == 1
    assert f"  failed       structure     {name} is missing" in ran.out


def test_another_dtype_than_recorded_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors", dtype="bfloat16")
    rewritten("out.safetensors", dtype=lambda text: "same")
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert ran.code == 1
    assert re.search(r"failed       values        '[a-z.]+' is bfloat16, which is not what the record says", ran.out)


def test_values_that_are_not_the_average_are_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    average(paths, "out.safetensors")
    average(paths, "other.safetensors", method=Ema(decay=0.5))
    with safe_open("out.safetensors", framework="pt") as file, safe_open("other.safetensors", framework="pt") as other:
        metadata = file.metadata() | {"belay.digests": other.metadata()["belay.digests"]}
    save_file(load_file("other.safetensors"), "out.safetensors", metadata=metadata)
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert ran.code == 1
    assert "  held         digests" in ran.out
    assert "differs from the recursion at element 0" in ran.out


def test_a_truncated_output_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    content = Path("out.safetensors").read_bytes()
    Path("out.safetensors").write_bytes(content[:-1])
    ran = belay("verify", "out.safetensors")
    assert ran.code == 1
    assert "out.safetensors: is cut short" in ran.err


def test_an_index_that_lies_is_found(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out", max_shard_size="1kB")
    index = Path("out/model.safetensors.index.json")
    content = json.loads(index.read_text())
    content["weight_map"].pop("scale")
    index.write_text(json.dumps(content))
    assert "does not fit its shards: 'scale' lies in" in belay("verify", "out").err


def test_checkpoints_that_were_moved_are_found_by_content(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path / "ckpts")
    average(paths, "out.safetensors")
    moved = tmp_path / "moved"
    moved.mkdir()
    for letter, path in zip("dacb", paths, strict=True):
        shutil.move(path, moved / f"{letter}.safetensors")
    inputs = [word for path in sorted(moved.iterdir()) for word in ("--checkpoints", path)]
    assert belay("verify", "out.safetensors", *inputs, "--sample", "100%").code == 0


@pytest.mark.parametrize("damage", ["", "[]", "{}", "null", '{"a": "x"}', "[" * 50_000])
@pytest.mark.parametrize("entry", ["rule", "series", "policies", "digests"])
def test_a_damaged_record_is_one_line(tmp_path: Path, belay: Callable[..., Ran], entry: str, damage: str) -> None:
    average(make_files(tmp_path), "out.safetensors")
    rewritten("out.safetensors", **{entry: lambda text: damage})
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert ran.code == 1
    assert "unexpected" not in ran.err
    assert "belay: out.safetensors: " in ran.err


def test_what_belay_did_not_write_cannot_be_verified(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("verify", make_files(tmp_path)[0])
    assert (ran.code, ran.out) == (1, "")
    assert "was not written by belay: it has no record of how it was made" in ran.err


@pytest.mark.parametrize("share", ["0", "0%", "101%", "2", "some", ""])
def test_shares_that_are_none(tmp_path: Path, belay: Callable[..., Ran], share: str) -> None:
    average(make_files(tmp_path), "out.safetensors")
    assert belay("verify", "out.safetensors", "--sample", share).code == 2


@given(st.text(max_size=5), st.integers(0, 10 * BLOCK), st.floats(0.001, 1))
def test_samples_lie_in_the_tensor_and_are_enough(name: str, elements: int, share: float) -> None:
    chosen = list(blocks(name, elements, share))
    covered = np.zeros(elements, dtype=int)
    for start, count in chosen:
        covered[start : start + count] += 1
    assert covered.max(initial=0) <= 1
    if elements:
        assert chosen
        assert len(chosen) >= share * np.ceil(elements / BLOCK) - 1e-9
    if share == 1:
        assert covered.all()


def test_a_run_is_not_an_average_and_what_to_give_is_said(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    ran = belay("verify", "run")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "belay: run is not an average of belay: it holds 4 checkpoints\n"
        "       give the average, and this with it: belay verify AVERAGE --checkpoints run\n"
    )


def test_checkpoints_as_a_glob_of_the_shell_gives_them(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = make_files(tmp_path)
    average(paths, "out.safetensors")
    assert belay("verify", "out.safetensors", "--checkpoints", *paths, "--sample", "all").code == 0
    ran = belay("verify", "--checkpoints", *paths, "out.safetensors")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "belay: Missing argument 'OUTPUT'")


@pytest.mark.parametrize("forgetting", [("--half-life", "0.01"), ("--decay", "0"), ("--decay", "1e-300")])
def test_an_average_that_forgets_at_once(tmp_path: Path, belay: Callable[..., Ran], forgetting: Sequence[str]) -> None:
    make_files(tmp_path)
    assert belay("average", tmp_path, "-o", "out.safetensors", *forgetting).code == 0
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path)
    assert (ran.code, ran.err) == (0, "")
