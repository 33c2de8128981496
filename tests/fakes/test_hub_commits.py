"""The local Hub answers the real client as the Hub does: commits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    get_session,
)
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from tests.fakes.hub import GITATTRIBUTES, HubServer
from tests.fakes.hub_requests import COMMIT, WEIGHTS, add, sha256

# The client uploads LFS files in the way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_a_commit_uploads_plain_whole_and_parted_files(server: HubServer, api: HfApi, tmp_path: Path) -> None:
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


def test_what_has_been_uploaded_is_not_uploaded_again(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model", {"main": {"a.bin": b"same", "a.txt": b"same"}})
    head = repo.commits()[0].id
    assert api.create_commit("org/model", add(a__bin=b"same", a__txt=b"same"), commit_message="none").oid == head
    assert "/commit/" not in "".join(target for _, target in server.requests)
    api.create_commit("org/model", add(b__bin=b"same"), commit_message="copy")
    assert repo.files()["b.bin"] == b"same"
    assert not any(method == "PUT" for method, _ in server.requests)


def test_commits_delete_copy_and_may_be_empty(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model", {"main": {"a.bin": b"a", "a.txt": b"t", "sub/b.txt": b"b", "sub/c.txt": b"c"}})
    operations: list[Any] = [
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("sub/"),
        CommitOperationCopy("a.bin", "d.bin"),
    ]
    api.create_commit("org/model", operations, commit_message="less")
    assert repo.files() == {"a.bin": b"a", "d.bin": b"a"}
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("a.txt", "org/model")
    header = b'{"key": "header", "value": {"summary": "empty"}}'
    url = f"{server.endpoint}/api/models/org/model/commit/main"
    answer = get_session().post(url, content=header, headers={"Authorization": "Bearer hf_w"})
    assert answer.json()["commitOid"] == repo.commits()[0].id
    assert [commit.message for commit in repo.commits()] == ["empty", "less", "files of main", "initial commit"]


def test_upload_folder(server: HubServer, api: HfApi, tmp_path: Path) -> None:
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


def test_branches_refs_and_commits(server: HubServer, api: HfApi) -> None:
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
def test_pull_requests(server: HubServer, api: HfApi, name: str) -> None:
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
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests or ()] == [("refs/pr/1", commit.oid)]
    assert HfFileSystem(skip_instance_cache=True).read_bytes(f"{name}@refs/pr/1/a.bin") == b"b"


def test_a_commit_on_another_parent_is_refused(server: HubServer, api: HfApi) -> None:
    repo = server.make_repo("org/model", {"main": {"a.txt": b"a"}})
    head = repo.commits()[0].id
    api.create_commit("org/model", add(a__txt=b"b"), commit_message="b", parent_commit=head[:7])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit("org/model", add(a__txt=b"c"), commit_message="c", parent_commit=head)
    assert caught.value.response.status_code == 412
    assert (repo.files()["a.txt"], len(repo.commits())) == (b"b", 3)
    api.create_commit("org/model", add(a__txt=b"c"), commit_message="c", parent_commit=head, create_pr=True)
    assert [commit.message for commit in repo.commits("refs/pr/1")] == ["c", "files of main", "initial commit"]


def test_of_two_commits_at_once_on_one_parent_one_is_made(server: HubServer, api: HfApi) -> None:
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


def test_ids_are_those_of_git_and_the_same_in_every_run() -> None:
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
