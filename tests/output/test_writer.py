"""The writer: exact files that loaders understand, or the reason why there is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli import average
from belay_cli.engine import stream
from belay_cli.errors import CheckpointError, OutputError, UsageError
from belay_cli.planning import make
from tests.conftest import belay_process, everything_in, make_files, make_run, tensors


def test_a_new_directory_is_a_hub_directory(tmp_path: Path) -> None:
    average([make_run(tmp_path / "run")], "out", max_shard_size="1500")
    assert everything_in(Path("out")) == [
        ".belay",
        ".belay/local.json",
        "belay.json",
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert json.loads(Path("out/config.json").read_text())["step"] == 400
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    loaded = {name: load_file(f"out/{file}")[name] for name, file in index["weight_map"].items()}
    assert set(loaded) == set(tensors())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in loaded.values())
    assert os.listdir(".") == ["out"]


def test_files_and_directories_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        average([make_run(tmp_path / "run")], "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o750
    assert stat.S_IMODE(Path("out/model.safetensors").stat().st_mode) == 0o640


def test_tensors_are_aligned_and_the_library_reads_them(tmp_path: Path) -> None:
    for i in range(3):
        odd = {
            "b": torch.ones(3, dtype=torch.bool),
            "h": torch.ones(3, dtype=torch.float16),
            "d": torch.ones(1).double(),
        }
        save_file(odd, tmp_path / f"step-{i}.safetensors")
    average([tmp_path], "out.safetensors")
    content = Path("out.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert [name for name in header if name != "__metadata__"] == ["d", "h", "b"]
    assert {k: v.tolist() for k, v in load_file("out.safetensors").items()} == {
        "b": [True] * 3,
        "h": [1.0] * 3,
        "d": [1.0],
    }


def test_a_tensor_with_the_name_that_safetensors_keeps(tmp_path: Path) -> None:
    for i in range(2):
        torch.save({"w": torch.ones(2), "__metadata__": torch.ones(2)}, tmp_path / f"step-{i}.pt")
    with pytest.raises(CheckpointError, match="holds a tensor named __metadata__, a name that safetensors keeps"):
        average([tmp_path / "step-0.pt", tmp_path / "step-1.pt"], "out.safetensors")
    average([tmp_path / "step-0.pt", tmp_path / "step-1.pt"], "out.safetensors", drop="__metadata__")
    assert list(load_file("out.safetensors")) == ["w"]


def test_a_header_that_nobody_could_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_files(tmp_path)
    average(paths, "out.safetensors")
    length = 8 + int.from_bytes(Path("out.safetensors").read_bytes()[:8], "little")
    monkeypatch.setattr(make, "LARGEST_HEADER", length)
    average(paths, "out.safetensors", overwrite=True)
    monkeypatch.setattr(make, "LARGEST_HEADER", length - 1)
    with pytest.raises(UsageError) as raised:
        average(paths, "more.safetensors")
    assert str(raised.value) == f"the output's header would have {length} bytes; safetensors allows {length - 1}"


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    for i in range(2):
        save_file({f"w{j:03}": torch.randn(64) for j in range(300)}, tmp_path / f"step-{i}.safetensors")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv.pop(1)))); "
        "from belay_cli.cli import main; main(sys.argv[1:])"
    )
    arguments = ["average", str(tmp_path), "-o", "out", "--max-shard-size", "256", "-q"]
    for hard, code in ((500, 1), (1000, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(hard), *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr == (
                "belay: out: takes 728 open files, and 500 are allowed\n"
                "       write fewer, larger files: --max-shard-size\n"
            )


def test_paths_that_are_no_unicode(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    average([make_run(directory)], "out")
    done = belay_process("verify", "out")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("run/checkpoint-200/average", "lies inside the input"),
        ("run/checkpoint-200", "is one of the checkpoints"),
        ("run", "holds the input"),
        ("run/checkpoint-200/model.safetensors", "lies inside the input"),
        ("nowhere/out", "its directory does not exist"),
    ],
)
def test_outputs_that_lie_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str) -> None:
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match=message):
        average(["run"], output, overwrite=True)
    assert everything_in(tmp_path) == before


def test_an_output_that_is_an_input_file(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    with pytest.raises(OutputError, match="is one of the checkpoints"):
        average(paths, paths[1], overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        average(paths, tmp_path, overwrite=True)


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_input_that_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool, suffix: str
) -> None:
    paths = make_files(tmp_path)
    if suffix == ".pt":
        for path in paths:
            torch.save(load_file(path), path.with_suffix(".pt"))
        paths = [path.with_suffix(".pt") for path in paths]
    content = paths[1].read_bytes()
    write_updates = stream.write_updates  # type: ignore[attr-defined]

    def writes(*arguments: Any) -> Any:
        if replaced:
            paths[1].unlink()
        paths[1].write_bytes(content)
        return write_updates(*arguments)

    monkeypatch.setattr(stream, "write_updates", writes)
    with pytest.raises(CheckpointError) as raised:
        average(paths, "out.safetensors")
    assert str(raised.value) == f"{paths[1]}: changed while it was read"
    assert raised.value.hint == "run the same command again when nothing writes to it"
    assert os.listdir(".") == []


def test_an_input_that_is_removed_after_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_files(tmp_path)
    write_updates = stream.write_updates  # type: ignore[attr-defined]

    def removes(*arguments: Any) -> Any:
        paths[0].unlink()
        return write_updates(*arguments)

    monkeypatch.setattr(stream, "write_updates", removes)
    average(paths, "out.safetensors")
    assert os.listdir(".") == ["out.safetensors"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path, **keywords: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    average(make_files(tmp_path), "out.safetensors")
    assert os.listdir(".") == ["out.safetensors"]


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    with pytest.raises(OutputError) as caught:
        average(paths, "/proc/out.safetensors")
    assert caught.value.message.startswith("cannot be written:")


def test_too_little_room_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="it takes 4.30 kB, and 1.00 kB are free"):
        average(make_files(tmp_path), "out.safetensors")


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    real = os.open

    def refused(path: Path, *arguments: int, **keywords: Any) -> Any:
        if Path(path).name == "config.json" and "checkpoint-400" in str(path) and arguments[0] & os.O_WRONLY == 0:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CheckpointError, match="checkpoint-400/config.json: cannot be opened: permission denied"):
        average([run], "out")
    assert os.listdir(".") == []


def test_files_become_a_directory_that_loaders_understand(tmp_path: Path) -> None:
    average(make_files(tmp_path), "out")
    assert sorted(os.listdir("out")) == [".belay", "belay.json", "model.safetensors"]
    with pytest.raises(OutputError, match="out.pt: is not a name for safetensors"):
        average(make_files(tmp_path), "out.pt")
