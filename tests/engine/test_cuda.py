"""The GPU itself; collected only where there is one. Its order of steps is tested everywhere by the CPU twin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli import average
from tests.conftest import make_run
from tests.engine.test_replay import RULES, digest, spoiled, tensor_bytes
from tests.output.ranks import of_torchrun
from tests.output.same import saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [None, 64])
def test_a_gpu_writes_the_bytes_of_the_cpu(tmp_path: Path, dtype: torch.dtype, chunk: Any) -> None:
    run = make_run(tmp_path / "run", steps=range(100, 900, 100), dtype=dtype)
    for device in ("cpu", "cuda"):
        outputs = [f"{device}{i}" for i in range(len(RULES))]
        average([run], rules=RULES, outputs=outputs, device=device, chunk=chunk)
    for i in range(len(RULES)):
        assert digest(f"cuda{i}") == digest(f"cpu{i}")


def test_tensors_of_many_chunks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for i in range(5):
        save_file({"w": torch.randn(3_000_001).bfloat16()}, tmp_path / f"step-{i}.safetensors")
    for device in ("cpu", "cuda"):
        average([tmp_path], f"{device}.safetensors", device=device, max_memory="20MB")
    assert tensor_bytes("cuda.safetensors") == tensor_bytes("cpu.safetensors")


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    from belay_cli.errors import NumericError

    with pytest.raises(NumericError, match="'layer.weight' holds NaN"):
        average(spoiled(tmp_path), "out.safetensors", device="cuda")


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    from belay_cli.errors import DeviceError

    with pytest.raises(DeviceError, match=r"there are \d+ CUDA devices, counted from 0"):
        average([make_run(tmp_path / "run")], "out", device="cuda:63")


def test_an_average_in_the_file_of_a_last_checkpoint(tmp_path: Path) -> None:
    series = saved(tmp_path)
    for device in ("cpu", "cuda"):
        average(series, f"{device}.pt", device=device)
    assert digest("cuda.pt") == digest("cpu.pt")


def test_processes_share_the_gpus_that_there_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=range(100, 900, 100), dtype=torch.bfloat16)
    average([run], "cpu", device="cpu", chunk=64)
    command = [sys.executable, "-m", "belay_cli", "average", str(run), "-o", "cuda", "--device", "cuda", "-q"]
    processes = [subprocess.Popen(command, env={**os.environ, **variables}) for variables in of_torchrun(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert digest("cuda") == digest("cpu")


def test_a_run_that_was_terminated_goes_on_where_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=range(100, 900, 100))
    average([run], "whole", device="cpu", chunk=64)
    program = (
        "import os, signal, sys\n"
        "from belay_cli.output.journal import Journal\n"
        "add = Journal.add\n"
        "def then_terminate(self, done):\n"
        "    add(self, done)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "Journal.add = then_terminate\n"
        "from belay_cli.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "average", str(run), "-o", "out", "--device", "cuda", "-q"]
    ended = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 143, ended.stderr
    assert not Path("out").exists()
    average([run], "out", device="cuda")
    assert digest("out") == digest("whole")
