"""Checkpoints in S3, which fails on demand, and by the drivers of fsspec."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from belay_cli.storage.remote import content_id, open_remote
from tests.conftest import everything_in
from tests.fakes.web import Web
from tests.storage.remote.serving import DATA, OTHER, close_s3, failure, in_parts, made, remote, whole


def test_a_run_in_s3(s3: Any, home: Path) -> None:
    for step in (1, 2):
        s3.pipe(f"bucket/run/step-{step}/model.safetensors", DATA if step == 1 else OTHER)
        s3.pipe(f"bucket/run/step-{step}/config.json", b"{}")
    s3.pipe("bucket/run/twin.safetensors", DATA)
    run = remote("s3://bucket/run")
    assert [path.name for path in run.iterdir()] == ["step-1", "step-2", "twin.safetensors"]
    path = run / "step-1" / "model.safetensors"
    assert path.is_file() and path.stat().st_size == len(DATA) and not (run / "none").exists()
    assert whole(path) == in_parts(path, 40_009) == DATA
    assert (run / "step-1/config.json").read_bytes() == b"{}"
    open_remote(path).unchanged()
    one, other, twin = map(content_id, (path, run / "step-2/model.safetensors", run / "twin.safetensors"))
    assert one == twin != other and one is not None
    assert everything_in(home) == ["tmp"]


def test_a_file_in_s3(s3: Any) -> None:
    s3.pipe("bucket/run/step-1/model.safetensors", DATA)
    path = remote("s3://bucket/run/step-1/model.safetensors")
    assert path.is_file() and path.parent.name == "step-1" and whole(path) == DATA
    assert not (path.parent / "README.md").is_file()
    assert [inner.name for inner in path.parent.iterdir()] == ["model.safetensors"]


def test_what_is_not_in_s3(s3: Any) -> None:
    assert s3.exists("bucket")
    for url in ("s3://bucket/none", "s3://bucket/none.safetensors", "s3://nobucket/none"):
        assert not remote(url).exists()


def test_an_object_in_s3_that_is_replaced(s3: Any) -> None:
    s3.pipe("bucket/a.safetensors", DATA)
    file = open_remote(remote("s3://bucket/a.safetensors"))
    assert file.read_at(0, 10) == DATA[:10]
    s3.pipe("bucket/a.safetensors", OTHER)
    for act in (lambda: file.read_at(10, 10), file.unchanged):
        assert failure(act).message == "changed on its server while it was read"
    s3.pipe("bucket/a.safetensors", b"short")
    assert "changed on its server" in failure(lambda: file.read_at(1000, 10)).message


def test_pages_of_s3_and_their_limit(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        s3.pipe(f"bucket/many/{number}", b"1")
    monkeypatch.setattr("belay_cli.storage.remote.fsspec.LARGEST_LISTING", 4)
    monkeypatch.setattr("belay_cli.storage.remote.s3.LARGEST_LISTING", 4)
    assert "holds more than 4 files" in failure(remote("s3://bucket/many").exists).message


def test_s3_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    close_s3()
    error = failure(remote("s3://bucket/none").exists)
    assert "credentials are missing" in error.message and "AWS_PROFILE" in (error.hint or "")


@pytest.fixture
def fake_s3(home: Path, s3_environment: Callable[[str], None]) -> Iterator[Web]:
    """S3 as one object sees it, with failures."""
    with Web() as server:
        s3_environment(server.endpoint)
        server.files["/bucket/a.safetensors"] = DATA
        yield server
        close_s3()


@pytest.mark.parametrize("how", [500, 503, 429, "refused", "cut before", "short", "short range"])
def test_a_failure_of_s3_is_tried_again(fake_s3: Web, waits: list[float], how: str | int) -> None:
    file = open_remote(remote("s3://bucket/a.safetensors"))
    fake_s3.fail("GET", how, times=2)
    assert file.read_at(0, len(DATA)) == DATA
    assert 1 <= len(waits) <= 2  # a connection that breaks is tried twice by aiohttp


@pytest.mark.parametrize("how", [503, "refused", "short"])
def test_a_failure_of_s3_that_stays_is_said(fake_s3: Web, waits: list[float], how: str | int) -> None:
    file = open_remote(remote("s3://bucket/a.safetensors"))
    fake_s3.fail("GET", how, times=math.inf)
    error = failure(lambda: file.read_at(0, 10_000))
    assert error.message.endswith(", 9 times in a row") and error.file == "s3://bucket/a.safetensors"
    asked = len([request for request in made(fake_s3) if request.startswith("GET")])
    assert len(waits) == 8 and asked == (18 if how == "refused" else 9)  # aiohttp tries such a connection twice


def test_an_s3_that_ignores_ranges(fake_s3: Web) -> None:
    file = open_remote(remote("s3://bucket/a.safetensors"))
    fake_s3.fail("GET", "ignore ranges", times=math.inf)
    assert "its server ignores ranges" in failure(lambda: file.read_at(0, 10)).message
    assert file.read_at(0, file.size) == DATA


def test_s3_is_asked_for_the_object_that_was_listed(fake_s3: Web) -> None:
    open_remote(remote("s3://bucket/a.safetensors")).read_at(0, 10)
    assert made(fake_s3) == ["HEAD /bucket/a.safetensors", "GET /bucket/a.safetensors"]
    assert fake_s3.log[1].headers["If-Match"] and fake_s3.log[1].headers["Range"] == "bytes=0-9"


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_memory(memory: Any, home: Path) -> None:
    memory.pipe({"/run/step-1/model.safetensors": DATA, "/run/step-1/index.json": json.dumps({"a": 1}).encode()})
    run = remote("memory://run")
    path = run / "step-1/model.safetensors"
    assert [inner.name for inner in run.iterdir()] == ["step-1"] and whole(path) == in_parts(path) == DATA
    assert remote("memory://run/step-1/model.safetensors").is_file()
    file = open_remote(path)
    file.unchanged()
    memory.pipe("/run/step-1/model.safetensors", OTHER)
    assert "changed on its server" in failure(file.unchanged).message
    assert failure(lambda: open_remote(run)).message == "is a directory"
    assert failure(lambda: list(path.iterdir())).message == "is not a directory"
    assert content_id(path) is None
    assert everything_in(home) == ["tmp"]


def test_a_driver_that_gives_too_much_or_too_little(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/a.bin", DATA)
    file = open_remote(remote("memory://a.bin"))
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start, end: DATA)
    assert "its server ignores ranges" in failure(lambda: file.read_at(0, 10)).message
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, start, end: DATA[start : end - 1])
    assert "was cut short, 9 times in a row" in failure(lambda: file.read_at(0, 10)).message


def test_what_a_driver_raises_is_said_without_urls(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/a.bin", DATA)
    file = open_remote(remote("memory://a.bin"))

    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("no luck with https://user:secret@host/x?signature=secret")

    monkeypatch.setattr(type(memory), "cat_file", broken)
    error = failure(lambda: file.read_at(0, 10))
    assert error.message == "cannot be read: RuntimeError: no luck with …" and error.__cause__ is None
