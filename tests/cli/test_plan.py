"""`belay plan`: a result that reads no weight and writes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Ran, make_files


def test_plan_is_a_result_and_writes_nothing(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    ran = belay("plan", *make_files(tmp_path))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path.name}: 4 checkpoints")
    assert os.listdir(".") == []
    assert belay("average", *make_files(tmp_path), "--dry-run").out == ran.out
    assert os.listdir(".") == []


def test_plan_imports_no_torch_and_is_quick_on_many_checkpoints(tmp_path: Path) -> None:
    # Time is not asserted here; benchmarks/ has it.
    make_files(tmp_path / "many", steps=range(1, 1001))
    program = (
        "import sys; from belay_cli.cli import run; code = run(['plan', sys.argv[1], '-q']); "
        "assert code == 0; sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program, str(tmp_path / "many")])
    assert done == 0
