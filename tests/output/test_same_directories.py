"""An output in the files of its last checkpoint: of directories, with all that lies in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli import average, verify
from belay_cli.errors import InTheWayError, UsageError
from tests.conftest import Ran, everything_in
from tests.output.same import changed, loaded, weights

SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
OTHERS = {
    "config.json": b'{"model_type": "gpt2"}',
    "trainer_state.json": b'{"global_step": STEP}',
    "tokenizer.json": b"{}",
    "empty.txt": b"",
    "code/model.py": b"x = STEP\n",
}
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def saved(run: Path) -> list[Path]:
    """Checkpoints as the Trainer saves them, in torch files, in shards."""
    paths = []
    for step in (10, 20, 30):
        paths.append(run / f"checkpoint-{step}")
        (paths[-1] / "code").mkdir(parents=True)
        state = weights(step)
        names = list(state)
        owners = {name: SHARDS[i % 2] for i, name in enumerate(names)}
        for shard in SHARDS:
            torch.save({name: t for name, t in state.items() if owners[name] == shard}, paths[-1] / shard)
        (paths[-1] / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owners}))
        for name, content in OTHERS.items():
            (paths[-1] / name).write_bytes(content.replace(b"STEP", str(step).encode()))
        for name in STATES:
            torch.save({"state": torch.full((1000,), float(step))}, paths[-1] / name)
    return paths


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return saved(tmp_path / "run")


def files(directory: Path | str) -> dict[str, bytes]:
    found = (path for path in Path(directory).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def test_every_file_but_the_weights_is_that_of_the_last_checkpoint(series: list[Path]) -> None:
    report = average(series, "out", format="same")
    average(series, "plain")
    last, out = files(series[-1]), files("out")
    assert out.keys() == last.keys() | {"belay.json", ".belay/local.json"}
    assert {name for name in last if last[name] != out[name]} == set(SHARDS)
    assert sorted(Path(file.path).relative_to("out").as_posix() for file in report.files) == sorted(
        out.keys() - {".belay/local.json"}
    )
    assert [file.bytes for file in report.files] == [os.path.getsize(file.path) for file in report.files]
    from safetensors.torch import load_file

    expected = load_file("plain/model.safetensors")
    found = loaded(f"out/{SHARDS[0]}") | loaded(f"out/{SHARDS[1]}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(changed(out[SHARDS[0]], last[SHARDS[0]])) > 1000


def test_it_is_verified_and_finds_its_checkpoints(series: list[Path], belay: Callable[..., Ran]) -> None:
    average(series, "out", format="same")
    ran = belay("verify", "out", "--sample", "all")
    assert (ran.code, [line.split(maxsplit=2) for line in ran.out.splitlines()]) == (
        0,
        [
            ["held", "structure", "11 files"],
            ["held", "record", "belay.json is what was written"],
            ["held", "digests", "every byte of 11 files"],
            ["held", "coefficients", "those of the recorded rule"],
            ["held", "inputs", "the 3 checkpoints are those recorded"],
            ["held", "values", "1551 of 1551 values, by the recursion"],
        ],
    )


@pytest.mark.parametrize("name", [*SHARDS, "optimizer.pt", "config.json", "code/model.py", "empty.txt"])
def test_verify_finds_what_changed_in_any_file(series: list[Path], name: str) -> None:
    average(series, "out", format="same")
    path = Path("out", name)
    data = bytearray(path.read_bytes() or b"?")
    data[min(changed(data, (series[-1] / name).read_bytes()), default=0) if name in SHARDS else 0] ^= 1
    path.write_bytes(data)
    found = [check.detail for check in verify("out").checks if check.status == "failed"]
    assert f"the bytes of {name} are not those that were written" in found
    path.unlink()
    if name not in SHARDS:
        found = [check.detail for check in verify("out").checks if check.status == "failed"]
        assert found[:2] == [f"{name} is missing"] * 2


def test_without_the_optimizer(series: list[Path], belay: Callable[..., Ran]) -> None:
    ran = belay("average", *series, "--format", "same", "--without-optimizer", "-o", "out")
    assert ran.code == 0
    assert "note: optimizer.pt: of an optimizer, and left out" in ran.err.splitlines()
    assert files("out").keys() == (files(series[-1]).keys() | {"belay.json", ".belay/local.json"}) - {"optimizer.pt"}
    assert json.loads(Path("out/belay.json").read_text())["command"].split()[-5:] == [
        "same",
        "--without-optimizer",
        "checkpoint-10",
        "checkpoint-20",
        "checkpoint-30",
    ]
    assert verify("out").ok


def test_without_an_optimizer_that_has_no_file_of_its_own(series: list[Path]) -> None:
    for path in series:
        (path / "optimizer.pt").unlink()
    with pytest.raises(UsageError) as caught:
        average(series, "out", format="same", without_optimizer=True)
    assert caught.value.message == (f"--without-optimizer: {series[-1]} has no file of an optimizer alone")


def test_links(series: list[Path], tmp_path: Path, belay: Callable[..., Ran]) -> None:
    (tmp_path / "elsewhere.txt").write_text("secret")
    (tmp_path / "folder").mkdir()
    last = series[-1]
    (last / "outside.txt").symlink_to(tmp_path / "elsewhere.txt")
    (last / "folder").symlink_to(tmp_path / "folder")
    (last / "broken").symlink_to("nowhere")
    (last / "inside.json").symlink_to("config.json")
    (last / "latest.bin").symlink_to(SHARDS[0])
    ran = belay("average", *series, "--format", "same", "-o", "out")
    notes = [line for line in ran.err.splitlines() if "link" in line]
    assert notes == [
        f"note: {name} is a link that leads out of its checkpoint, or to its weights; it is not copied"
        for name in ("broken", "folder", "latest.bin", "outside.txt")
    ]
    assert files("out").keys() - files(series[0]).keys() == {"inside.json", "belay.json", ".belay/local.json"}
    assert not Path("out/inside.json").is_symlink()


def test_an_older_one_is_replaced_whatever_it_had(series: list[Path]) -> None:
    average(series, "out", format="same")
    (series[-1] / "optimizer.pt").unlink()
    (series[-1] / "new.txt").write_text("new")
    average(series, "out", format="same", overwrite=True, method="uniform")
    assert files("out").keys() == files(series[-1]).keys() | {"belay.json", ".belay/local.json"}
    assert verify("out").ok
    average(series, "out", overwrite=True)
    assert "model.safetensors" in files("out")
    assert SHARDS[0] not in files("out")
    average(series, "out", format="same", overwrite=True)
    assert "model.safetensors" not in files("out")
    assert verify("out").ok


@pytest.mark.parametrize("name", [SHARDS[0], "optimizer.pt"])
def test_a_file_that_changed_since_is_not_replaced(series: list[Path], name: str) -> None:
    average(series, "out", format="same")
    Path("out", name).write_bytes(b"trained on from there")
    with pytest.raises(InTheWayError) as caught:
        average(series, "out", format="same", overwrite=True)
    assert caught.value.message == f"holds {name}, which belay did not write"
    assert Path("out", name).read_bytes() == b"trained on from there"


def test_an_output_among_the_checkpoints_is_an_average(series: list[Path], belay: Callable[..., Ran]) -> None:
    average(series, series[0].parent / "checkpoint-40", format="same")
    ran = belay("average", series[0].parent, "-o", "out")
    assert (ran.code, ran.err.splitlines()[-2:]) == (
        1,
        [
            f"belay: {series[0].parent}/checkpoint-40: was written by belay: it is an average, not a checkpoint",
            "       leave it out, or say --allow-averages",
        ],
    )


def test_one_of_belay_s_own_may_be_the_last_checkpoint(series: list[Path]) -> None:
    average(series, "first", format="same")
    again: dict[str, Any] = {"format": "same", "order": "given", "allow_averages": True}
    average([*series[:2], "first"], "second", **again)
    assert files("second").keys() == files("first").keys()
    assert verify("second").ok
    assert everything_in(Path("second")) == everything_in(Path("first"))
