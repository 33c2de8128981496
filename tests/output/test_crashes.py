"""The writer: complete or absent, and never a mixture, whatever breaks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belay_cli import average
from belay_cli.errors import InTheWayError, OutputError
from belay_cli.output import placement
from tests.conftest import everything_in, make_run
from tests.output.outputs import contents


class Break:
    """Fails at the n-th call of any of these functions of os, and counts calls."""

    NAMES = ("mkdir", "ftruncate", "pwrite", "fsync", "rename", "link", "replace", "unlink")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: Any) -> None:
        self.calls, self.at, self.error = 0, at, error
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a step like others, but nobody pulls the plug here
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if any(frame in sys._getframe(1).f_code.co_filename for frame in ("shutil", "pytest", "threading")):
                return function(*arguments, **keywords)  # the clean-up itself
            self.calls += 1
            if self.calls == self.at:
                raise self.error
            return function(*arguments, **keywords)

        return wrapped


def run_broken(tmp_path: Path, at: int, error: Any, target: str, **options: Any) -> tuple[int, bool]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        broken = Break(monkeypatch, at, error)
        with contextlib.suppress(OutputError, KeyboardInterrupt):
            average([tmp_path / "run"], target, **options)
        return broken.calls, broken.calls < at


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_whatever_step_breaks_the_output_is_whole_or_absent(tmp_path: Path, target: str, error: Any) -> None:
    make_run(tmp_path / "run")
    options: dict[str, Any] = {"max_shard_size": "1500"} if target == "out" else {}
    average([tmp_path / "run"], "whole" + target[3:], **options)
    whole = everything_in(Path("whole")) if target == "out" else None
    at, finished = 0, False
    while not finished:
        at += 1
        calls, finished = run_broken(tmp_path, at, error, target, **options)
        left = {name for name in os.listdir(".") if not name.startswith("whole")}
        hidden = {f".{target}.belay"} if isinstance(error, OSError) else set()
        assert left <= {target} | hidden, f"step {at} of {calls}"
        try:
            average([tmp_path / "run"], target, **options)
        except InTheWayError:
            assert target in left  # whole, and only the cleaning up had failed
        if target == "out":
            assert everything_in(Path("out")) == whole
            shutil.rmtree("out")
        else:
            os.unlink(target)
        assert not os.path.exists(f".{target}.belay")
    assert at > 8


@pytest.mark.parametrize(("old", "new"), [("1500", "5GB"), ("5GB", "1500"), ("1500", "900"), ("5GB", "5GB")])
def test_overwriting_never_leaves_a_mixture(tmp_path: Path, old: str, new: str) -> None:
    make_run(tmp_path / "run")
    average([tmp_path / "run"], tmp_path / "old", max_shard_size=old)
    average([tmp_path / "run"], "new", method="belay", max_shard_size=new)
    expected = contents("new")
    at, finished = 0, False
    while not finished:
        at += 1
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(tmp_path / "old", "out")
        before = contents("out")
        error = OSError(errno.EIO, "Input/output error")
        _, finished = run_broken(tmp_path, at, error, "out", method="belay", max_shard_size=new, overwrite=True)
        after = contents("out")
        assert after in (before, expected), f"step {at}"
        assert set(os.listdir(".")) <= {"new", "out", ".out.belay"}
        average([tmp_path / "run"], "out", method="belay", max_shard_size=new, overwrite=True)
        assert contents("out") == expected
        assert sorted(os.listdir(".")) == ["new", "out"]
    assert after == expected


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["here", "link"])
def test_a_directory_that_cannot_be_renamed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, overwrite: bool
) -> None:
    run = make_run(tmp_path / "run")
    average([run], "beside")
    expected = contents("beside")
    Path("real").mkdir()
    if overwrite:
        average([run], "real", method="belay")
    target = "real"
    if what == "link":
        Path("link").symlink_to("real")
        target = "link"
    else:
        monkeypatch.chdir("real")
        target = "."
    average([run], target, overwrite=overwrite)
    assert contents(target) == expected
    assert what == "here" or Path("link").is_symlink()


def test_what_is_synced_and_what_moves_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    average([run], "out", max_shard_size="1500")
    Path("out/notes.md").write_text("mine")  # so that single files move
    steps = []

    def noted(module: Any, name: str, place: Callable[..., Any]) -> None:
        real = getattr(module, name)

        def operation(*arguments: Any, **keywords: Any) -> Any:
            steps.append((name, Path(place(*arguments)).name))
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, operation)

    noted(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    noted(placement, "rename_new", lambda source, target: target)
    noted(placement, "rename", lambda source, target: target)
    average([run], "out", max_shard_size="1500", overwrite=True, method="belay")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index, record = "model.safetensors.index.json", "belay.json"
    synced = [name for how, name in steps if how == "fsync"]
    moved = [name for how, name in steps if how == "rename_new"]
    aside = [name for how, name in steps if how == "rename"]
    assert {*names, index, record, "config.json", "tokenizer.json", "local.json", "out", "moves.part"} <= set(synced)
    assert aside[0] == index
    assert aside[-1] == record
    assert moved[0] == record
    assert moved[-1] == index
    assert sorted(moved[-4:-1]) == names
    last_sync = max(i for i, (how, name) in enumerate(steps) if how == "fsync" and name in names)
    noted_at = steps.index(("fsync", "moves.part"))
    assert last_sync < noted_at < steps.index(("rename", index))
