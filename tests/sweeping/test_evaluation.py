"""The user's command as a real process: it fails, hangs, forks and lingers, and outlives its sweep."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from belay_cli.errors import UsageError
from belay_cli.sweeping.evaluation import Ended, Evaluation, Groups, running_groups, seconds, shares_of_gpus
from belay_cli.sweeping.measures import NoResult
from tests.sweeping.conftest import command, log
from tests.sweeping.test_sweep import GRID, result, table

CRASHES = int(os.environ.get("BELAY_CRASHES", "4"))


def evaluation(tmp_path: Path, line: str, limit: float | None = None, **identity: object) -> Evaluation:
    return Evaluation(tmp_path / "evaluation", line + " # {model}", tmp_path / "model", identity, limit)


def ran(tmp_path: Path, line: str, limit: float | None = None) -> tuple[Evaluation, Ended]:
    each = evaluation(tmp_path, line, limit)
    with running_groups() as groups:
        return each, each.run(groups)


def test_it_ends_with_its_exit_code_and_output(tmp_path: Path) -> None:
    each, ended = ran(tmp_path, "echo 0.5; echo a word >&2; exit 7")
    assert ended.code == 7
    assert each.ended() == Ended(7)
    with pytest.raises(NoResult, match="^exit code 7: a word$"):
        each.measures(ended)


def test_paths_with_spaces_are_one_word_each(tmp_path: Path) -> None:
    each = Evaluation(tmp_path / "an evaluation", "printf '%s|' {model} {out}", tmp_path / "a model's", {})
    with running_groups() as groups:
        each.run(groups)
    printed = (tmp_path / "an evaluation/stdout").read_text()
    assert printed == f"{tmp_path}/a model's|{tmp_path}/an evaluation/out|"


def test_other_braces_stay(tmp_path: Path) -> None:
    each, _ = ran(tmp_path, "echo '{\"a\": {}}'")
    assert (each.directory / "stdout").read_text() == '{"a": {}}\n'


def test_one_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    each, ended = ran(tmp_path, f"sleep 60 & echo $! > {pids}; sleep 60", limit=0.3)
    assert ended.code is None
    with pytest.raises(NoResult, match="took longer than its --time-limit"):
        each.measures(ended)
    assert not alive(int(pids.read_text()))


def test_what_it_leaves_behind_is_ended_and_nobody_waits_for_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    each, ended = ran(tmp_path, f"sleep 60 & echo $! > {pids}; echo 0.5")
    assert time.monotonic() - began < 20
    assert ended.code == 0
    assert next(iter(each.measures(ended).values())).value == 0.5
    assert not alive(int(pids.read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for yet does not."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_the_end_of_a_sweep_ends_it_and_records_nothing(tmp_path: Path) -> None:
    from threading import Thread

    each, groups = evaluation(tmp_path, "sleep 60"), Groups()

    def run() -> None:
        with pytest.raises(Exception):  # noqa: B017 - Stopped, which no caller sees
            each.run(groups)

    thread = Thread(target=run)
    thread.start()
    while not (each.directory / "group").exists():
        time.sleep(0.01)
    groups.close()
    thread.join(10)
    assert not thread.is_alive()
    assert each.ended() is None


ORPHAN = """
import sys
from pathlib import Path
from belay_cli.sweeping.evaluation import Evaluation, Groups
where = Path(sys.argv[1])
line = f"echo start >> {where}/starts; sleep 1; echo 0.5 # {{model}}"
print(Evaluation(where / "evaluation", line, where / "model", {}).run(Groups()))
"""


def test_one_that_outlives_its_sweep_is_waited_for_and_not_run_again(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)])
    while not (tmp_path / "starts").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path)], capture_output=True, text=True, check=True)
    assert again.stdout == "Ended(code=0, seconds=None)\n"
    assert (tmp_path / "starts").read_text() == "start\n"


@pytest.mark.parametrize(
    ("jobs", "gpus", "visible", "expected"),
    [
        (1, 0, None, [None]),
        (1, 8, None, [None]),
        (2, 8, None, ["0,2,4,6", "1,3,5,7"]),
        (3, 2, None, ["0", "1", "0"]),
        (2, 8, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (2, 8, "", [None, None]),
    ],
)
def test_gpus_are_shared_out(jobs: int, gpus: int, visible: str | None, expected: list[str | None]) -> None:
    found = shares_of_gpus(jobs, gpus, visible)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in found] == expected


def test_times() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    for text in ("", "soon", "-1", "0"):
        with pytest.raises(UsageError, match="is no time"):
            seconds(text)


# ---- a sweep that is killed


def sweep_process(more: list[str]) -> subprocess.Popen[bytes]:
    judged = ["--eval", command(), "--metric", "loss", "--minimize", "--at-once", "5", "--jobs", "2"]
    words = [sys.executable, "-m", "belay_cli", "sweep", "run", "-o", "sweep", *judged, *more, "-q"]
    with Path("stderr").open("wb") as stderr:
        # In the background of a shell, SIGINT is ignored, and would be here too.
        heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=heeded)


@pytest.mark.usefixtures("series")
def test_killed_at_random_moments_it_comes_to_the_same_table_and_evaluates_nothing_twice() -> None:
    began = time.monotonic()
    whole = sweep_process(GRID)
    assert whole.wait() == 0
    took = time.monotonic() - began
    expected = result()
    best = Path("sweep/best.safetensors").read_bytes()
    os.rename("sweep", "whole")
    chance = random.Random(13)
    for moment in range(CRASHES):
        Path("log").unlink(missing_ok=True)
        while True:  # the same sweep, killed until it once gets through
            process = sweep_process(GRID)
            try:
                assert process.wait(chance.uniform(0.1, took)) == 0, Path("stderr").read_text()
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert table(result()) == table(expected), moment
        assert sorted(log()) == sorted(set(log())), moment
        assert Path("sweep/best.safetensors").read_bytes() == best
        subprocess.run(["rm", "-r", "sweep"], check=True)


@pytest.mark.usefixtures("series")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_evaluations_too(number: int, code: int) -> None:
    Path("evaluate.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    process = sweep_process([])
    while not Path("pid").exists() or not Path("pid").read_text():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == code
    assert not alive(int(Path("pid").read_text()))
    assert not list(Path("sweep/evaluations").rglob("ended"))
