"""Several processes make one output: the bytes of one process, or nothing; and who is gone is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from belay_cli import average, cli
from belay_cli.engine.distributed import Launched, first_node, launched, tasks_on
from belay_cli.errors import UsageError
from tests.conftest import everything_in, make_adapter
from tests.output.ranks import free_port, of_slurm, of_torchrun, start


def save(run: Path, dtype: torch.dtype = torch.float32, count: int = 4, rows: int = 300) -> Path:
    for step in range(count):
        g = torch.Generator().manual_seed(step)
        tensors = {f"layers.{i}.w": torch.randn(rows, 33, generator=g).to(dtype) for i in range(5)}
        tensors |= {"emb": torch.randn(4 * rows, 31, generator=g), "seen": torch.tensor(step)}
        (run / f"checkpoint-{step + 1}").mkdir(parents=True)
        save_file(tensors, run / f"checkpoint-{step + 1}/model.safetensors")
        (run / f"checkpoint-{step + 1}/config.json").write_text("{}")
    return run


def bytes_of(path: str) -> dict[str, bytes]:
    if Path(path).is_file():
        return {"": Path(path).read_bytes()}
    return {
        name: (Path(path) / name).read_bytes() for name in everything_in(Path(path)) if (Path(path) / name).is_file()
    }


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    told = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, told, strict=True)]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_any_number_of_processes_writes_the_bytes_of_one(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    single, half = save(tmp_path / "single"), save(tmp_path / "half", torch.bfloat16)
    (tmp_path / "files").mkdir()
    for step in range(1, 5):
        os.link(single / f"checkpoint-{step}/model.safetensors", tmp_path / f"files/step-{step}.safetensors")
        make_adapter(tmp_path / f"adapters/checkpoint-{step}", step)
        g = torch.Generator().manual_seed(step)
        state = {"model": {f"w{i}": torch.randn(70, 30, generator=g) for i in range(4)}}
        dcp.save(state, checkpoint_id=tmp_path / f"dcp/step-{step}")
    commands: dict[str, list[Any]] = {
        "a.safetensors": [tmp_path / "files"],
        "sharded": [single, "--max-shard-size", "60kB"],
        "half": [half, "--threads", "2"],
        "wide": [half, "--dtype", "float64", "--max-memory", "4MB"],
        "cut": [tmp_path / "dcp"],
        "adapter": [tmp_path / "adapters", "--lora", "delta"],
    }
    scenarios: list[dict[str, Any]] = []
    made = []
    for name, arguments in commands.items():
        for count in (2, 3, 4):
            variables = of_slurm(count) if (name, count) == ("sharded", 3) else of_torchrun(count)
            output = name.replace("a.", f"a{count}.") if "." in name else f"{name}{count}"
            command = ["average", *map(str, arguments), "-o", output, "-q"]
            scenarios.append({"variables": variables, "command": command})
            made.append((name, output))
    rules, outputs = ["ema", "uniform", "belay"], ["x", "y", "z"]
    several = {"paths": [str(single)], "rules": rules, "outputs": outputs}
    scenarios.append({"variables": of_torchrun(3), "several": several})
    processes = start(tmp_path, scenarios)
    for name, arguments in commands.items():
        assert cli.run(["average", *map(str, arguments), "-o", name, "-q"]) == 0
    average([single], rules=rules, outputs=["x1", "y1", "z1"])
    for number, (code, out, err) in enumerate(ended(processes)):
        assert (code, err) == (0, ""), number
        codes = [json.loads(line)["code"] for line in out.splitlines() if line.startswith("{")]
        assert set(codes) == {0}, number
    for name, output in [*made, *((f"{one}1", one) for one in outputs)]:
        assert bytes_of(output) == bytes_of(name), output
    assert not [name for name in os.listdir(".") if name.startswith(".")]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A run that several processes take some seconds for, as they are made to."""
    return save(tmp_path / "slow")


