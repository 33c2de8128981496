"""An output in the files of its last checkpoint, made by several processes: the bytes of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from belay_cli import average, verify
from tests.output.ranks import of_torchrun, start
from tests.output.same import saved
from tests.output.test_ranks import ended
from tests.output.test_same_directories import files
from tests.output.test_same_directories import saved as saved_directories


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_any_number_of_processes_writes_the_bytes_of_one(tmp_path: Path) -> None:
    inputs: dict[str, list[Path]] = {
        "file": saved(tmp_path),
        "directory": saved_directories(tmp_path / "run"),
        "cut": [tmp_path / f"dcp/step-{step}" for step in (1, 2, 3)],
    }
    for step, path in enumerate(inputs["cut"]):
        g = torch.Generator().manual_seed(step)
        weights = {f"w{i}": torch.randn(70, 30, generator=g) for i in range(4)}
        dcp.save({"model": weights, "optimizer": {n: w + 1 for n, w in weights.items()}}, checkpoint_id=path)
    scenarios: list[dict[str, Any]] = []
    made = []
    for name, paths in inputs.items():
        suffix = ".pt" if name == "file" else ""
        average(paths, f"{name}1{suffix}", method="uniform", format="same")
        for count in (2, 3):
            command = [
                "average",
                *map(str, paths),
                "-m",
                "uniform",
                "--format",
                "same",
                "-o",
                f"{name}{count}{suffix}",
                "-q",
            ]
            scenarios.append({"variables": of_torchrun(count), "command": command})
            made.append((f"{name}{count}{suffix}", f"{name}1{suffix}"))
    for number, (code, out, err) in enumerate(ended(start(tmp_path, scenarios))):
        assert (code, err) == (0, ""), number
        assert {json.loads(line)["code"] for line in out.splitlines() if line.startswith("{")} == {0}, number
    for output, alone in made:
        if Path(output).is_dir():
            assert files(output) == files(alone), output
        else:
            assert Path(output).read_bytes() == Path(alone).read_bytes(), output
        assert verify(output, checkpoints=inputs[output.removesuffix(".pt")[:-1]], sample="all").ok, output
    assert not [name for name in os.listdir(".") if name.startswith(".")]
