"""The local Hub, the real client, and an output to publish."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from belay_cli import average
from belay_cli.publish import contents
from belay_cli.storage import retry
from tests.conftest import make_run
from tests.fakes.hub import HubServer, hub_client
from tests.publish.pushing import TOKENS, drawn_once


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tokens=TOKENS) as server:
        yield server


@pytest.fixture
def client(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    monkeypatch.setattr(contents, "coefficients_png", drawn_once)
    with hub_client(server, tmp_path / "home", token="hf_w"):
        yield


@pytest.fixture
def output(tmp_path: Path) -> str:
    average([make_run(tmp_path / "run")], "out", max_shard_size="1700B")
    return "out"
