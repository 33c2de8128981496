"""The local Hub answers the real client as the Hub does, and fails as it is told to."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    constants,
    get_session,
    hf_hub_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from tests.hub_server import GITATTRIBUTES, HubServer, environment, hub_client

# The client uploads LFS files in the way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKENS = {"hf_w": "write", "hf_r": "read", "hf_old": "expired"}
WEIGHTS = bytes(range(256)) * 40
COMMIT = "POST .*/commit/"


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
def waits(server, tmp_path) -> Iterator[list[float]]:
    with hub_client(server, tmp_path / "home", "hf_w") as waits:
        yield waits


@pytest.fixture
def api(waits) -> HfApi:
    return HfApi()


def add(**files: bytes) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Tokens and repos


def test_whoami(api):
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("user", ["org"])
    assert me["auth"]["accessToken"]["role"] == "write"
    for token in ("hf_old", "hf_unknown"):
        with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
            api.whoami(token=token)
        assert caught.value.response.status_code == 401


def test_repos_are_created_once_and_in_own_namespaces(server, api):
    url = api.create_repo("org/model", private=True)
    assert (str(url), url.repo_id) == (f"{server.endpoint}/org/model", "org/model")
    assert server.repo("org/model").private
    assert server.repo("org/model").files() == {".gitattributes": GITATTRIBUTES}
    assert api.create_repo("org/model", exist_ok=True).repo_id == "org/model"
    with pytest.raises(HfHubHTTPError, match="already created") as caught:
        api.create_repo("org/model")
    assert caught.value.response.status_code == 409
    assert api.create_repo("mine").repo_id == "user/mine"
    for name, token in (("strangers/model", "hf_w"), ("org/other", "hf_r")):
        with pytest.raises(HfHubHTTPError, match="You don't have the rights to create") as caught:
            api.create_repo(name, token=token)
        assert caught.value.response.status_code == 403
    assert set(server.repos) == {"org/model", "user/mine"}
    assert api.create_repo("org/model", token="hf_r", exist_ok=True).repo_id == "org/model"


@pytest.mark.parametrize(
    ("token", "status", "kind", "message"),
    [
        (False, 401, RepositoryNotFoundError, "Invalid username or password"),
        ("hf_unknown", 401, HfHubHTTPError, "Invalid credentials in Authorization header"),
        ("hf_old", 401, RepositoryNotFoundError, "is expired"),
        ("hf_r", 403, HfHubHTTPError, "write token"),
    ],
)
def test_who_may_not_write(server, api, token, status, kind, message):
    repo = server.make_repo("org/model")
    for attempt in (
        lambda: api.create_commit("org/model", add(a__txt=b"a"), commit_message="a", token=token),
        lambda: api.create_branch("org/model", branch="b", token=token),
    ):
        with pytest.raises(kind, match=message) as caught:
            attempt()
        assert (type(caught.value), caught.value.response.status_code) == (kind, status)
    assert len(repo.history) == 1
    assert list(repo.refs) == ["refs/heads/main"]


def test_what_is_not_there_and_what_is_private(server, api):
    server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    server.make_repo("org/secret", {"main": {"a.txt": b"a"}}, private=True)
    server.make_repo("strangers/secret", private=True)
    assert api.model_info("org/secret", token="hf_r").private
    for name, token, status in [
        ("org/none", "hf_w", 404),
        ("org/none", False, 401),
        ("org/secret", False, 401),
        ("strangers/secret", "hf_w", 404),
    ]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            api.model_info(name, token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(name, "a.txt", token=token)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/model", revision="step1")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "a.txt", revision="step1")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "b.txt")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/model", "none"))
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("org/model", add(a__txt=b"b"), commit_message="a", revision="step1")


# Commits


def test_a_commit_uploads_plain_whole_and_parted_files(server, api, tmp_path):
    repo = server.make_repo("org/model")
    (tmp_path / "big.safetensors").write_bytes(WEIGHTS)
    operations = [CommitOperationAdd("sub/big.safetensors", tmp_path / "big.safetensors")]
    operations += add(small__bin=b"small", config__json=b"{}", empty__bin=b"")
    commit = api.create_commit("org/model", operations, commit_message="title", commit_description="text")

    made = repo.commits()[0]
    assert (made.id, made.message, made.description, made.parent) == (commit.oid, "title", "text", repo.first.id)
    assert made.files == {
        ".gitattributes": GITATTRIBUTES,
        "sub/big.safetensors": WEIGHTS,
        "small.bin": b"small",
        "config.json": b"{}",
        "empty.bin": b"",
    }
    assert {path for path, blob in made.blobs.items() if blob.lfs} == {"sub/big.safetensors", "small.bin"}
    big, small = f"/storage/org/model/{sha256(WEIGHTS)}", f"/storage/org/model/{sha256(b'small')}"
    asked = [(method, target) for method, target in server.requests if method != "PUT"]
    assert asked[:2] == [
        ("POST", "/api/models/org/model/preupload/main"),
        ("POST", "/org/model.git/info/lfs/objects/batch"),
    ]
    assert sorted(asked[2:-1]) == [
        ("POST", f"/complete/org/model/{sha256(WEIGHTS)}"),
        ("POST", "/org/model.git/info/lfs/objects/verify"),
        ("POST", "/org/model.git/info/lfs/objects/verify"),
    ]
    assert asked[-1] == ("POST", "/api/models/org/model/commit/main")
    puts = [request for request in server.log if request.method == "PUT"]
    assert sorted(request.target for request in puts) == sorted([small, f"{big}/1", f"{big}/2", f"{big}/3"])
    assert not any("Authorization" in request.headers for request in puts)


def test_what_has_been_uploaded_is_not_uploaded_again(server, api):
    repo = server.make_repo("org/model", {"main": {"a.bin": b"same", "a.txt": b"same"}})
    head = repo.commits()[0].id
    assert api.create_commit("org/model", add(a__bin=b"same", a__txt=b"same"), commit_message="none").oid == head
    assert "/commit/" not in "".join(target for _, target in server.requests)
    api.create_commit("org/model", add(b__bin=b"same"), commit_message="copy")
    assert repo.files()["b.bin"] == b"same"
    assert not any(method == "PUT" for method, _ in server.requests)


def test_commits_delete_copy_and_may_be_empty(server, api):
    repo = server.make_repo("org/model", {"main": {"a.bin": b"a", "a.txt": b"t", "sub/b.txt": b"b", "sub/c.txt": b"c"}})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("sub/"), CommitOperationCopy("a.bin", "d.bin")]
    api.create_commit("org/model", operations, commit_message="less")
    assert repo.files() == {"a.bin": b"a", "d.bin": b"a"}
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("a.txt", "org/model")
    header = b'{"key": "header", "value": {"summary": "empty"}}'
    url = f"{server.endpoint}/api/models/org/model/commit/main"
    answer = get_session().post(url, content=header, headers={"Authorization": "Bearer hf_w"})
    assert answer.json()["commitOid"] == repo.commits()[0].id
    assert [commit.message for commit in repo.commits()] == ["empty", "less", "files of main", "initial commit"]


def test_upload_folder(server, api, tmp_path):
    repo = server.make_repo("org/model")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "out" / "sub" / "config.json").write_text("{}")
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n")
    api.create_branch("org/model", branch="ema")
    api.upload_folder(repo_id="org/model", folder_path=tmp_path / "out", revision="ema", ignore_patterns="*.md")
    assert repo.files("ema") == {
        ".gitattributes": GITATTRIBUTES,
        "model.safetensors": WEIGHTS,
        "sub/config.json": b"{}",
    }
    api.upload_folder(repo_id="org/model", folder_path=tmp_path / "out", path_in_repo="x", delete_patterns="*")
    assert set(repo.files()) == {".gitattributes", "x/model.safetensors", "x/sub/config.json", "x/README.md"}


def test_branches_refs_and_commits(server, api):
    repo = server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    api.create_branch("org/model", branch="step1000")
    api.create_branch("org/model", branch="a/b", revision=repo.first.id)
    api.create_branch("org/model", branch="step1000", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already exists") as caught:
        api.create_branch("org/model", branch="step1000")
    assert caught.value.response.status_code == 409
    with pytest.raises(BadRequestError, match="Invalid reference"):
        api.create_branch("org/model", branch="refs/pr/1")
    with pytest.raises(RevisionNotFoundError):
        api.create_branch("org/model", branch="c", revision="none")
    api.create_commit("org/model", add(b__txt=b"b"), commit_message="b", revision="a/b")
    branches = {branch.name: branch.target_commit for branch in api.list_repo_refs("org/model").branches}
    assert branches == {
        "main": repo.commits()[0].id,
        "step1000": repo.commits()[0].id,
        "a/b": repo.commits("a/b")[0].id,
    }
    assert {ref.removeprefix("refs/heads/"): commit for ref, commit in repo.refs.items()} == branches
    listed = api.list_repo_commits("org/model", revision="a/b")
    assert [(c.commit_id, c.title) for c in listed] == [(c.id, c.message) for c in repo.commits("a/b")]
    assert [c.title for c in listed] == ["b", "initial commit"]
    api.delete_branch("org/model", branch="a/b")
    assert list(repo.refs) == ["refs/heads/main", "refs/heads/step1000"]


@pytest.mark.parametrize("name", ["org/model", "strangers/model"])
def test_pull_requests(server, api, name):
    repo = server.make_repo(name, {"main": {"a.bin": b"a"}})
    if name.startswith("strangers"):
        with pytest.raises(HfHubHTTPError, match="pass `create_pr=1`") as caught:
            api.create_commit(name, add(a__bin=b"b"), commit_message="b")
        assert caught.value.response.status_code == 403
    commit = api.create_commit(name, add(a__bin=b"b"), commit_message="b", create_pr=True)
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert (repo.files()["a.bin"], repo.files("refs/pr/1")["a.bin"]) == (b"a", b"b")
    assert repo.refs["refs/pr/1"] == commit.oid
    refs = api.list_repo_refs(name, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", commit.oid)]
    assert HfFileSystem(skip_instance_cache=True).read_bytes(f"{name}@refs/pr/1/a.bin") == b"b"


def test_a_commit_on_another_parent_is_refused(server, api):
    repo = server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    head = repo.commits()[0].id
    api.create_commit("org/model", add(a__txt=b"b"), commit_message="b", parent_commit=head[:7])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit("org/model", add(a__txt=b"c"), commit_message="c", parent_commit=head)
    assert caught.value.response.status_code == 412
    assert (repo.files()["a.txt"], len(repo.commits())) == (b"b", 3)
    api.create_commit("org/model", add(a__txt=b"c"), commit_message="c", parent_commit=head, create_pr=True)
    assert [commit.message for commit in repo.commits("refs/pr/1")] == ["c", "files of main", "initial commit"]


def test_of_two_commits_at_once_on_one_parent_one_is_made(server, api):
    repo = server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    head, met, outcomes = repo.commits()[0].id, threading.Barrier(2), []
    server.fail(COMMIT, lambda request: met.wait(10), times=2)

    def commit(data: bytes) -> None:
        try:
            api.create_commit("org/model", add(a__txt=data), commit_message="b", parent_commit=head)
            outcomes.append(200)
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=commit, args=(data,)) for data in (b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200, 412]
    assert len(repo.commits()) == 3


def test_ids_are_those_of_git_and_the_same_in_every_run():
    ids = []
    for _ in range(2):
        with HubServer() as server:
            repo = server.make_repo("org/model", {"main": {"a.txt": b"hello\n", "a.bin": b"hello\n"}})
            repo.write({"b.txt": b"b"}, delete=["a.bin"])
            ids.append([commit.id for commit in repo.commits()])
    assert ids[0] == ids[1]
    assert all(len(commit) == 40 for commit in ids[0])
    assert set(repo.files()) == {"a.txt", "b.txt"}
    assert repo.commits()[1].blobs["a.txt"].oid == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert repo.commits()[1].blobs["a.bin"].etag == sha256(b"hello\n")


# Listings and downloads

FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "sub/a.txt": b"a", "sub/deep/b.txt": b"b"}


@pytest.mark.parametrize("page_size", [None, 2])
def test_listings(tmp_path, page_size):
    with HubServer(page_size=page_size) as server, hub_client(server, tmp_path):
        api, repo = HfApi(), server.make_repo("org/model", {"step1000": FILES})
        changed = repo.write({"config.json": b"{ }"}, "step1000")

        def tree(path: str | None = None, **options: bool) -> dict[str, object]:
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


def test_model_info(server, api):
    repo = server.make_repo("org/model", {"main": FILES})
    info = api.model_info("org/model", files_metadata=True)
    assert (info.id, info.sha, info.private) == ("org/model", repo.commits()[0].id, False)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings}
    assert {name: sibling.size for name, sibling in siblings.items()} == {n: len(data) for n, data in FILES.items()}
    assert siblings["model.safetensors"].lfs.sha256 == sha256(WEIGHTS)
    assert siblings["config.json"].lfs is None
    assert siblings["config.json"].blob_id == repo.commits()[0].blobs["config.json"].oid
    plain = api.model_info("org/model", revision=repo.first.id)
    assert [(sibling.rfilename, sibling.size) for sibling in plain.siblings] == [(".gitattributes", None)]


@pytest.mark.parametrize("redirect", [False, True])
def test_downloads(tmp_path, redirect):
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


def test_headers_of_a_download(server, api):
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


# Failures


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
def test_a_commit_that_fails_is_made_whole_or_not_at_all_and_sent_once(server, api, waits, how, kind, made):
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
def test_the_client_itself_tries_the_other_steps_again(server, api, waits, tmp_path, step, how):
    repo = server.make_repo("org/model")
    (tmp_path / "a.safetensors").write_bytes(WEIGHTS)
    failure = server.fail(step, how)
    operations = [CommitOperationAdd("a.safetensors", tmp_path / "a.safetensors")]
    api.create_commit("org/model", operations, commit_message="a")
    assert repo.files()["a.safetensors"] == WEIGHTS
    assert (len(failure.hits), waits) == (1, [1])


def test_an_upload_that_fails_for_good_hides_its_cause(server, api, waits):
    repo = server.make_repo("org/model")
    server.fail("PUT", 500, times=math.inf)
    with pytest.raises(RuntimeError, match="Error while uploading 'a.bin'") as caught:
        api.create_commit("org/model", add(a__bin=b"a"), commit_message="a")
    assert isinstance(caught.value.__cause__, HfHubHTTPError)
    assert waits == [1, 2, 4, 8, 8]
    assert len(repo.history) == 1


def test_only_new_operations_find_what_a_lost_answer_has_committed(server, api):
    repo = server.make_repo("org/model")
    operations = add(a__txt=b"a")
    server.fail(COMMIT, "cut after")
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_commit("org/model", operations, commit_message="a")
    assert api.create_commit("org/model", add(a__txt=b"a"), commit_message="a").oid == repo.commits()[0].id
    assert len(repo.commits()) == 2
    api.create_commit("org/model", operations, commit_message="a")
    assert len(repo.commits()) == 3


def test_what_the_client_waits_for(server, api, waits):
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


def test_a_server_that_is_down(server, api, waits):
    repo = server.make_repo("org/model")
    with server.down():
        with pytest.raises(httpx2.ConnectError):
            api.model_info("org/model")
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download("org/model", ".gitattributes")
    api.create_commit("org/model", add(a__txt=b"a"), commit_message="a")
    assert repo.files()["a.txt"] == b"a"


def test_the_kth_request_a_pattern_and_a_predicate(server, api):
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


def test_a_random_share_is_the_same_for_the_same_seed(tmp_path):
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
def test_downloads_that_fail(tmp_path, monkeypatch, redirect):
    with HubServer(TOKENS, redirect=redirect) as server, hub_client(server, tmp_path) as waits:
        server.make_repo("org/model", {"main": FILES})
        path = "GET /storage/" if redirect else "GET .*/resolve/"
        fs = HfFileSystem(skip_instance_cache=True)

        def read() -> bytes:
            with fs.open("org/model/model.safetensors", block_size=4000, cache_type="none") as file:
                file.seek(1000)
                return file.read(2000)

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


def test_a_download_that_was_cut_is_tried_again(server, api, waits):
    server.make_repo("org/model", {"main": FILES})
    server.fail("GET .*/resolve/", "short")
    with open(hf_hub_download("org/model", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert [method for method, _ in server.requests] == ["HEAD", "GET", "GET"]
    assert waits == [1]


def test_an_object_that_changes_between_two_requests(server, api):
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


def test_a_process_of_its_own(server, tmp_path):
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


def test_errors_of_the_server_itself_are_not_taken_for_the_hubs(tmp_path):
    with (
        pytest.raises(AssertionError, match="the server itself failed:\nPOST /api/repos/create"),
        HubServer(TOKENS) as server,
        hub_client(server, tmp_path, "hf_w"),
    ):
        headers = {"Authorization": "Bearer hf_w"}
        assert get_session().post(f"{server.endpoint}/api/repos/create", headers=headers).status_code == 500
