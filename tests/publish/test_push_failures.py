"""`belay push` while servers fail and others commit: one commit with all of it, or nothing."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belay_cli import Ema, average
from belay_cli.publish import connection
from belay_cli.publish.destination import MESSAGE
from belay_cli.storage import retry
from tests.conftest import Ran, belay_process, make_run
from tests.fakes.hub import HubServer, Request, environment
from tests.publish.pushing import FILES, check_whole, local, published

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
HOWS = ["refused", 500, 503, 429, "proxy", "cut before", "cut during", "cut after", "stall"]
REQUESTS = 12  # more than one push makes


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("extra", [(), ("--create-pr",), ("--revision", "ema")], ids=["main", "pr", "branch"])
def test_a_failure_at_each_request(
    server: HubServer,
    client: None,
    output: str,
    belay: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    how: str | int,
    extra: tuple[str, ...],
) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 0.2)
    revision = {"--create-pr": "refs/pr/1", "--revision": "ema"}.get(extra[0] if extra else "", "main")
    for number in range(1, 40):
        server.repos.clear()
        failure = server.fail(number, how, seconds=0.5, retry_after=1)
        first = belay("push", output, "org/name", *extra)
        if not failure.hits:
            assert number > REQUESTS
            break
        if first.code:
            assert first.err.startswith("belay: "), first.err
            assert "Traceback" not in first.err
            assert "unexpected" not in first.err
            repo = server.repos.get("org/name")
            assert repo is None or all(set(repo.files(ref)) == {".gitattributes"} for ref in repo.refs)
        second = belay("push", output, "org/name", *extra)
        assert second.code == 0, (number, second.err)
        check_whole(server, revision)
        assert "refs/pr/2" not in server.repo("org/name").refs


def test_a_server_that_fails_for_ever(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    server.fail("POST .*/commit/", 503, times=math.inf)
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    error = f"{server.endpoint} failed with no luck"
    assert ran.err.splitlines() == [
        *[f"note: {error}; trying again"] * 3,
        f"belay: {error}",
        "       run the same command again",
    ]
    assert set(published(server)[1]) <= {".gitattributes"}


@pytest.mark.parametrize("how", HOWS[:2])
def test_no_server_at_all(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], how: str | int
) -> None:
    with server.down():
        ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == f"belay: {server.endpoint} cannot be reached\n       run the same command again\n"


def test_somebody_else_commits_meanwhile(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    repo = server.make_repo("org/name", {"main": {"a.txt": b"1"}})
    server.fail("POST .*/commit/", lambda request: repo.write({"a.txt": b"2"}))
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == (
        "belay: somebody else changed org/name meanwhile; nothing was committed\n"
        "       look at what is there now, and run the command again\n"
    )
    assert repo.files() == {"a.txt": b"2"}


def test_a_lost_answer_under_a_newer_commit(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {}})
    server.fail("POST .*/commit/", "cut after")
    server.fail("GET .*/commits/", lambda request: server.repo("org/name").write({"a.txt": b"on top"}))
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    commits, files = published(server)
    assert [commit.message for commit in commits] == ["written by another", MESSAGE]
    assert "a.txt" in files


def test_a_repository_that_somebody_fills_meanwhile(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.fail(
        "POST .*/repos/create", lambda request: server.make_repo("org/name", {"main": {"README.md": b"# Mine"}})
    )
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith("belay: somebody else changed org/name meanwhile; nothing was committed\n")
    assert server.repo("org/name").files() == {"README.md": b"# Mine"}


def test_two_first_commits_in_an_empty_repository_are_no_mixture(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    server.initial_commit = False
    average([tmp_path / "run"], "other")
    second: list[Any] = []

    def push_another(request: Request) -> None:
        if not second:
            second.append(None)
            second[0] = belay_process("push", "other", "org/name", env=environment(server, tmp_path / "o", "hf_w"))

    server.fail("POST .*/commit/", push_another)
    ran = belay("push", output, "org/name")
    assert (ran.code, second[0].returncode) == (0, 0), ran.err + second[0].stderr
    files = server.repo("org/name").files()
    assert sorted(files) == [name for name in FILES if name != ".gitattributes"]
    for name, content in local().items():
        assert files[name] == content, name


def test_offline(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    close_session()
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == "belay: HF_HUB_OFFLINE is set, so the Hub is not asked\n"


def test_eight_at_once(server: HubServer, tmp_path: Path) -> None:
    """Different outputs from processes of their own: each commit is whole, whoever wins."""
    run = make_run(tmp_path / "run")
    for i in range(8):
        average([run], f"out{i}", method=Ema(decay=0.1 * i), max_shard_size="1700B" if i % 2 else None)
    server.make_repo("org/name", {"main": {}})
    done = {}

    def one(i: int) -> None:
        done[i] = belay_process(
            "push", f"out{i}", "org/name", env=environment(server, tmp_path / f"home{i}", "hf_w"), cwd=os.getcwd()
        )

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [i for i in range(8) if done[i].returncode == 0]
    assert won
    for i in range(8):
        if i not in won:
            assert done[i].stderr.splitlines()[-2] == (
                "belay: somebody else changed org/name meanwhile; nothing was committed"
            ), done[i].stderr
    commits, _ = published(server)
    assert len(commits) == len(won)
    outputs = [local(f"out{i}") for i in range(8)]
    for commit in commits:
        weights = {name: content for name, content in commit.files.items() if "safetensors" in name}
        assert any(
            weights == {name: content for name, content in output.items() if "safetensors" in name}
            and commit.files["belay.json"] == output["belay.json"]
            for output in outputs
        )


def test_a_branch_that_moved_on_during_the_run(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from belay_cli.api import average as api

    repo, run = server.make_repo("org/name", {"main": {"a.txt": b"1"}}), api.run
    monkeypatch.setattr(api, "run", lambda *given, **more: (repo.write({"a.txt": b"2"}), run(*given, **more))[1])
    ran = belay("average", make_run(tmp_path / "run"), "-o", "out", "--push-to-hub", "org/name")
    assert ran.code == 0, ran.err
    assert repo.files()["a.txt"] == b"2"
    assert "model.safetensors" in repo.files()


def test_an_initial_commit_may_hold_more(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.first_files["README.md"] = b"# A new repository\n"
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)


def test_a_commit_is_tried_again_however_long_the_upload_took(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE", retry.Patience(4, seconds=-1.0))
    server.fail("POST .*/commit/", 503, times=3)
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)
