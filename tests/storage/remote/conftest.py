"""Real servers on this machine, a home with nothing in it, and waits that are not waited for."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from belay_cli.storage import retry
from tests.fakes.hub import HubServer, hub_client
from tests.fakes.web import Web
from tests.storage.remote.serving import DATA, TOKEN, close_s3


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for."""
    seen: list[float] = []
    monkeypatch.setattr(retry, "pause", seen.append)
    return seen


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it, temporary files too."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("TMPDIR", str(home / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return home


@pytest.fixture
def web(home: Path) -> Iterator[Web]:
    with Web() as server, hub_client(server, home, TOKEN):
        server.files["/run/step-100/model.safetensors"] = DATA
        # The client's Hub is another server, so that these are plain URLs.
        from huggingface_hub import constants

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            yield server


@pytest.fixture
def hub(home: Path) -> Iterator[HubServer]:
    with HubServer({TOKEN: "read"}, redirect=True, page_size=3) as server, hub_client(server, home, TOKEN):
        revisions = {
            f"step{step}": {
                "model.safetensors": random.Random(step).randbytes(50_000),
                "config.json": b'{"a": 1}',
                "unet/diffusion_pytorch_model.safetensors": b"unet" * step,
                "vae/config.json": b"{}",
            }
            for step in (100, 200, 300, 400)
        }
        server.make_repo("org/model", {"main": {"README.md": b"# card"}, **revisions}, private=True)
        yield server


@pytest.fixture(scope="session")
def imported() -> None:
    """Leaves modules out of garbage collections from here on: `close_s3` takes one a test, for what the test left."""
    import moto.server  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(imported: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set up what a person has in the environment, and close the connections in the end."""
    for name, value in {"KEY_ID": "id", "SECRET": "secret"}.items():
        monkeypatch.setenv({"KEY_ID": "AWS_ACCESS_KEY_ID", "SECRET": "AWS_SECRET_ACCESS_KEY"}[name], value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield lambda endpoint: monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    close_s3()


@pytest.fixture
def s3(s3_endpoint: str, s3_environment: Callable[[str], None]) -> Any:
    """The file system, by a client of its own, on an empty bucket."""
    s3_environment(s3_endpoint)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    return store
