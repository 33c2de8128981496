"""The local Hub answers the real client as the Hub does: listings and downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, HfFileSystem, get_session, hf_hub_download

from tests.fakes.hub import HubServer, hub_client
from tests.fakes.hub_requests import FILES, TOKENS, WEIGHTS, sha256

# The client uploads LFS files in the way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize("page_size", [None, 2])
def test_listings(tmp_path: Path, page_size: int | None) -> None:
    with HubServer(page_size=page_size) as server, hub_client(server, tmp_path):
        api, repo = HfApi(), server.make_repo("org/model", {"step1000": FILES})
        changed = repo.write({"config.json": b"{ }"}, "step1000")

        def tree(path: str | None = None, **options: Any) -> dict[str, Any]:
            return {e.path: e for e in api.list_repo_tree("org/model", path, revision="step1000", **options)}

        assert set(tree()) == {"config.json", "model.safetensors", "sub"}
        assert set(tree(recursive=True)) == set(FILES) | {"sub", "sub/deep"}
        assert set(tree("sub")) == {"sub/a.txt", "sub/deep"}
        assert api.list_repo_files("org/model", revision="step1000") == sorted(FILES)
        weights = tree(expand=True)["model.safetensors"]
        assert (weights.size, weights.lfs.sha256, weights.lfs.size) == (len(WEIGHTS), sha256(WEIGHTS), len(WEIGHTS))
        assert weights.last_commit.title == "files of step1000"
        assert tree(expand=True)["config.json"].last_commit.oid == changed.id
        there = api.get_paths_info("org/model", ["config.json", "sub", "none"], revision="step1000")
        assert [(entry.path, type(entry).__name__) for entry in there] == [
            ("config.json", "RepoFile"),
            ("sub", "RepoFolder"),
        ]
        assert len(api.list_repo_commits("org/model", revision="step1000")) == 3
        assert any("cursor=" in target for _, target in server.requests) == (page_size is not None)


def test_model_info(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model", {"main": FILES})
    info = api.model_info("org/model", files_metadata=True)
    assert (info.id, info.sha, info.private) == ("org/model", repo.commits()[0].id, False)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    assert {name: sibling.size for name, sibling in siblings.items()} == {n: len(data) for n, data in FILES.items()}
    lfs = siblings["model.safetensors"].lfs
    assert lfs is not None and lfs.sha256 == sha256(WEIGHTS)
    assert siblings["config.json"].lfs is None
    assert siblings["config.json"].blob_id == repo.commits()[0].blobs["config.json"].oid
    plain = api.model_info("org/model", revision=repo.first.id)
    assert [(sibling.rfilename, sibling.size) for sibling in plain.siblings or ()] == [(".gitattributes", None)]


@pytest.mark.parametrize("redirect", [False, True])
def test_downloads(tmp_path: Path, redirect: bool) -> None:
    with HubServer(TOKENS, redirect=redirect) as server, hub_client(server, tmp_path, "hf_r"):
        commit = server.make_repo("org/secret", {"step1000": FILES}, private=True).commits("step1000")[0]
        for name, data in FILES.items():
            path = hf_hub_download("org/secret", name, revision="step1000")
            with open(path, "rb") as file:
                assert file.read() == data
            assert commit.id in path
        with HfFileSystem(skip_instance_cache=True).open(
            "org/secret@step1000/model.safetensors", block_size=1000, cache_type="none"
        ) as file:
            assert file.seek(300) == 300
            assert file.read(500) == WEIGHTS[300:800]
            assert file.seek(-5, 2) == len(WEIGHTS) - 5
            assert file.read() == WEIGHTS[-5:]
        fetched = [request for request in server.log if request.path.startswith("/storage/")]
        assert bool(fetched) == redirect
        assert not any("Authorization" in request.headers for request in fetched)


def test_headers_of_a_download(server: HubServer, api: HfApi) -> None:
    commit = server.make_repo("org/model", {"main": FILES}).commits()[0]
    url = f"{server.endpoint}/org/model/resolve/main/model.safetensors"

    def get(range_: str, **headers: str) -> tuple[int, str | None, bytes]:
        answer = get_session().get(url, headers={"Range": range_, **headers})
        return answer.status_code, answer.headers.get("Content-Range"), answer.content

    size, etag = len(WEIGHTS), f'"{sha256(WEIGHTS)}"'
    assert get("bytes=10-19") == (206, f"bytes 10-19/{size}", WEIGHTS[10:20])
    assert get(f"bytes={size - 3}-") == (206, f"bytes {size - 3}-{size - 1}/{size}", WEIGHTS[-3:])
    assert get("bytes=-4") == (206, f"bytes {size - 4}-{size - 1}/{size}", WEIGHTS[-4:])
    assert get("bytes=0-99999999") == (206, f"bytes 0-{size - 1}/{size}", WEIGHTS)
    assert get(f"bytes={size}-")[:2] == (416, f"bytes */{size}")
    assert get("bytes=0-0", **{"If-Range": etag})[0] == 206
    assert get("bytes=0-0", **{"If-Range": '"another"'}) == (200, None, WEIGHTS)
    head = get_session().head(url)
    assert (head.headers["X-Repo-Commit"], head.headers["ETag"]) == (commit.id, etag)
    assert (head.headers["X-Linked-Etag"], head.headers["X-Linked-Size"]) == (etag, str(size))
    assert (head.headers["Content-Length"], head.content) == (str(size), b"")
    plain = get_session().head(url.replace("model.safetensors", "config.json"))
    assert plain.headers["ETag"] == f'"{commit.blobs["config.json"].oid}"'
    assert "X-Linked-Etag" not in plain.headers