def slow_command(number: int, variables: dict[str, str], run: Path) -> subprocess.Popen[str]:
    program = (
        "import sys, time\n"
        "from belay_cli.output.journal import Journal\n"
        "from belay_cli.planning import make\n"
        "plan_buffers, add = make.plan_buffers, Journal.add\n"
        "make.plan_buffers = lambda **options: plan_buffers(**{**options, 'chunk': 640})\n"
        "def slow(self, done):\n"
        "    add(self, done)\n"
        "    time.sleep(0.05)\n"
        "Journal.add = slow\n"
        "from belay_cli.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "average", str(run), "-o", "out", "--threads", "1", "-q"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )


@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_is_killed_ends_all_and_the_next_run_goes_on(slow: Path, victim: int) -> None:
    average([slow], "clean")
    processes = [slow_command(n, one, slow) for n, one in enumerate(of_torchrun(3))]
    journal = Path(f".out.belay/journal-{victim}")
    deadline = time.monotonic() + 100
    while not journal.exists() or journal.read_text().count("\n") < 4:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    told = ended(processes)
    assert time.monotonic() - killed < 15
    assert all(code for code, _, _ in told)
    gone = f"rank {victim} (process {processes[victim].pid} on {os.uname().nodename}) is gone"
    speaks = 1 if victim == 0 else 0
    assert gone in told[speaks][2]
    assert len(told[speaks][2].splitlines()) <= 2
    assert [err for n, (_, _, err) in enumerate(told) if n not in (speaks, victim)] == [""]
    assert not Path("out").exists()
    scenarios = [{"variables": of_torchrun(2), "command": ["average", str(slow), "-o", "out"]}]
    done = ended(start(slow.parent, scenarios))
    assert "goes on with an earlier run" in done[0][2]
    assert bytes_of("out") == bytes_of("clean")
    assert sorted(os.listdir(".")) == ["clean", "out"]


def test_all_that_are_terminated_say_so_once_and_go_on(slow: Path) -> None:
    average([slow], "clean")
    processes = [slow_command(n, one, slow) for n, one in enumerate(of_slurm(3))]
    deadline = time.monotonic() + 100
    while any(not Path(f".out.belay/journal-{n}").exists() for n in range(3)):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)
    time.sleep(0.2)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    told = ended(processes)
    goes_on = "belay: terminated\n       the same command goes on where it stopped\n"
    assert told == [(143, "", goes_on), (143, "", ""), (143, "", "")]
    assert cli.run(["average", str(slow), "-o", "out", "-q"]) == 0
    assert bytes_of("out") == bytes_of("clean")


@pytest.mark.parametrize("count", [2, 3])
def test_what_the_first_refuses_is_said_before_a_launcher_ends_it(slow: Path, count: int) -> None:
    Path("out").mkdir()
    Path("out/notes.md").write_text("mine")
    launcher = ["torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(free_port())]
    command = [sys.executable, "-m", *launcher, "-m", "belay_cli", "average", str(slow), "-o", "out", "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert [line for line in ran.stderr.splitlines() if line.startswith("belay: ")] == ["belay: out: exists"]
    assert os.listdir("out") == ["notes.md"]


def test_a_process_that_fails_is_named(slow: Path, tmp_path: Path) -> None:
    """One of them sees another file than the first: it changed meanwhile."""
    scenarios = [{"variables": of_torchrun(2), "command": ["average", str(tmp_path / "nowhere"), "-o", "out"]}]
    (first, second) = ended(start(tmp_path, scenarios))
    assert "nowhere: " in first[2]
    assert json.loads(first[1])["code"] == 1
    assert (json.loads(second[1])["code"], second[2]) == (1, "")


def test_other_commands_are_done_once(slow: Path) -> None:
    scenarios = [
        {"variables": of_torchrun(2), "command": ["plan", str(slow)]},
        {"variables": of_torchrun(2), "command": ["average", str(slow), "--dry-run"]},
    ]
    (first, second) = ended(start(slow.parent, scenarios))
    assert first[1].count("slow: 4 checkpoints") == 2
    assert second[1:] == ('{"code": 0}\n{"code": 0}\n', "")


def test_what_launchers_say() -> None:
    assert launched({}) is None
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None  # a batch script, which srun did not start
    (variables,) = of_torchrun(1)
    assert launched(variables) is None
    variables = of_torchrun(3)[2]
    assert launched(variables) == Launched(2, 3, 2, 3, "127.0.0.1", int(variables["MASTER_PORT"]))
    slurm = of_slurm(4)[3] | {"SLURM_STEP_NODELIST": "gpu[07-09,12],login1", "SLURM_STEP_TASKS_PER_NODE": "1(x3),2"}
    del slurm["MASTER_PORT"]
    assert launched(slurm) == Launched(3, 4, 3, 1, "gpu07", 20_000 + 71 * 31)
    with pytest.raises(UsageError, match="the variables of a launcher contradict each other"):
        launched(slurm | {"SLURM_NODEID": "many"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12]", "gpu07"), ("a[3,5]b,c", "a3b"), ("x-1-[2-9]", "x-1-2")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_tasks_of_nodes() -> None:
    assert [tasks_on("2(x3),1", node) for node in range(4)] == [2, 2, 2, 1]
