"""`belay push` with the real client against a local Hub: one commit with all of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download

from belay_cli import average
from belay_cli.publish.destination import MESSAGE
from tests.conftest import Ran, make_files, make_run
from tests.fakes.hub import HubServer, Request
from tests.publish.pushing import FILES, check_whole, published
from tests.verification.outputs import as_before

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_one_commit_with_exactly_these_files(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    check_whole(server)
    (commit,), _ = published(server)
    assert commit.message == "Upload an average of checkpoints, made with belay"
    size = sum(len(commit.files[name]) for name in FILES[1:]) / 1e3
    assert ran.out == f"✓ 8 files, {size:.1f} kB in one commit: {server.endpoint}/org/name/commit/{commit.id}\n"
    assert sum(1 for method, path in server.requests if "/commit/" in path) == 1


def test_pushing_it_again_is_nothing_to_do(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    assert belay("push", output, "org/name").code == 0
    asked = len(server.requests)
    ran = belay("push", output, "org/name")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"✓ nothing to do, it is there already: {server.endpoint}/org/name\n"
    assert all(method in ("GET", "HEAD") for method, _ in server.requests[asked:])
    check_whole(server)


def test_a_server_that_does_not_name_files_as_git_does(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.git_names = False
    server.fail("POST .*/commit/", "cut after")
    assert belay("push", output, "org/name").code == 0
    check_whole(server)
    again = belay("push", output, "org/name")
    assert (again.code, again.err) == (0, "")
    assert "nothing to do" in again.out
    check_whole(server)


def test_what_the_repository_ignores_is_not_taken_for_published(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.ignored = {"belay.json"}
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == (
        f"belay: the commit was made, but belay.json did not arrive in {server.endpoint}/org/name\n"
        "       is it in the repository's .gitignore?\n"
    )


def test_a_commit_that_was_made_is_a_success_though_nobody_can_look_at_it(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:

    def after_the_commit(request: Request) -> bool:
        return "/tree/" in request.target and any("/commit/" in earlier.target for earlier in server.log)

    server.fail(after_the_commit, 503, times=math.inf)
    ran = belay("push", output, "org/name")
    assert ran.code == 0, ran.err
    url = f"{server.endpoint}/org/name/commit/{server.repo('org/name').commits()[0].id}"
    assert ran.err.startswith(f"note: {url} was made, and what it holds could not be looked at: ")
    check_whole(server)


def test_options_named_as_in_hf_upload(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
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


def test_a_pull_request(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    server.make_repo("org/name", {"main": {"other.txt": b"kept"}})
    ran = belay("push", output, "org/name", "--create-pr", "--json")
    assert ran.json["url"].endswith("/org/name/discussions/1")
    repo = server.repo("org/name")
    assert set(repo.files("refs/pr/1")) | {".gitattributes"} == {*FILES, "other.txt"}
    assert "belay.json" not in repo.files("main")
    again = belay("push", output, "org/name", "--create-pr", "--json")
    assert (again.code, again.json["status"], again.json["url"]) == (0, "unchanged", ran.json["url"])
    assert "refs/pr/2" not in repo.refs


def test_what_is_downloaded_verifies(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    assert belay("push", output, "org/name").code == 0
    there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    ran = belay("verify", there, "--checkpoints", tmp_path / "run", "--sample", "all")
    assert ran.code == 0, ran.out + ran.err


def test_a_copy_that_was_changed_on_purpose_is_published_with_a_note(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    Path(output, "config.json").write_text('{"architectures": ["Other"]}')
    ran = belay("push", output, "org/name")
    assert ran.code == 0
    said = "config.json is not what was written; belay verify will say so of what is published"
    assert f"note: {said}" in " ".join(ran.err.split())
    assert published(server)[1]["config.json"] == b'{"architectures": ["Other"]}'


def test_what_an_older_belay_wrote_is_published(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    as_before(Path(output))
    ran = belay("push", output, "org/name")
    assert (ran.code, "note: " in ran.err) == (0, False)
    check_whole(server)


def test_a_single_file_is_published_with_its_record(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    average(make_files(tmp_path / "ckpts"), "averaged.safetensors")
    assert belay("push", "averaged.safetensors", "org/name").code == 0
    _, files = published(server)
    assert sorted(files) == [".gitattributes", "README.md", "averaged.safetensors", "belay.json", "coefficients.png"]
    there = snapshot_download("org/name", cache_dir=tmp_path / "cache")
    assert belay("verify", there, "--checkpoints", tmp_path / "ckpts").code == 0


def test_fewer_shards_leave_no_old_ones(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path
) -> None:
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


def test_the_card_on_the_hub_is_kept(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    server.make_repo("org/name", {"main": {"README.md": b"---\nlicense: mit\n---\n\n# Mine\n\nMy words.\n"}})
    assert belay("push", output, "org/name").code == 0
    text = server.repo("org/name").files()["README.md"].decode()
    assert text.count("My words.") == 1
    card = ModelCard(text)
    assert card.data["license"] == "mit"
    assert "weight-averaging" in card.data["tags"]
    assert belay("push", output, "org/name", "--json").json["status"] == "unchanged"


def test_a_card_in_the_output_goes_before_it(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {"README.md": b"# Old\n"}})
    Path(output, "README.md").write_text("# New\n")
    assert belay("push", output, "org/name").code == 0
    text = server.repo("org/name").files()["README.md"].decode()
    assert "# New" in text
    assert "# Old" not in text


def test_the_card_inherits_from_the_run(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    (run / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n\n# The run\n")
    average([run], "out")
    assert belay("push", "out", "org/name").code == 0
    card = ModelCard(server.repo("org/name").files()["README.md"].decode())
    assert (card.data["license"], card.data["language"]) == ("apache-2.0", "en")


def test_evaluation_results(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    Path("results.json").write_text('{"accuracy": 0.96}')
    assert belay("push", output, "org/name", "--eval-results", "results.json").code == 0
    card = ModelCard(server.repo("org/name").files()["README.md"].decode())
    assert [(r.metric_type, r.metric_value) for r in card.data["eval_results"]] == [("accuracy", 0.96)]
    assert belay("push", output, "org/name", "--eval-results", "results.json", "--json").json["status"] == "unchanged"


def test_a_dry_run_changes_nothing(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    ran = belay("push", output, "org/name", "--dry-run")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:-1]] == FILES[1:]
    assert ran.out.splitlines()[-1].startswith("would upload 8 files, ")
    assert {method for method, _ in server.requests} <= {"GET", "HEAD"}
    assert server.repos == {}


def test_other_weights_in_the_directory_are_not_uploaded(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    for name in ("checkpoint-100/optimizer.pt", "checkpoint-100/config.json", "old.bin", "eval/scores.json"):
        Path(output, name).parent.mkdir(exist_ok=True)
        Path(output, name).write_text("x")
    ran = belay("push", output, "org/name")
    assert ran.code == 0
    assert ran.err.splitlines()[0] == (
        "note: old.bin and 2 more are not uploaded: weights that are no part of the average, or files beside them"
    )
    assert sorted(published(server)[1]) == sorted([*FILES, "eval/scores.json"])


def test_what_a_push_replaces_is_said(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    server.make_repo("org/name", {"main": {"config.json": b"other", "README.md": b"# Mine\n"}})
    ran = belay("push", output, "org/name", "--json", "--dry-run")
    actions = {file["path"]: file["action"] for file in ran.json["files"]}
    assert actions["config.json"] == actions["README.md"] == "replace"
    assert actions["belay.json"] == "add"
    assert "config.json" in (told := belay("push", output, "org/name", "--dry-run").out)
    assert "upload, replacing the one there" in told


def test_an_empty_repository_takes_one_commit(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.initial_commit = False
    server.fail("POST .*/commit/", "cut after")
    assert belay("push", output, "org/name").code == 0
    assert [c.message for c in server.repo("org/name").commits()] == [MESSAGE, "initial commit"]
    assert "nothing to do" in belay("push", output, "org/name").out


def test_a_new_branch_keeps_the_card_of_main(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {"README.md": b"# Mine\n", "a.txt": b"1"}})
    assert belay("push", output, "org/name", "--revision", "ema").code == 0
    files = server.repo("org/name").files("ema")
    assert files["README.md"].decode().endswith("<!-- belay:end -->\n")
    assert "# Mine\n" in files["README.md"].decode()
    assert files["a.txt"] == b"1"
    assert server.repo("org/name").files() == {"README.md": b"# Mine\n", "a.txt": b"1"}


def test_results_that_would_go_are_said(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text('{"accuracy": 0.5}')
    assert belay("push", output, "org/name", "--eval-results", tmp_path / "results.json").code == 0
    ran = belay("push", output, "org/name")
    assert "note: the evaluation results on the card go; to keep them, give them again: --eval-results\n" in ran.err


def test_a_second_pull_request_says_what_is_there(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {"a.txt": b"1"}})
    assert belay("push", output, "org/name", "--create-pr").code == 0
    again = belay("push", output, "org/name", "--create-pr", "--json").json
    assert again["status"] == "unchanged"
    assert {file["action"] for file in again["files"]} == {"keep"}
