"""The table and the progress bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from belay_cli.show import tables
from tests.conftest import belay_process, make_files


@pytest.mark.parametrize(
    ("coefficients", "rows"),
    [
        ([1.0], [(0, 0)]),
        ([0.5, 0.5], [(0, 0), (1, 1)]),
        ([0.011] * 10 + [0.2, 0.3, 0.39], [(0, 8), (9, 9), (10, 10), (11, 11), (12, 12)]),
        ([1 / 24] * 24, [(0, 1), *((i, i + 1) for i in range(2, 24, 2))]),
    ],
)
def test_rows_of_the_table_fit_on_a_screen(coefficients: list[float], rows: list[tuple[int, int]]) -> None:
    grouped = tables.group_rows(coefficients)
    assert grouped == rows
    assert len(grouped) <= 12
    assert [i for first, last in grouped for i in range(first, last + 1)] == list(range(len(coefficients)))


def test_the_progress_bar_is_for_terminals_only(tmp_path: Path) -> None:
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
