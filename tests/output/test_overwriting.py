"""The writer never writes over what belay did not write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file

from belay_cli import Ema, average
from belay_cli.errors import OutputError
from belay_cli.output import placement, renaming
from tests.conftest import everything_in, make_files, make_run, tensors
from tests.output.outputs import loads


def test_an_index_of_somebody_else_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="1500")
    theirs = '{"weight_map": {"a": "adapter-00001-of-00002.safetensors"}}'
    Path("out/adapter.safetensors.index.json").write_text(theirs)
    average([run], "out", overwrite=True)
    assert Path("out/adapter.safetensors.index.json").read_text() == theirs
    assert not Path("out/model.safetensors.index.json").exists()


def test_overwriting_removes_stale_shards_and_keeps_foreign_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="900")
    Path("out/notes.md").write_text("mine")
    Path("out/logs").mkdir()
    (run / "checkpoint-400/tokenizer.json").unlink()
    with pytest.raises(OutputError, match="out: exists"):
        average([run], "out")
    average([run], "out", overwrite=True)
    assert everything_in(Path("out")) == [
        *(".belay", ".belay/local.json", "belay.json", "config.json", "logs", "model.safetensors", "notes.md")
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors", "config.json"])
def test_foreign_files_are_never_replaced(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    Path("out").mkdir()
    if name.endswith(".safetensors"):
        save_file(tensors(), f"out/{name}")
    else:
        Path("out", name).write_text("mine")
    content = Path("out", name).read_bytes()
    with pytest.raises(OutputError, match=f"out: holds {name}, which belay did not write"):
        average([run], "out", overwrite=True)
    assert Path("out", name).read_bytes() == content


def test_a_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    paths = make_files(tmp_path)
    save_file(tensors(), "mine.safetensors")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="mine.safetensors: exists, and belay did not write it"):
            average(paths, "mine.safetensors", overwrite=overwrite)
    average(paths, "ours.safetensors")
    with pytest.raises(OutputError, match="ours.safetensors: exists"):
        average(paths, "ours.safetensors")
    average(paths, "ours.safetensors", overwrite=True, method=Ema(decay=0.5))


def test_a_recorded_copy_cannot_lead_out_of_the_output(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Path("precious.json").write_text("mine")
    Path("out").mkdir()
    metadata = {"belay.version": "0", "belay.copies": json.dumps(["../precious.json", "/etc/hostname", "..", 5])}
    save_file(tensors(), "out/model.safetensors", metadata=metadata)
    average([run], "out", overwrite=True)
    assert Path("precious.json").read_text() == "mine"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    Path("out").mkdir()
    average([make_run(tmp_path / "run")], "out")
    assert loads("out")


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_files(tmp_path)
    rename_new = renaming.rename_new

    def appears(source: Path, target: Path) -> None:
        Path("out.safetensors").write_text("somebody else's")
        rename_new(source, target)

    monkeypatch.setattr(placement, "rename_new", appears)
    with pytest.raises(OutputError, match="cannot be written: file exists"):
        average(paths, "out.safetensors")
    assert Path("out.safetensors").read_text() == "somebody else's"
    monkeypatch.undo()
    os.chdir(tmp_path / "work")
    Path("out.safetensors").rename("theirs")
    average(paths, "out.safetensors")  # what was made is still there
    assert sorted(os.listdir(".")) == ["out.safetensors", "theirs"]
