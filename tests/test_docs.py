"""The documentation is kept true: every command of the README runs, the numbers and the picture are today's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from belay_cli import average
from tests.conftest import make_files, make_run
from tests.hub_server import HubServer, hub_client

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^    (?:\$ )?(belay .*)$", README, re.MULTILINE)))


@pytest.fixture
def hub(tmp_path):
    with HubServer({"hf_w": "write"}, namespaces=("ORG",)) as server, hub_client(server, tmp_path / "home", "hf_w"):
        yield server


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(command, belay, hub):
    make_files(Path("ckpts"))
    make_run(Path("run"), steps=range(1000, 60_000, 1000))
    if "run-ema " in command.partition("push")[2]:
        average(["run"], "run-ema")
    Path("sample_checkpoints").symlink_to(ROOT / "sample_checkpoints")
    words = [
        w for word in shlex.split(command)[1:] for w in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    ran = belay(*words)
    assert ran.code == 0, ran.err
    shown = README.partition(f"    $ {command}\n")[2].split("\n\n\n")[0]
    if shown:
        expected = [line[4:] for line in shown.split("\n    reads")[0].rstrip().split("\n")]  # then the machine's own
        assert ran.out.splitlines()[: len(expected)] == expected


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_three_lines_of_a_job(belay, hub):
    make_run(Path("run"))
    lines = re.findall(r"^    (belay .*)$", (ROOT / "docs/ci.md").read_text(), re.MULTILINE)
    assert [belay(*line.split()[1:]).code for line in lines] == [0, 0, 0]
    assert "model.safetensors" in hub.repo("ORG/NAME").files()


def test_python_of_the_readme_runs():
    make_run(Path("run"), steps=(100, 200))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sorted(path.name for path in Path().iterdir()) == ["long", "out", "run", "short"]


def test_the_demos_table_is_in_the_readme():
    done = subprocess.run(
        [sys.executable, ROOT / "sample_checkpoints/demo.py"], check=True, capture_output=True, text=True
    )
    rows = [
        line[2:].rstrip() for line in done.stdout.splitlines() if re.search(r"\d\.\d{4} +\d\d\.\d%$", line.rstrip())
    ]
    assert len(rows) == 5
    for row in rows:
        assert f"    {row}\n" in README


def test_the_picture_is_what_its_script_draws():
    before = (ROOT / "docs/dynamics.svg").read_bytes()
    subprocess.run([sys.executable, ROOT / "docs/draw_dynamics.py"], check=True)
    assert (ROOT / "docs/dynamics.svg").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "sample_checkpoints/README.md",
        "benchmarks/README.md",
        "docs/ci.md",
        "docs/provenance.md",
    ],
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
