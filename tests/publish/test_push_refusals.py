"""What `belay push` does not publish, and what it says of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belay_cli.cli.average import Publishing
from belay_cli.errors import UsageError
from belay_cli.publish.destination import Destination
from tests.conftest import Ran, belay_process, make_files, make_run
from tests.fakes.hub import HubServer, environment
from tests.publish.pushing import FILES, published

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_r", "the token may not write to org/name"),
        ("hf_old", "the token is not valid, or has expired"),
        (None, "there is no Hugging Face token"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_tokens_that_will_not_do(
    server: HubServer,
    client: None,
    output: str,
    belay: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    words: str,
    exists: bool,
) -> None:
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


def test_private_is_not_taken_lightly(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    server.make_repo("org/name", {"main": {}}, private=False)
    ran = belay("push", output, "org/name", "--private")
    assert ran.code == 1
    assert "exists and is public" in ran.err
    assert set(published(server)[1]) <= {".gitattributes"}


@pytest.mark.parametrize("name", [".env", "token.json", "id_rsa", "server.pem", "hf_token.txt", "aws_credentials"])
def test_secrets_by_name(server: HubServer, client: None, output: str, belay: Callable[..., Ran], name: str) -> None:
    Path(output, name).write_text("x")
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith(f"belay: out/{name}: looks like a secret; nothing was uploaded\n")
    assert server.repos == {}
    assert belay("push", output, "org/name", "--exclude", name).code == 0
    assert name not in published(server)[1]


def test_secrets_by_content(server: HubServer, client: None, output: str, belay: Callable[..., Ran]) -> None:
    Path(output, "notes.md").write_text("the token is hf_" + "a" * 34)
    ran = belay("push", output, "org/name")
    assert "out/notes.md: looks like a secret" in ran.err


SECRET = "the token is hf_" + "a" * 34


@pytest.mark.parametrize("text", ["# Mine\n", SECRET])
def test_a_card_through_a_link_is_not_read(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path, text: str
) -> None:
    (tmp_path / "elsewhere.md").write_text(text)
    Path(output, "README.md").symlink_to(tmp_path / "elsewhere.md")
    assert belay("push", output, "org/name").code == 0
    assert text.encode() not in published(server)[1]["README.md"]


def test_a_card_that_is_left_out_is_not_read(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    Path(output, "README.md").write_text(SECRET)
    assert belay("push", output, "org/name").code == 1
    assert belay("push", output, "org/name", "--exclude", "README.md").code == 0
    assert SECRET.encode() not in published(server)[1]["README.md"]


def test_a_published_card_with_a_secret_is_not_published_again(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {"README.md": SECRET.encode()}})
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith(
        "belay: out/README.md: the card would hold what looks like a secret; nothing was uploaded"
    )


def test_a_published_card_that_is_no_text(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    server.make_repo("org/name", {"main": {"README.md": b"caf\xe9"}})
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err == ("belay: the card on the Hub is not text in UTF-8\n       mend it there, or delete it\n")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "belay.json"])
@pytest.mark.parametrize("linked", [True, False])
def test_an_average_is_published_whole_or_not_at_all(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path, name: str, linked: bool
) -> None:
    if linked:
        Path(output, name).rename(tmp_path / name)
        Path(output, name).symlink_to(tmp_path / name)
    ran = belay("push", output, "org/name", *(() if linked else ("--exclude", name)))
    assert ran.code == 1
    assert f"belay: {name} would not be uploaded, and the average is nothing without it\n" in ran.err
    assert server.repos == {}


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n", "hf_é"])
def test_a_token_that_cannot_be_one(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], token: str
) -> None:
    ran = belay("push", output, "org/name", "--token", token)
    assert ran.code == 1
    assert ran.err.startswith("belay: the token is not valid, or has expired\n")
    assert token not in ran.err


def test_debug_shows_where_and_what_to_do(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran]
) -> None:
    ran = belay("push", output, "org/name", "--token", "hf_r", "--debug")
    assert ran.code == 1
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert "belay: the token may not write to org/name\n       it needs write access" in ran.err


def test_nothing_outside_the_output_is_uploaded(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], tmp_path: Path
) -> None:
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
        lambda: spaced(Path("out/model.safetensors.index.json")),
        lambda: spaced(Path("out/belay.json")),
    ],
)
def test_what_is_not_whole_is_not_published(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], damage: Callable[..., Any]
) -> None:
    damage()
    ran = belay("push", output, "org/name")
    assert ran.code == 1
    assert ran.err.startswith("belay: out")
    assert server.repos == {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def spaced(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def test_what_belay_did_not_write_is_not_published(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = belay("push", make_files(tmp_path / "x")[0], "org/name")
    assert ran.code == 1
    assert "was not written by belay" in ran.err
    assert server.repos == {}


@pytest.mark.parametrize("name", ["a/b/c", "", "a b", "-a/b", "../a", "https://huggingface.co/a/b"])
def test_names_that_are_none(
    server: HubServer, client: None, output: str, belay: Callable[..., Ran], name: str
) -> None:
    ran = belay("push", output, "--", name)
    assert ran.code == 2
    assert server.requests == []


def test_the_token_is_never_shown(server: HubServer, tmp_path: Path, output: str) -> None:
    server.fail("POST .*/commit/", 400, times=math.inf)
    environ = environment(server, tmp_path / "home")
    for debug in ([], ["--debug"]):
        ran = belay_process("push", output, "org/name", "--token", "hf_w", *debug, env=environ, cwd=os.getcwd())
        assert ran.returncode == 1
        assert "hf_w" not in ran.stdout + ran.stderr
    assert not any(b"hf_w" in path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_average_and_push_in_one(server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    ran = belay("average", run, "-o", "out", "--push-to-hub", "org/name", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["published"]["status"] == "committed"
    assert set(published(server)[1]) >= {"model.safetensors", "README.md"}
    assert json.loads(published(server)[1]["belay.json"])["schema"] == 2


def test_a_bad_token_is_known_before_any_work(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = belay("average", make_run(tmp_path / "run"), "--push-to-hub", "org/name", "--token", "hf_old")
    assert ran.code == 1
    assert os.listdir(".") == []


def test_options_of_the_hub_need_a_destination(
    server: HubServer, client: None, belay: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = belay("average", make_run(tmp_path / "run"), "--private")
    assert ran.code == 2
    assert ran.err == "belay: --private goes with --push-to-hub\n"


def test_a_token_is_shown_by_nothing() -> None:
    for given in (Destination(token="hf_secret"), Publishing(push_to_hub="org/name", token="hf_secret")):
        assert "revision=None" in repr(given)
        assert "secret" not in f"{given} {given!r}"
    with pytest.raises(UsageError) as caught:
        Destination(token=b"hf_secret")  # type: ignore[arg-type]
    assert str(caught.value) == "--token takes text, not bytes"
