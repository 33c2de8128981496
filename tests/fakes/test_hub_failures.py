"""The local Hub fails as it is told to, and the real client meets it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, constants, get_session, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from tests.fakes.hub import HubServer, environment, hub_client
from tests.fakes.hub_requests import COMMIT, FILES, TOKENS, WEIGHTS, add, sha256

# The client uploads LFS files in the way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize(
    ("how", "kind", "made"),
    [
        ("refused", httpx2.TransportError, False),
        ("cut before", httpx2.RemoteProtocolError, False),
        ("cut during", httpx2.TransportError, False),
        ("cut after", httpx2.RemoteProtocolError, True),
        ("short", httpx2.RemoteProtocolError, True),
        ("stall", httpx2.RemoteProtocolError, False),
        (500, HfHubHTTPError, False),
        (503, HfHubHTTPError, False),
        (429, HfHubHTTPError, False),
    ],
)
def test_a_commit_that_fails_is_made_whole_or_not_at_all_and_sent_once(
    server: HubServer, api: HfApi, waits: list[float], how: str | int, kind: type[Exception], made: bool
) -> None:
    repo = server.make_repo("org/model")
    failure = server.fail(COMMIT, how, seconds=0.05)
    with pytest.raises(kind):
        api.create_commit("org/model", add(a__bin=b"a", a__txt=b"a" * 100_000), commit_message="a")
    assert len(failure.hits) == 1
    assert len(repo.history) == 1 + made
    assert waits == []
    api.create_commit("org/model", add(a__bin=b"a", a__txt=b"a" * 100_000), commit_message="a")
    assert set(repo.files()) == {".gitattributes", "a.bin", "a.txt"}
    assert len(repo.history) == 2


@pytest.mark.parametrize("step", ["/preupload/", "/objects/batch", "PUT .*/1", "PUT .*/2", "/complete/", "/verify"])
@pytest.mark.parametrize("how", ["refused", "cut before", "cut during", "cut after", 503])
def test_the_client_itself_tries_the_other_steps_again(
    server: HubServer, api: HfApi, waits: list[float], tmp_path: Path, step: str, how: str | int
) -> None:
    repo = server.make_repo("org/model")
    (tmp_path / "a.safetensors").write_bytes(WEIGHTS)
    failure = server.fail(step, how)
    operations = [CommitOperationAdd("a.safetensors", tmp_path / "a.safetensors")]
    api.create_commit("org/model", operations, commit_message="a")
    assert repo.files()["a.safetensors"] == WEIGHTS
    assert (len(failure.hits), waits) == (1, [1])


def test_an_upload_that_fails_for_good_hides_its_cause(server: HubServer, api: HfApi, waits: list[float]) -> None:
    repo = server.make_repo("org/model")
    server.fail("PUT", 500, times=math.inf)
    with pytest.raises(RuntimeError, match="Error while uploading 'a.bin'") as caught:
        api.create_commit("org/model", add(a__bin=b"a"), commit_message="a")
    assert isinstance(caught.value.__cause__, HfHubHTTPError)
    assert waits == [1, 2, 4, 8, 8]
    assert len(repo.history) == 1


def test_only_new_operations_find_what_a_lost_answer_has_committed(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model")
    operations = add(a__txt=b"a")
    server.fail(COMMIT, "cut after")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_commit("org/model", operations, commit_message="a")
    assert api.create_commit("org/model", add(a__txt=b"a"), commit_message="a").oid == repo.commits()[0].id
    assert len(repo.commits()) == 2
    api.create_commit("org/model", operations, commit_message="a")
    assert len(repo.commits()) == 3


def test_what_the_client_waits_for(server: HubServer, api: HfApi, waits: list[float]) -> None:
    server.make_repo("org/model")
    server.fail("/preupload/", 429, ratelimit=7)
    server.fail("/preupload/", 429, retry_after=5)
    server.fail("/preupload/", 503, retry_after=3)
    server.fail("/preupload/", 500)
    api.create_commit("org/model", add(a__txt=b"a"), commit_message="a")
    assert waits == [8, 6, 4, 8]  # what it is told and 1 more; else 1, 2, 4, 8 by the number of the try
    waits.clear()
    server.fail("/preupload/", 500, times=math.inf)
    with pytest.raises(HfHubHTTPError, match="Internal Error"):
        api.create_commit("org/model", add(b__txt=b"b"), commit_message="b")
    assert waits == [1, 2, 4, 8, 8]


def test_a_server_that_is_down(server: HubServer, api: HfApi, waits: list[float]) -> None:
    repo = server.make_repo("org/model")
    with server.down():
        with pytest.raises(httpx2.ConnectError):
            api.model_info("org/model")
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download("org/model", ".gitattributes")
    api.create_commit("org/model", add(a__txt=b"a"), commit_message="a")
    assert repo.files()["a.txt"] == b"a"


def test_the_kth_request_a_pattern_and_a_predicate(server: HubServer, api: HfApi) -> None:
    server.make_repo("org/model")

    def statuses(count: int) -> list[int]:
        url = f"{server.endpoint}/api/models/org/model"
        return [get_session().get(url, headers={"X-Try": str(n)}).status_code for n in range(count)]

    statuses(2)
    third = server.fail(3, 500)
    assert statuses(5) == [200, 200, 500, 200, 200]
    assert [request.number for request in third.hits] == [5]
    server.fail("GET /api/models", 503, skip=1, times=2)
    assert statuses(5) == [200, 503, 503, 200, 200]
    server.fail(lambda request: request.headers["X-Try"] == "3", 502)
    assert statuses(5) == [200, 200, 200, 502, 200]
    server.fail(2, 504, times=math.inf)
    assert statuses(4) == [200, 504, 504, 504]
    with pytest.raises(ValueError, match="no such failure: 'cut'"):
        server.fail(1, "cut")


def test_a_random_share_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    runs = []
    for seed in (1, 1, 2):
        with HubServer() as server, hub_client(server, tmp_path):
            failure = server.fail_share(0.3, 500, seed=seed, which="GET")
            for _ in range(60):
                get_session().get(f"{server.endpoint}/api/agent-harnesses")
            runs.append([request.number for request in failure.hits])
    assert runs[0] == runs[1] != runs[2]
    assert all(5 < len(run) < 35 for run in runs)


@pytest.mark.parametrize("redirect", [False, True])
def test_downloads_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirect: bool) -> None:
    with HubServer(TOKENS, redirect=redirect) as server, hub_client(server, tmp_path) as waits:
        server.make_repo("org/model", {"main": FILES})
        path = "GET /storage/" if redirect else "GET .*/resolve/"
        fs = HfFileSystem(skip_instance_cache=True)

        def read() -> bytes:
            with fs.open("org/model/model.safetensors", block_size=4000, cache_type="none") as file:
                file.seek(1000)
                return bytes(file.read(2000))

        for how in ("refused", "cut before", "cut during", "short", "cut after", 500, 429):
            waits.clear()
            server.fail(path, how)
            assert read() == WEIGHTS[1000:3000]
            assert waits == [1]
        server.fail(path, "short range")
        assert read() == WEIGHTS[1000:2000]  # the client does not notice
        server.fail(path, "ignore ranges")
        assert read() == WEIGHTS
        server.fail(path, "slow", seconds=0.05)
        assert read() == WEIGHTS[1000:3000]
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
        waits.clear()
        server.fail(path, "stall", seconds=60)
        assert read() == WEIGHTS[1000:3000]
        assert waits == [1]


def test_a_download_that_was_cut_is_tried_again(server: HubServer, api: HfApi, waits: list[float]) -> None:
    server.make_repo("org/model", {"main": FILES})
    server.fail("GET .*/resolve/", "short")
    with open(hf_hub_download("org/model", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert [method for method, _ in server.requests] == ["HEAD", "GET", "GET"]
    assert waits == [1]


def test_an_object_that_changes_between_two_requests(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model", {"main": FILES})
    other = bytes(reversed(WEIGHTS))
    url = f"{server.endpoint}/org/model/resolve/main/model.safetensors"

    def get() -> tuple[str, str, bytes]:
        answer = get_session().get(url, headers={"Range": "bytes=0-9"})
        return answer.headers["X-Repo-Commit"], answer.headers["ETag"].strip('"'), answer.content

    first = repo.commits()[0].id
    server.fail(2, lambda request: server.swap("org/model", "model.safetensors", other))
    assert get() == (first, sha256(WEIGHTS), WEIGHTS[:10])
    assert get() == get() == (first, sha256(other), other[:10])
    server.fail(2, lambda request: repo.write({"config.json": b"[]"}))
    assert get()[0] == first
    assert get()[0] == repo.commits()[0].id != first


def test_a_process_of_its_own(server: HubServer, tmp_path: Path) -> None:
    repo = server.make_repo("org/model")
    code = """
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
HfApi().create_commit("org/model", [CommitOperationAdd("a.bin", b"a")], commit_message="a")
print(open(hf_hub_download("org/model", "a.bin")).read())
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    env = environment(server, tmp_path / "home", "hf_w")
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "a\n"), ran.stderr
    assert repo.files()["a.bin"] == b"a"


def test_errors_of_the_server_itself_are_not_taken_for_the_hubs(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="the server itself failed:\nPOST /api/repos/create"),
        HubServer(TOKENS) as server,
        hub_client(server, tmp_path, "hf_w"),
    ):
        headers = {"Authorization": "Bearer hf_w"}
        assert get_session().post(f"{server.endpoint}/api/repos/create", headers=headers).status_code == 500
