"""A local server that speaks the Hugging Face Hub's HTTP protocol to the real client, and fails on demand.

    with HubServer(tokens={"hf_w": "write", "hf_r": "read"}) as server, hub_client(server, tmp_path, "hf_w"):
        repo = server.make_repo("org/model", {"main": {"config.json": b"{}"}, "step1000": {...}})
        server.fail("POST .*/commit/", "cut after")
        HfApi().create_commit(...)
        assert repo.commits("main")[0].files["config.json"] == b"{}"

Only model repos, and no xet: the client asks no server whether it has xet but uses it wherever `hf_xet` is installed
and HF_HUB_DISABLE_XET is not set, so `hub_client` and `environment` set it.
"""

from tests.fakes.hub.client import environment, hub_client
from tests.fakes.hub.messages import Answer, Refusal, Request, ranged
from tests.fakes.hub.server import HubServer
from tests.fakes.hub.store import GITATTRIBUTES

__all__ = ["GITATTRIBUTES", "Answer", "HubServer", "Refusal", "Request", "environment", "hub_client", "ranged"]
