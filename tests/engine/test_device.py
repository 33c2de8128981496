"""Which device `auto` is, and what a machine without a kernel, without a GPU or without many open files does."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from belay_cli import Ema, average
from belay_cli.api.average import prepare
from belay_cli.api.keywords import plan_options
from belay_cli.engine import device
from belay_cli.engine.kernel import KERNELS
from belay_cli.planning import Plan
from belay_cli.planning.estimate import Estimate
from belay_cli.planning.gpu import gpu_pays
from belay_cli.show.listener import Nobody
from belay_cli.show.sentences import work_line
from tests.conftest import make_adapter, make_files, make_run

ROOT = Path(__file__).parent.parent.parent
needs_kernel = pytest.mark.skipif(not KERNELS, reason="the kernel was not built")


def planned(tmp_path: Path, *, outputs: int = 1, elements: int = 0, **options: Any) -> Plan:
    """A plan whose largest tensor is as large as is said."""
    plan = prepare(make_files(tmp_path), [Ema()], None, *plan_options({"threads": 2, **options}), Nobody())
    first = next(i for i, tensor in enumerate(plan.tensors) if tensor.action == "average")
    tensors = list(plan.tensors)
    tensors[first] = tensors[first]._replace(elements=elements or tensors[first].elements)
    return replace(plan, pieces=tuple(tensors), outputs=plan.outputs * outputs, engine="avx2")


def test_a_gpu_pays_where_arithmetic_takes_longer_than_reading(tmp_path: Path) -> None:
    assert not gpu_pays(planned(tmp_path))
    assert not gpu_pays(planned(tmp_path, elements=10**12))  # as much to read
    assert not gpu_pays(planned(tmp_path, outputs=32, elements=10**8))  # over at once
    many = planned(tmp_path, outputs=64, elements=10**11)
    assert gpu_pays(many)
    assert not gpu_pays(replace(many, buffers=replace(many.buffers, threads=64)))
    assert gpu_pays(replace(planned(tmp_path, outputs=32, elements=10**10), engine="torch"))


def test_what_is_said_of_it(tmp_path: Path) -> None:
    assert work_line(planned(tmp_path)).endswith(" of buffers, cpu with 2 threads")
    soon = work_line(planned(tmp_path), estimate=Estimate(1.26, {}))
    assert soon.endswith(" of buffers, cpu with 2 threads, about 1.3 s here")
    assert work_line(planned(tmp_path, outputs=64, elements=10**11)).endswith(
        " of buffers, CUDA if there is one, since the arithmetic takes longer than reading, else cpu with 2 threads"
    )


def test_auto_asks_for_a_gpu_only_where_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(device, "has_gpu", lambda: asked.append(True))
    assert device.find_device(planned(tmp_path)) == "cpu"
    assert asked == []
    assert device.find_device(planned(tmp_path, outputs=64, elements=10**11)) == "cpu"
    assert asked == [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_driver_says_what_torch_says() -> None:
    assert device.has_gpu() is False


COMMANDS = [
    ["average", "run", "-o", "out", "-q"],
    ["average", "run", "-o", "out", "-q", "--device", "cpu", "--json"],
    ["plan", "run", "-q"],
    ["inspect", "run"],
    ["verify", "run-average"],
    ["average", "adapters", "-o", "out", "--lora", "delta", "-q"],
    ["verify", "adapters-average"],
]


@needs_kernel
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_torch_is_not_imported_on_the_processor(command: list[str]) -> None:
    make_run(Path("run"))
    if command[0] == "verify" and "run" in command[1]:
        average(["run"], "run-average")
    if "adapters" in " ".join(command):
        for step in (1, 2, 3):
            make_adapter(Path(f"adapters/checkpoint-{step}"), step)
        if command[0] == "verify":
            average(["adapters"], "adapters-average", lora="delta")
    program = """
import sys
from belay_cli.cli import run
code = run(sys.argv[1:])
sys.exit(code or 3 * ("torch" in sys.modules))
"""
    done = run_program(program, command, Path())
    assert done.returncode == 0, done.stderr


def run_program(program: str, command: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BELAY_ENGINE"}
    arguments = [sys.executable, "-c", program, *command]
    return subprocess.run(arguments, cwd=where, env=environment, capture_output=True, text=True)


WITHOUT_KERNEL = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "belay_cli.engine.kernel._native":
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from belay_cli.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_where_no_kernel_was_built_the_bytes_are_the_same(tmp_path: Path) -> None:
    make_run(tmp_path / "run", dtype=torch.bfloat16)
    for command in (["average", "run", "-o", "without"], ["verify", "without"], ["--version"]):
        done = run_program(WITHOUT_KERNEL, command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" (engine: torch)\n")
    average([tmp_path / "run"], tmp_path / "with")
    for name in ("model.safetensors", "belay.json"):
        one, other = (hashlib.sha256((tmp_path / which / name).read_bytes()).digest() for which in ("with", "without"))
        assert one == other


def test_more_files_are_opened_where_the_limit_allows_it(tmp_path: Path) -> None:
    program = """
import resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from belay_cli.storage.files import open_files
print(open_files(2, 100), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    for soft, hard, expected in ((64, 1024, "100 400 1024"), (64, 128, "32 128 128"), (1024, 1024, "256 1024 1024")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(soft), str(hard)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_a_series_of_more_files_than_may_be_open(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=range(100, 6100, 100))
    average([tmp_path / "run"], tmp_path / "before")
    command = f"ulimit -n 48 && exec {sys.executable} -m belay_cli average run -o few -q"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert (tmp_path / "few/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()


def resident(path: Path) -> int:
    """Pages of a file that are in the page cache."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory,
    ):
        pages = -(-len(memory) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), found) == 0
        return sum(page & 1 for page in found)


@pytest.mark.skipif(sys.platform != "linux", reason="the page cache of Linux")
def test_what_is_read_need_not_stay_in_the_page_cache(tmp_path: Path) -> None:
    paths = make_files(tmp_path / "run", dtype=torch.float64)
    os.sync()
    average(paths, tmp_path / "kept.safetensors")
    assert all(map(resident, paths))
    average(paths, tmp_path / "dropped.safetensors", drop_cache=True)
    if any(map(resident, paths)):
        pytest.skip("this file system keeps its pages")  # one in memory
    assert resident(tmp_path / "dropped.safetensors") == 0
    assert (tmp_path / "kept.safetensors").read_bytes() == (tmp_path / "dropped.safetensors").read_bytes()
