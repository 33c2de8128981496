"""`belay push` with the real client against a local Hub: one commit with all of it, or nothing, whatever fails."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download

from belay_cli import average
from belay_cli.publish import connection, push
from tests.conftest import belay_process, make_files, make_run
from tests.hub_server import HubServer, environment, hub_client

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKENS = {"hf_w": "write", "hf_r": "read", "hf_old": "expired"}
FILES = [
    *(".gitattributes", "README.md", "belay.json", "coefficients.png", "config.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    "tokenizer.json",
]


@pytest.fixture
def server(tmp_path):
    with HubServer(tokens=TOKENS) as server:
        yield server


@pytest.fixture
def client(server, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "pause", lambda attempt, wanted: None)
    monkeypatch.setattr(connection, "pause", lambda attempt, wanted: None)
    with hub_client(server, tmp_path / "home", token="hf_w"):
        yield


@pytest.fixture
def output(tmp_path):
    average([make_run(tmp_path / "run")], "out", max_shard_size="1700B")
    return "out"


def local(output="out"):
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in Path(output).rglob("*")
        if path.is_file() and ".belay" not in path.parts
    }


def published(server, revision="main"):
    """The commits that belay made, and what the newest commit holds."""
    repo = server.repo("org/name")
    return [c for c in repo.commits(revision) if "belay.json" in c.files], repo.files(revision)


def check_whole(server, revision="main", commits=1):
    made, files = published(server, revision)
    assert len(made) == commits
    assert sorted(files) == FILES
    for name, content in local().items():
        assert files[name] == content, name


def test_one_commit_with_exactly_these_files(server, client, output, belay):
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)
    (commit,), _ = published(server)
    assert commit.message == "Upload an average of checkpoints, made with belay"
    size = sum(len(commit.files[name]) for name in FILES[1:]) / 1e3
    assert ran.out == f"✓ 8 files, {size:.1f} kB in one commit: {server.endpoint}/org/name/commit/{commit.id}\n"
    assert sum(1 for method, path in server.requests if "/commit/" in path) == 1


def test_pushing_it_again_is_nothing_to_do(server, client, output, belay):
    assert belay("push", output, "org/name").code == 0
    asked = len(server.requests)
    ran = belay("push", output, "org/name")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"✓ nothing to do, it is there already: {server.endpoint}/org/name\n"
    assert all(method in ("GET", "HEAD") for method, _ in server.requests[asked:])
    check_whole(server)


def test_a_server_that_does_not_name_files_as_git_does(server, client, output, belay):
    server.git_names = False
    server.fail("POST .*/commit/", "cut after")
    assert belay("push", output, "org/name").code == 0
    check_whole(server)
    again = belay("push", output, "org/name")
    assert (again.code, again.err) == (0, "")
    assert "nothing to do" in again.out
    check_whole(server)


def test_what_the_repository_ignores_is_not_taken_for_published(server, client, output, belay):
    server.ignored = {"belay.json"}
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == (
        f"belay: the commit was made, but belay.json did not arrive in {server.endpoint}/org/name\n"
        "       is it in the repository's .gitignore?\n"
    )


def test_a_commit_that_was_made_is_a_success_though_nobody_can_look_at_it(server, client, output, belay):

    def after_the_commit(request):
        return "/tree/" in request.target and any("/commit/" in earlier.target for earlier in server.log)

    server.fail(after_the_commit, 503, times=math.inf)
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    url = f"{server.endpoint}/org/name/commit/{server.repo('org/name').commits()[0].id}"
    assert ran.err.startswith(f"note: {url} was made, and what it holds could not be looked at: ")
    check_whole(server)


def test_options_named_as_in_hf_upload(server, client, output, belay):
    options = ["--commit-message", "First", "--commit-description", "Why", "--private", "--revision", "ema"]
    ran = belay("push", output, "org/name", *options, "--json")
    assert ran.code == 0
    (commit,), files = published(server, "ema")
    assert (commit.message, commit.description) == ("First", "Why")
    assert server.repo("org/name").private
    assert server.repo("org/name").files("main").keys() == {".gitattributes"}
    done = ran.json
    assert (done["status"], done["revision"]) == ("committed", "ema")
    assert {file["path"] for file in done["files"]} | {".gitattributes"} == set(files)
    assert {file["action"] for file in done["files"]} == {"add"}


def test_a_pull_request(server, client, output, belay):
    server.make_repo("org/name", {"main": {"other.txt": b"kept"}})
    ran = belay("push", output, "org/name", "--create-pr", "--json")
    assert ran.json["url"].endswith("/org/name/discussions/1")
    repo = server.repo("org/name")
    assert set(repo.files("refs/pr/1")) | {".gitattributes"} == {*FILES, "other.txt"}
    assert "belay.json" not in repo.files("main")
    again = belay("push", output, "org/name", "--create-pr", "--json")
    assert (again.code, again.json["status"], again.json["url"]) == (0, "unchanged", ran.json["url"])
    assert "refs/pr/2" not in repo.refs


def test_what_is_downloaded_verifies(server, client, output, belay, tmp_path):
    assert belay("push", output, "org/name").code == 0
    there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    ran = belay("verify", there, "--checkpoints", tmp_path / "run", "--sample", "all")
    assert ran.code == 0, ran.out + ran.err


def test_a_single_file_is_published_with_its_record(server, client, belay, tmp_path):
    average(make_files(tmp_path / "ckpts"), "averaged.safetensors")
    assert belay("push", "averaged.safetensors", "org/name").code == 0
    _, files = published(server)
    assert sorted(files) == [".gitattributes", "README.md", "averaged.safetensors", "belay.json", "coefficients.png"]
    there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    assert belay("verify", there, "--checkpoints", tmp_path / "ckpts").code == 0


def test_fewer_shards_leave_no_old_ones(server, client, output, belay, tmp_path):
    assert belay("push", output, "org/name").code == 0
    server.repo("org/name").write({"notes.txt": b"mine", "unet/model.safetensors": b"mine"})
    average([tmp_path / "run"], "out", overwrite=True)
    ran = belay("push", output, "org/name", "--json")
    assert ran.code == 0
    _, files = published(server)
    assert {name for name in files if "safetensors" in name} == {"model.safetensors", "unet/model.safetensors"}
    assert "notes.txt" in files
    deleted = [file["path"] for file in ran.json["files"] if file["action"] == "delete"]
    assert deleted == [name for name in FILES if "safetensors" in name]


def test_the_card_on_the_hub_is_kept(server, client, output, belay):
    server.make_repo("org/name", {"main": {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n\nMy words.\n"}})
    assert belay("push", output, "org/name").code == 0
    text = server.repo("org/name").files()["README.md"].decode()
    assert text.count("My words.") == 1
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert "weight-averaging" in card.data.tags
    assert belay("push", output, "org/name", "--json").json["status"] == "unchanged"


def test_a_card_in_the_output_goes_before_it(server, client, output, belay):
    server.make_repo("org/name", {"main": {"README.md": b"# Old\n"}})
    Path(output, "README.md").write_text("# New\n")
    assert belay("push", output, "org/name").code == 0
    text = server.repo("org/name").files()["README.md"].decode()
    assert "# New" in text
    assert "# Old" not in text


def test_the_card_inherits_from_the_run(server, client, belay, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n\n# The run\n")
    average([run], "out")
    assert belay("push", "out", "org/name").code == 0
    card = ModelCard(server.repo("org/name").files()["README.md"].decode())
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")


def test_evaluation_results(server, client, output, belay):
    Path("results.json").write_text('{"accuracy": 0.96}')
    assert belay("push", output, "org/name", "--eval-results", "results.json").code == 0
    card = ModelCard(server.repo("org/name").files()["README.md"].decode())
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("accuracy", 0.96)]
    assert belay("push", output, "org/name", "--eval-results", "results.json", "--json").json["status"] == "unchanged"


def test_a_dry_run_changes_nothing(server, client, output, belay):
    ran = belay("push", output, "org/name", "--dry-run")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:-1]] == FILES[1:]
    assert ran.out.splitlines()[-1].startswith("would upload 8 files, ")
    assert {method for method, _ in server.requests} <= {"GET", "HEAD"}
    assert server.repos == {}


HOWS = ["refused", 500, 503, 429, "proxy", "cut before", "cut during", "cut after", "stall"]
REQUESTS = 12  # more than one push makes


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("extra", [(), ("--create-pr",), ("--revision", "ema")], ids=["main", "pr", "branch"])
def test_a_failure_at_each_request(server, client, output, belay, monkeypatch, how, extra):
    monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 0.2)
    revision = {"--create-pr": "refs/pr/1", "--revision": "ema"}.get(extra[0] if extra else "", "main")
    for number in range(1, 40):
        server.repos.clear()
        failure = server.fail(number, how, seconds=0.5, retry_after=1)
        first = belay("push", output, "org/name", *extra)
        if not failure.hits:
            assert number > REQUESTS
            break
        if first.code:
            assert first.err.startswith("belay: "), first.err
            assert "Traceback" not in first.err
            assert "unexpected" not in first.err
            repo = server.repos.get("org/name")
            assert repo is None or all(set(repo.files(ref)) == {".gitattributes"} for ref in repo.refs)
        second = belay("push", output, "org/name", *extra)
        assert second.code == 0, (number, second.err)
        check_whole(server, revision)
        assert "refs/pr/2" not in server.repo("org/name").refs


def test_a_server_that_fails_for_ever(server, client, output, belay):
    server.fail("POST .*/commit/", 503, times=math.inf)
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    error = f"{server.endpoint} failed with no luck"
    assert ran.err.splitlines() == [
        *[f"note: {error}; trying again"] * 3,
        f"belay: {error}",
        "       run the same command again",
    ]
    assert set(published(server)[1]) <= {".gitattributes"}


@pytest.mark.parametrize("how", HOWS[:2])
def test_no_server_at_all(server, client, output, belay, how):
    with server.down():
        ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == f"belay: {server.endpoint} cannot be reached\n       run the same command again\n"


def test_somebody_else_commits_meanwhile(server, client, output, belay):
    repo = server.make_repo("org/name", {"main": {"a.txt": b"1"}})
    server.fail("POST .*/commit/", lambda request: repo.write({"a.txt": b"2"}))
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == (
        "belay: somebody else changed org/name meanwhile; nothing was committed\n"
        "       look at what is there now, and run the command again\n"
    )
    assert repo.files() == {"a.txt": b"2"}


def test_a_lost_answer_under_a_newer_commit(server, client, output, belay):
    server.make_repo("org/name", {"main": {}})
    server.fail("POST .*/commit/", "cut after")
    server.fail("GET .*/commits/", lambda request: server.repo("org/name").write({"a.txt": b"on top"}))
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    commits, files = published(server)
    assert [commit.message for commit in commits] == ["written by another", push.MESSAGE]
    assert "a.txt" in files


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_r", "the token may not write to org/name"),
        ("hf_old", "the token is not valid, or has expired"),
        (None, "there is no Hugging Face token"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_tokens_that_will_not_do(server, client, output, belay, monkeypatch, token, words, exists):
    if exists:
        server.make_repo("org/name", {"main": {}})
    monkeypatch.delenv("HF_TOKEN")
    options = ["--token", token] if token else []
    ran = belay("push", output, "org/name", *options)
    assert ran.code == 1
    first, second = ran.err.splitlines()
    assert first == f"belay: {words}"
    assert "token" in second
    assert token is None or token not in ran.err
    repo = server.repos.get("org/name")
    assert repo is None or set(repo.files()) <= {".gitattributes"}


def test_private_is_not_taken_lightly(server, client, output, belay):
    server.make_repo("org/name", {"main": {}}, private=False)
    ran = belay("push", output, "org/name", "--private")
    assert ran.code == 1
    assert "exists and is public" in ran.err
    assert set(published(server)[1]) <= {".gitattributes"}


@pytest.mark.parametrize("name", [".env", "token.json", "id_rsa", "server.pem", "hf_token.txt", "aws_credentials"])
def test_secrets_by_name(server, client, output, belay, name):
    Path(output, name).write_text("x")
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith(f"belay: out/{name}: looks like a secret; nothing was uploaded\n")
    assert server.repos == {}
    assert belay("push", output, "org/name", "--exclude", name).code == 0
    assert name not in published(server)[1]


def test_secrets_by_content(server, client, output, belay):
    Path(output, "notes.md").write_text("the token is hf_" + "a" * 34)
    ran = belay("push", output, "org/name")
    assert "out/notes.md: looks like a secret" in ran.err


SECRET = "the token is hf_" + "a" * 34


@pytest.mark.parametrize("text", ["# Mine\n", SECRET])
def test_a_card_through_a_link_is_not_read(server, client, output, belay, tmp_path, text):
    (tmp_path / "elsewhere.md").write_text(text)
    Path(output, "README.md").symlink_to(tmp_path / "elsewhere.md")
    assert belay("push", output, "org/name").code == 0
    assert text.encode() not in published(server)[1]["README.md"]


def test_a_card_that_is_left_out_is_not_read(server, client, output, belay):
    Path(output, "README.md").write_text(SECRET)
    assert belay("push", output, "org/name").code == 1
    assert belay("push", output, "org/name", "--exclude", "README.md").code == 0
    assert SECRET.encode() not in published(server)[1]["README.md"]


def test_a_published_card_with_a_secret_is_not_published_again(server, client, output, belay):
    server.make_repo("org/name", {"main": {"README.md": SECRET.encode()}})
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith(
        "belay: out/README.md: the card would hold what looks like a secret; nothing was uploaded"
    )


def test_a_published_card_that_is_no_text(server, client, output, belay):
    server.make_repo("org/name", {"main": {"README.md": b"caf\xe9"}})
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == ("belay: the card on the Hub is not text in UTF-8\n       mend it there, or delete it\n")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "belay.json"])
@pytest.mark.parametrize("linked", [True, False])
def test_an_average_is_published_whole_or_not_at_all(server, client, output, belay, tmp_path, name, linked):
    if linked:
        Path(output, name).rename(tmp_path / name)
        Path(output, name).symlink_to(tmp_path / name)
    ran = belay("push", output, "org/name", *(() if linked else ("--exclude", name)))
    assert ran.code == 1
    assert f"belay: {name} would not be uploaded, and the average is nothing without it\n" in ran.err
    assert server.repos == {}


def test_other_weights_in_the_directory_are_not_uploaded(server, client, output, belay):
    for name in ("checkpoint-100/optimizer.pt", "checkpoint-100/config.json", "old.bin", "eval/scores.json"):
        Path(output, name).parent.mkdir(exist_ok=True)
        Path(output, name).write_text("x")
    ran = belay("push", output, "org/name")
    assert ran.code == 0
    assert ran.err.splitlines()[0] == (
        "note: old.bin and 2 more are not uploaded: weights that are no part of the average, or files beside them"
    )
    assert sorted(published(server)[1]) == sorted([*FILES, "eval/scores.json"])


def test_what_a_push_replaces_is_said(server, client, output, belay):
    server.make_repo("org/name", {"main": {"config.json": b"other", "README.md": b"# Mine\n"}})
    ran = belay("push", output, "org/name", "--json", "--dry-run")
    actions = {file["path"]: file["action"] for file in ran.json["files"]}
    assert actions["config.json"] == actions["README.md"] == "replace"
    assert actions["belay.json"] == "add"
    assert "config.json" in (told := belay("push", output, "org/name", "--dry-run").out)
    assert "upload, replacing the one there" in told


def test_a_repository_that_somebody_fills_meanwhile(server, client, output, belay):
    server.fail(
        "POST .*/repos/create", lambda request: server.make_repo("org/name", {"main": {"README.md": b"# Mine"}})
    )
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith("belay: somebody else changed org/name meanwhile; nothing was committed\n")
    assert server.repo("org/name").files() == {"README.md": b"# Mine"}


def test_two_first_commits_in_an_empty_repository_are_no_mixture(server, client, output, belay, tmp_path):
    server.initial_commit = False
    average([tmp_path / "run"], "other")
    second = []

    def push_another(request):
        if not second:
            second.append(None)
            second[0] = belay_process("push", "other", "org/name", env=environment(server, tmp_path / "o", "hf_w"))

    server.fail("POST .*/commit/", push_another)
    ran = belay("push", output, "org/name")
    assert (ran.code, second[0].returncode) == (0, 0), ran.err + second[0].stderr
    files = server.repo("org/name").files()
    assert sorted(files) == [name for name in FILES if name != ".gitattributes"]
    for name, content in local().items():
        assert files[name] == content, name


def test_an_empty_repository_takes_one_commit(server, client, output, belay):
    server.initial_commit = False
    server.fail("POST .*/commit/", "cut after")
    assert belay("push", output, "org/name").code == 0
    assert [c.message for c in server.repo("org/name").commits()] == [push.MESSAGE, "initial commit"]
    assert "nothing to do" in belay("push", output, "org/name").out


def test_a_new_branch_keeps_the_card_of_main(server, client, output, belay):
    server.make_repo("org/name", {"main": {"README.md": b"# Mine\n", "a.txt": b"1"}})
    assert belay("push", output, "org/name", "--revision", "ema").code == 0
    files = server.repo("org/name").files("ema")
    assert files["README.md"].decode().endswith("<!-- belay:end -->\n")
    assert "# Mine\n" in files["README.md"].decode()
    assert files["a.txt"] == b"1"
    assert server.repo("org/name").files() == {"README.md": b"# Mine\n", "a.txt": b"1"}


def test_results_that_would_go_are_said(server, client, output, belay, tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.5}')
    assert belay("push", output, "org/name", "--eval-results", tmp_path / "results.json").code == 0
    ran = belay("push", output, "org/name")
    assert "note: the evaluation results on the card go; to keep them, give them again: --eval-results\n" in ran.err


def test_a_second_pull_request_says_what_is_there(server, client, output, belay):
    server.make_repo("org/name", {"main": {"a.txt": b"1"}})
    assert belay("push", output, "org/name", "--create-pr").code == 0
    again = belay("push", output, "org/name", "--create-pr", "--json").json
    assert again["status"] == "unchanged"
    assert {file["action"] for file in again["files"]} == {"keep"}


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n", "hf_é"])
def test_a_token_that_cannot_be_one(server, client, output, belay, token):
    ran = belay("push", output, "org/name", "--token", token)
    assert ran.code == 1
    assert ran.err.startswith("belay: the token is not valid, or has expired\n")
    assert token not in ran.err


def test_debug_shows_where_and_what_to_do(server, client, output, belay):
    ran = belay("push", output, "org/name", "--token", "hf_r", "--debug")
    assert ran.code == 1
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert "belay: the token may not write to org/name\n       it needs write access" in ran.err


def test_nothing_outside_the_output_is_uploaded(server, client, output, belay, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("private")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inside.txt").write_text("private")
    Path(output, "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    Path(output, "folder").symlink_to(tmp_path / "folder")
    Path(output, ".hidden").write_text("private")
    Path(output, "extra.txt").write_text("meant")
    ran = belay("push", output, "org/name")
    assert ran.code == 0
    assert "note: link.txt is a link that leads out of out; it is not uploaded\n" in ran.err
    assert sorted(published(server)[1]) == sorted([*FILES, "extra.txt"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda: Path("out/config.json").unlink(),
        lambda: Path("out/belay.json").unlink(),
        lambda: Path("out/model-00002-of-00002.safetensors").unlink(),
        lambda: flip(Path("out/model-00001-of-00002.safetensors")),
        lambda: cut(Path("out/model-00001-of-00002.safetensors")),
    ],
)
def test_what_is_not_whole_is_not_published(server, client, output, belay, damage):
    damage()
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith("belay: out")
    assert server.repos == {}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def test_what_belay_did_not_write_is_not_published(server, client, belay, tmp_path):
    ran = belay("push", make_files(tmp_path / "x")[0], "org/name")
    assert ran.code == 1
    assert "was not written by belay" in ran.err
    assert server.repos == {}


@pytest.mark.parametrize("name", ["a/b/c", "", "a b", "-a/b", "../a", "https://huggingface.co/a/b"])
def test_names_that_are_none(server, client, output, belay, name):
    ran = belay("push", output, "--", name)
    assert ran.code == 2
    assert server.requests == []


def test_offline(server, client, output, belay, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == "belay: HF_HUB_OFFLINE is set, so the Hub is not asked\n"


def test_eight_at_once(server, tmp_path):
    """Different outputs from processes of their own: each commit is whole, whoever wins."""
    run = make_run(tmp_path / "run")
    for i in range(8):
        average([run], f"out{i}", decay=0.1 * i, max_shard_size="1700B" if i % 2 else None)
    server.make_repo("org/name", {"main": {}})
    done = {}

    def one(i):
        done[i] = belay_process(
            "push", f"out{i}", "org/name", env=environment(server, tmp_path / f"home{i}", "hf_w"), cwd=os.getcwd()
        )

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [i for i in range(8) if done[i].returncode == 0]
    assert won
    for i in range(8):
        if i not in won:
            assert done[i].stderr.splitlines()[-2] == (
                "belay: somebody else changed org/name meanwhile; nothing was committed"
            ), done[i].stderr
    commits, _ = published(server)
    assert len(commits) == len(won)
    outputs = [local(f"out{i}") for i in range(8)]
    for commit in commits:
        weights = {name: content for name, content in commit.files.items() if "safetensors" in name}
        assert any(
            weights == {name: content for name, content in output.items() if "safetensors" in name}
            and commit.files["belay.json"] == output["belay.json"]
            for output in outputs
        )


def test_the_token_is_never_shown(server, tmp_path, output):
    server.fail("POST .*/commit/", 400, times=math.inf)
    environ = environment(server, tmp_path / "home")
    for debug in ([], ["--debug"]):
        ran = belay_process("push", output, "org/name", "--token", "hf_w", *debug, env=environ, cwd=os.getcwd())
        assert ran.returncode == 1
        assert "hf_w" not in ran.stdout + ran.stderr
    assert not any(b"hf_w" in path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_average_and_push_in_one(server, client, belay, tmp_path):
    run = make_run(tmp_path / "run")
    ran = belay("average", run, "-o", "out", "--push-to-hub", "org/name", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["published"]["status"] == "committed"
    assert set(published(server)[1]) >= {"model.safetensors", "README.md"}
    assert json.loads(published(server)[1]["belay.json"])["schema"] == 1


def test_a_bad_token_is_known_before_any_work(server, client, belay, tmp_path):
    ran = belay("average", make_run(tmp_path / "run"), "--push-to-hub", "org/name", "--token", "hf_old")
    assert ran.code == 1
    assert os.listdir(".") == []


def test_options_of_the_hub_need_a_destination(server, client, belay, tmp_path):
    ran = belay("average", make_run(tmp_path / "run"), "--private")
    assert ran.code == 2
    assert ran.err == "belay: --private goes with --push-to-hub\n"


def test_a_branch_that_moved_on_during_the_run(server, client, belay, tmp_path, monkeypatch):
    from belay_cli import api

    repo, run = server.make_repo("org/name", {"main": {"a.txt": b"1"}}), api.run
    monkeypatch.setattr(api, "run", lambda *given, **more: (repo.write({"a.txt": b"2"}), run(*given, **more))[1])
    ran = belay("average", make_run(tmp_path / "run"), "-o", "out", "--push-to-hub", "org/name")
    assert ran.code == 0, ran.err
    assert repo.files()["a.txt"] == b"2"
    assert "model.safetensors" in repo.files()


def test_an_initial_commit_may_hold_more(server, client, output, belay):
    server.first_files["README.md"] = b"# A new repository\n"
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)


def test_a_commit_is_tried_again_however_long_the_upload_took(server, client, output, belay, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE_SECONDS", -1.0)
    server.fail("POST .*/commit/", 503, times=3)
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)
