"""From `belay average` to the multiply-add a reader opens five files: the calls are followed while one runs."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from belay_cli.cli import run
from belay_cli.engine.kernel import KERNELS
from tests.conftest import make_run

ROOT = Path(__file__).parent.parent
FOUR = ["cli/average.py", "api/average.py", "engine/stream.py", "engine/cpu.py"]
KERNEL, TORCH = "engine/kernel/__init__.py", "engine/torch_cpu.py"


@pytest.mark.parametrize(
    ("fifth", "engine", "name"), [(KERNEL, None, "_native.replay"), (TORCH, "torch", "accumulate")]
)
def test_the_calls_go_through_five_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fifth: str, engine: str | None, name: str
) -> None:
    if engine:
        monkeypatch.setenv("BELAY_ENGINE", engine)
    elif not KERNELS:
        pytest.skip("the kernel was not built")
    seen: set[str] = set()
    dotted = fifth.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module: Any = importlib.import_module("belay_cli." + dotted)
    *owner, called = name.split(".")
    module = getattr(module, owner[0]) if owner else module
    multiply_add = getattr(module, called)

    def followed(*arguments: Any, **options: Any) -> Any:
        for thread in (threading.get_ident(), threading.main_thread().ident):
            frame: FrameType | None = sys._current_frames()[thread or 0]
            while frame is not None:
                seen.add(frame.f_code.co_filename)
                frame = frame.f_back
        return multiply_add(*arguments, **options)

    monkeypatch.setattr(module, called, followed)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert run(["average", "run", "-q"]) == 0
    package = ROOT / "belay_cli"
    ours = {Path(name).relative_to(package).as_posix() for name in seen if Path(name).is_relative_to(package)}
    machinery = {"cli/__init__.py", "cli/commands.py"}  # which every command comes through
    assert ours - machinery == {*FOUR, fifth}


@pytest.mark.parametrize("name", [*FOUR, KERNEL, TORCH])
def test_they_are_listed_for_readers(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", (ROOT / "CONTRIBUTING.md").read_text())
