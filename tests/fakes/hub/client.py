"""The real client, in this process or another, that talks to the fake Hub and to no other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes.hub.server import HubServer


def environment(server: HubServer, home: Path, token: str | None = None) -> dict[str, str]:
    """The environment of a process that talks to this server and to no other, with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    kept |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept if token is None else {**kept, "HF_TOKEN": token}


@contextmanager
def hub_client(server: HubServer, home: Path, token: str | None = None) -> Iterator[list[float]]:
    """Let the client of this process talk to this server and to no other; gives its waits, which are not waited for.

    The client reads its environment when it is imported, and so its constants are replaced.
    """
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api
    from huggingface_hub.utils import _http
    from huggingface_hub.utils._http import close_session

    waits: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
            patch.delenv(name)
        for name, value in environment(server, home, token).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", server.endpoint)
        patch.setattr(hf_api.api, "_whoami_cache", {})
        for name, value in {"HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "tokens"}.items():
            patch.setattr(constants, name, str(home / value))
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setattr(constants, name, True)
        for module in (_http, file_download):
            patch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
        close_session()  # it and the file systems would keep to the server that they first met
        HfFileSystem.clear_instance_cache()
        try:
            yield waits
        finally:
            close_session()
            HfFileSystem.clear_instance_cache()
