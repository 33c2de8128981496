"""From `belay average` to the multiply-add a reader opens five files: the calls are followed while one runs."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from belay_cli.cli import run
from tests.conftest import make_run

ROOT = Path(__file__).parent.parent
FILES = ["cli/average.py", "api/average.py", "engine/stream.py", "engine/cpu.py", "engine/contract.py"]


def test_the_calls_go_through_five_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from belay_cli.engine import cpu

    seen: set[str] = set()
    multiply_add = cpu.accumulate  # type: ignore[attr-defined]

    def followed(*arguments: Any, **options: Any) -> None:
        for thread in (threading.get_ident(), threading.main_thread().ident):
            frame: FrameType | None = sys._current_frames()[thread or 0]
            while frame is not None:
                seen.add(frame.f_code.co_filename)
                frame = frame.f_back
        seen.add(multiply_add.__code__.co_filename)
        multiply_add(*arguments, **options)

    monkeypatch.setattr(cpu, "accumulate", followed)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert run(["average", "run", "-q"]) == 0
    package = ROOT / "belay_cli"
    ours = {Path(name).relative_to(package).as_posix() for name in seen if Path(name).is_relative_to(package)}
    machinery = {"cli/__init__.py", "cli/commands.py"}  # which every command comes through
    assert ours - machinery == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_they_are_listed_for_readers(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", (ROOT / "CONTRIBUTING.md").read_text())
