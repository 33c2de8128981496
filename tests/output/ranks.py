"""Processes that work together, for test_ranks.py to look at: `python -m tests.output.ranks RANK SCENARIOS.json`.

Each scenario is variables of a launcher, and what is run: a command, or several rules by the API. Importing torch takes
longer than all of them, so one process runs them all.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from belay_cli import cli
from belay_cli.api.average import assist, prepare, run
from belay_cli.api.keywords import plan_options
from belay_cli.cli.screen import Screen
from belay_cli.cli.together import together
from belay_cli.rules import asked
from belay_cli.show.listener import Nobody


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def of_torchrun(count: int) -> list[dict[str, str]]:
    """The variables that torchrun sets, for each process."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
    return [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]


def of_slurm(count: int) -> list[dict[str, str]]:
    """The variables that srun sets, for each process; no job has the number of this one."""
    port = free_port()
    shared = {
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": str(count),
        "SLURM_JOB_ID": "71",
        "SLURM_STEP_ID": "0",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),
    }
    return [{**shared, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(count)]


def start(directory: Path, scenarios: Sequence[dict[str, Any]]) -> list[subprocess.Popen[str]]:
    """The processes that run these scenarios, in each as many as it has variables for."""
    path = directory / "scenarios.json"
    path.write_text(json.dumps(list(scenarios)))
    count = max(len(one["variables"]) for one in scenarios)
    command = [sys.executable, "-m", "tests.output.ranks"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return [
        subprocess.Popen(
            [*command, str(n), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for n in range(count)
    ]


def several(paths: list[str], rules: list[str], outputs: list[str]) -> int:
    """What the API does with several rules, in several processes."""
    with together(Screen()) as ranks:
        if ranks.number:
            assist(ranks)
        else:
            plan = prepare(paths, [asked(rule) for rule in rules], outputs, *plan_options({}), Nobody())
            run(plan, Nobody(), ranks=ranks)
    return 0


def main(number: int, scenarios: Path) -> None:
    for one in json.loads(scenarios.read_text()):
        if number >= len(one["variables"]):
            continue
        os.environ.update(one["variables"][number])
        code = several(**one["several"]) if "several" in one else cli.run(one["command"])
        for name in one["variables"][number]:
            del os.environ[name]
        print(json.dumps({"code": code}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
