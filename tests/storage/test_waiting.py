"""A server that is not reached is said to be, soon, and each time that it is tried again."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from belay_cli.errors import CheckpointError
from belay_cli.storage import retry
from belay_cli.storage.remote import http, parse, source, waiting


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    monkeypatch.setattr(waiting, "_said", {})


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a server whose queue is full: the system answers no further connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        waiting_ones = [socket.socket() for _ in range(4)]
        for one in waiting_ones:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}"
        for one in waiting_ones:
            one.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def asked(url: str) -> tuple[list[str], CheckpointError]:
    """What is heard while a file is looked for, and the error in the end."""
    heard: list[str] = []
    with waiting.heard_by(heard.append), pytest.raises(CheckpointError) as caught:
        parse(url).exists()
    return heard, caught.value


def test_a_connection_that_nobody_takes_is_given_up_soon_and_said(deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_TIMEOUT", 0.2)
    heard, error = asked(f"{deaf}/a.safetensors")
    said = f"{deaf}/a.safetensors: no connection to {deaf} within 0.2 s; trying again ({{}} of 9)"
    assert heard == [said.format(attempt) for attempt in range(2, 10)]
    assert error.message == f"cannot be read: no connection to {deaf} within 0.2 s, 9 times in a row"
    assert error.hint == "run the same command again"


def test_a_connection_that_is_refused_is_said(closed: str) -> None:
    heard, _ = asked(f"{closed}/a.safetensors")
    assert heard[0] == f"{closed}/a.safetensors: no connection to {closed}; trying again (2 of 9)"
    assert len(heard) == 8


def test_a_connection_takes_at_most_five_seconds() -> None:
    assert source.CONNECT_TIMEOUT == 5
    assert waiting.SOON < 5


def test_a_server_without_an_answer_is_said_to_be_silent(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.5)
    monkeypatch.setattr(waiting, "SOON", 0.1)
    heard, error = asked(f"{silent}/a.safetensors")
    assert heard[:1] == [f"{silent}/a.safetensors: no answer from {silent} yet"]
    assert "was silent for" in error.message


def test_threads_that_wait_for_the_same_are_heard_once() -> None:
    heard: list[str] = []
    with waiting.heard_by(heard.append):
        threads = [threading.Thread(target=waiting.say, args=["no answer"]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    waiting.say("nobody listens")
    assert heard == ["no answer"]


def test_an_answer_in_time_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SOON", 0.05)
    heard: list[str] = []
    with waiting.heard_by(heard.append):
        with waiting.answered("a", "b"):
            pass
        time.sleep(0.2)
    assert heard == []
