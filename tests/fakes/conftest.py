"""The local Hub and the real client, which waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

from tests.fakes.hub import HubServer, hub_client
from tests.fakes.hub_requests import TOKENS


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(TOKENS, multipart=4000) as server:
        yield server


@pytest.fixture
def waits(server: HubServer, tmp_path: Path) -> Iterator[list[float]]:
    with hub_client(server, tmp_path / "home", "hf_w") as waits:
        yield waits


@pytest.fixture
def api(waits: list[float]) -> HfApi:
    return HfApi()
