"""Checkpoints by URL: against real servers on this machine, which fail on demand. Every byte is that of the file."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

from belay_cli.checkpoints.order.names import step_in_name
from belay_cli.errors import CheckpointError
from belay_cli.storage.remote import content_id, is_url, open_remote, parse, same_content, source
from belay_cli.storage.remote.path import RemotePath
from tests.conftest import everything_in
from tests.hub_server import Answer, HubServer, Refusal, Request, _ranged, hub_client

DATA = random.Random(1).randbytes(300_001)
OTHER = random.Random(2).randbytes(300_001)
TOKEN = "hf_secret_of_the_test"


class Web(HubServer):
    """A plain web server with the failures of the Hub's; `special` answers a path by a function of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.special: dict[str, Callable[[Request], Answer]] = {}

    def answer(self, request: Request) -> Answer:
        try:
            if request.path in self.special:
                return self.special[request.path](request)
            if request.path not in self.files:
                return Answer(404)
            data = self.files[request.path]
            return _ranged(request, data, {"ETag": f'"{hash(data) & 0xFFFFFFFF:x}"'})
        except Refusal as refusal:
            return refusal.answer(request)

    @property
    def other_origin(self) -> str:
        return self._storage


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for."""
    seen: list[float] = []
    monkeypatch.setattr(source, "pause", seen.append)
    return seen


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it, temporary files too."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("TMPDIR", str(home / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return home


@pytest.fixture
def web(home: Path) -> Iterator[Web]:
    with Web() as server, hub_client(server, home, TOKEN):
        server.files["/run/step-100/model.safetensors"] = DATA
        # The client's Hub is another server, so that these are plain URLs.
        from huggingface_hub import constants

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            yield server


@pytest.fixture
def hub(home: Path) -> Iterator[HubServer]:
    with HubServer({TOKEN: "read"}, redirect=True, page_size=3) as server, hub_client(server, home, TOKEN):
        revisions = {
            f"step{step}": {
                "model.safetensors": random.Random(step).randbytes(50_000),
                "config.json": b'{"a": 1}',
                "unet/diffusion_pytorch_model.safetensors": b"unet" * step,
                "vae/config.json": b"{}",
            }
            for step in (100, 200, 300, 400)
        }
        server.make_repo("org/model", {"main": {"README.md": b"# card"}, **revisions}, private=True)
        yield server


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set up what a person has in the environment, and close the connections in the end."""
    for name, value in {"KEY_ID": "id", "SECRET": "secret"}.items():
        monkeypatch.setenv({"KEY_ID": "AWS_ACCESS_KEY_ID", "SECRET": "AWS_SECRET_ACCESS_KEY"}[name], value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield lambda endpoint: monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    _close_s3()


@pytest.fixture
def s3(s3_endpoint: str, s3_environment: Callable[[str], None]) -> Any:
    """The file system, by a client of its own, on an empty bucket."""
    s3_environment(s3_endpoint)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    return store


def _close_s3() -> None:
    from fsspec.asyn import sync

    for store in list(s3fs.S3FileSystem._cache.values()):
        if store._s3 is not None:
            sync(store.loop, store._s3.close)
    s3fs.S3FileSystem.clear_instance_cache()
    gc.collect()


def url_of(server: HubServer, path: str = "/run/step-100/model.safetensors") -> str:
    return f"{server.endpoint}{path}"


def remote(url: str) -> RemotePath:
    path = parse(url)
    assert isinstance(path, RemotePath)
    return path


def whole(path: RemotePath) -> bytes:
    with open_remote(path) as file:
        return file.read_at(0, file.size)


def in_parts(path: RemotePath, part: int = 7919) -> bytes:
    """Read in pieces by several threads that share one file."""
    with open_remote(path) as file, ThreadPoolExecutor(8) as threads:
        offsets = range(0, file.size, part)
        return b"".join(threads.map(lambda at: file.read_at(at, min(part, file.size - at)), offsets))


def failure(act: Callable[[], object]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        act()
    return caught.value


def made(server: HubServer) -> list[str]:
    """The requests that were made: method, and path without what tells revisions apart."""
    return [f"{method} {target.partition('?')[0]}" for method, target in server.requests]


# URLs and names


@pytest.mark.parametrize(
    ("url", "name", "stem", "parent", "step"),
    [
        ("hf://org/model@step1000", "step1000", "step1000", "model", 1000),
        ("hf://org/model@step1000/unet", "unet", "unet", "step1000", None),
        ("hf://org/model", "model", "model", "model", None),
        ("hf://org/run-step500/", "run-step500", "run-step500", "run-step500", 500),
        (f"hf://org/model@{'0123456789' * 4}", "model", "model", "model", None),
        ("hf://org/model@refs/pr/3/unet", "unet", "unet", "refs/pr/3", None),
        ("hf://org/model@exp%2Fstep7", "exp/step7", "exp/step7", "model", 7),
        ("hf://gpt2@step3", "step3", "step3", "gpt2", 3),
        ("hf://org/model/odd@name.safetensors", "odd@name.safetensors", "odd@name", "model", None),
        ("s3://bucket/run/checkpoint-500/", "checkpoint-500", "checkpoint-500", "run", 500),
        ("s3://bucket", "bucket", "bucket", "bucket", None),
        ("memory://a/step-3.safetensors", "step-3.safetensors", "step-3", "a", 3),
        ("https://host/step%2D100/my%20model.safetensors", "my model.safetensors", "my model", "step-100", None),
    ],
)
def test_names(url: str, name: str, stem: str, parent: str, step: int | None) -> None:
    path = remote(url)
    assert (path.name, path.stem, path.parent.name) == (name, stem, parent)
    assert str(path) == url.rstrip("/")
    assert step_in_name(path.stem) == step


def test_what_a_url_is() -> None:
    assert is_url("hf://org/model") and is_url("s3://b/k") and is_url("memory://x")
    assert not is_url("run/checkpoint-1") and not is_url("C:\\run") and not is_url("epoch=1:step=2.ckpt")


def test_file_urls_are_paths_of_this_machine(tmp_path: Path) -> None:
    assert parse((tmp_path / "a b.safetensors").as_uri()) == tmp_path / "a b.safetensors"
    assert "another machine" in failure(lambda: parse("file://elsewhere/x")).message


def test_paths_behave_as_paths_do() -> None:
    path = remote("s3://bucket/run/step-1")
    inner = path / "unet" / "model.fp16.safetensors"
    assert inner == path / "unet/model.fp16.safetensors" == path.joinpath("unet", "model.fp16.safetensors")
    assert len({inner, path / "unet/model.fp16.safetensors", path}) == 2
    assert (inner.name, inner.stem, inner.suffix) == ("model.fp16.safetensors", "model.fp16", ".safetensors")
    assert inner.parent == path / "unet" and inner.with_name("x") == path / "unet/x"
    assert inner.is_relative_to(path) and inner.relative_to(path).as_posix() == "unet/model.fp16.safetensors"
    assert inner.is_relative_to(path.parent) and not path.is_relative_to(inner) and not path.is_relative_to(Path("/"))
    assert not Path("/s3:").is_relative_to(path)
    assert inner.absolute() is inner and inner.resolve() is inner and not inner.is_symlink()
    assert os.fspath(inner) == inner.as_posix() == str(inner)
    assert sorted([path / "b", path / "a"]) == [path / "a", path / "b"]
    assert remote("s3://bucket/run") != remote("s3://bucket/walk")
    with pytest.raises(ValueError):
        path.relative_to(inner)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..\\x"])
def test_no_name_leads_out(name: str) -> None:
    assert "leads out" in failure(lambda: remote("s3://bucket/run") / name).message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://datasets/org/data", "is one of the Hub's datasets"),
        ("hf://org/model@", "names no revision"),
        ("hf://o r g/model", "names no repository"),
        ("hf://org/model@main/../x", "names no folder"),
        ("https:///model.safetensors", "names no web server"),
        ("https://host:99999999/model.safetensors", "names no web server"),
        ("simplecache://x", "is a file system inside another"),
        ("zip://a::s3://b/c", "is a file system inside another"),
        ("simplecache::s3://b/c", "is not a URL that belay reads"),
        ("https://host/a\nb", "is not a URL that belay reads"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    assert said in failure(lambda: parse(url)).message


def test_what_has_no_driver() -> None:
    error = failure(remote("gs://bucket/run").exists)
    assert (
        error.message == "needs gcsfs to be read" and error.hint == 'pip install gcsfs, or pip install "belay-cli[gs]"'
    )
    assert "no kind that fsspec knows: nonsense://" in failure(remote("nonsense://a/b").exists).message


def test_s3_without_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # type: ignore[attr-defined]
    error = failure(remote("s3://bucket/run").exists)
    assert error.message == "needs s3fs to be read" and error.hint == 'pip install s3fs, or pip install "belay-cli[s3]"'


# Web servers


def test_a_web_file(web: Web, home: Path) -> None:
    path = remote(url_of(web))
    assert path.exists() and path.is_file() and not path.is_dir()
    assert path.stat().st_size == len(DATA) and path.parent.name == "step-100"
    file = open_remote(path)
    assert file.size == len(DATA) and file.read_at(0, len(DATA)) == DATA and file.read_at(299_999, 2) == DATA[-2:]
    assert file.read_at(5, 0) == b""
    file.unchanged()
    assert made(web) == [f"{m} /run/step-100/model.safetensors" for m in ("HEAD", "GET", "GET", "HEAD")]
    assert all(request.headers["Accept-Encoding"] == "identity" for request in web.log)
    assert not any(request.headers.get("Authorization") for request in web.log)
    assert everything_in(home) == ["tmp"]


def test_threads_share_a_web_file(web: Web) -> None:
    assert in_parts(remote(url_of(web))) == DATA
    assert sum(method == "HEAD" for method, _ in web.requests) == 1


def test_the_end_of_a_file_is_not_passed(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    assert "ends at byte 300001" in failure(lambda: file.read_at(300_000, 2)).message
    assert "ends at byte" in failure(lambda: file.read_at(-1, 2)).message


def test_a_web_file_that_is_absent(web: Web) -> None:
    path = remote(url_of(web, "/none.safetensors"))
    assert not path.exists()
    assert failure(lambda: open_remote(path)).message == "does not exist"
    assert made(web) == ["HEAD /none.safetensors"]


def test_web_directories_are_not_listed(web: Web) -> None:
    error = failure(remote(url_of(web, "/run/")).exists)
    assert "cannot be listed" in error.message and "give its files" in (error.hint or "")
    beside = remote(url_of(web)).parent
    assert not beside.exists() and not (beside / "README.md").is_file()


def test_an_empty_file_and_a_small_one(web: Web) -> None:
    web.files |= {"/empty": b"", "/small": b"12345"}
    assert remote(url_of(web, "/empty")).read_bytes() == b""
    path = remote(url_of(web, "/small"))
    assert path.read_bytes() == path.read_bytes() == b"12345"
    assert made(web).count("GET /small") == 1


def test_no_large_file_is_read_whole(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belay_cli.storage.remote.path._LARGEST_TEXT", 1000)
    assert "too large to be read whole" in failure(remote(url_of(web)).read_bytes).message


@pytest.mark.parametrize(
    "how", ["refused", "cut before", "cut during", "short", "short range", 408, 425, 429, 500, 502, 503, 504]
)
def test_a_failure_is_tried_again(web: Web, waits: list[float], how: str | int) -> None:
    web.fail("GET", how, times=3)
    assert whole(remote(url_of(web))) == DATA
    assert len(waits) == 3


@pytest.mark.parametrize("how", ["refused", "short range", 503])
def test_a_failure_that_stays_is_said(web: Web, waits: list[float], how: str | int) -> None:
    file = open_remote(remote(url_of(web)))
    web.fail("GET", how, times=math.inf)
    error = failure(lambda: file.read_at(0, 100_000))
    assert error.file == url_of(web) and error.message.endswith(", 9 times in a row")
    assert error.hint == "run the same command again"
    assert len(made(web)) == 1 + 9
    longest = [min(0.5 * 2**n, 8.0) for n in range(8)]
    assert len(waits) == 8 and all(most / 2 <= w <= most for w, most in zip(waits, longest, strict=True))


def test_what_has_come_need_not_come_again(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    web.fail("GET", "short", times=2)
    assert file.read_at(0, len(DATA)) == DATA
    ranges = [request.headers["Range"] for request in web.log if request.method == "GET"]
    assert [range_.partition("-")[0] for range_ in ranges] == ["bytes=0", "bytes=150000", "bytes=225000"]


def test_one_request_in_five_fails(web: Web) -> None:
    path = remote(url_of(web))
    assert path.exists()
    for seed, how in enumerate((503, "short", "refused", "short range")):
        web.fail_share(0.05, how, seed=seed)
    assert in_parts(path, 2999) == DATA


def test_a_server_that_says_when(web: Web, waits: list[float]) -> None:
    web.fail("GET", 503, retry_after=17)
    web.fail("GET", 429, ratelimit=23)
    assert whole(remote(url_of(web))) == DATA
    assert waits == [17, 23]


def test_a_server_that_wants_too_much_time(web: Web, waits: list[float]) -> None:
    web.fail("HEAD", 429, retry_after=3000)
    error = failure(remote(url_of(web)).exists)
    assert "had too many requests" in error.message and error.hint == "try again in 3000 s"
    assert waits == []


def test_silence_has_an_end(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belay_cli.storage.remote.http.TIMEOUT", 0.2)
    web.fail("GET", "stall", seconds=5)
    assert whole(remote(url_of(web))) == DATA
    web.fail("HEAD", "stall", seconds=5, times=math.inf)
    assert "was silent for" in failure(remote(url_of(web)).exists).message


def test_a_slow_server_is_waited_for(web: Web) -> None:
    web.fail("GET", "slow", seconds=0.5)
    assert whole(remote(url_of(web))) == DATA


def test_no_server_at_all(web: Web, waits: list[float]) -> None:
    path = remote(url_of(web))
    with web.down():
        assert "no connection to http://127.0.0.1" in failure(path.exists).message
    assert len(waits) == 8
    assert path.exists()


def test_a_server_that_ignores_ranges(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    web.fail("GET", "ignore ranges", times=math.inf)
    assert file.read_at(0, file.size) == DATA  # as it happens, all of it was asked for
    error = failure(lambda: file.read_at(0, 10))
    assert "its server ignores ranges" in error.message and error.hint == "download it, and give the file"
    assert made(web).count(f"GET {'/run/step-100/model.safetensors'}") == 2


def _answering(status: int = 206, **headers: str) -> Callable[[Request], Answer]:
    """To HEAD soundly, to GET with half of these headers wrong."""

    def answer(request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(200, b"x" * 100, {"ETag": '"1"'})
        return Answer(status, b"y" * 10, {"ETag": '"1"', **{n.replace("_", "-"): v for n, v in headers.items()}})

    return answer


@pytest.mark.parametrize(
    ("special", "said"),
    [
        (_answering(Content_Range="bytes 1-10/100"), "other bytes than those asked for, 9 times"),
        (_answering(Content_Range="bytes 0-9/90"), "changed on its server"),
        (_answering(Content_Range="nonsense"), "other bytes than those asked for, 9 times"),
        (_answering(), "other bytes than those asked for, 9 times"),
        (_answering(Content_Range="bytes 0-9/100", ETag='"2"'), "changed on its server"),
        (_answering(Content_Range="bytes 0-9/100", Content_Encoding="gzip"), "sent compressed"),
        (_answering(200), "its server ignores ranges"),
        (_answering(204), "its server says 204"),
        (_answering(416), "changed on its server"),
        (_answering(403), "its server says 403"),
        (_answering(404), "is not there"),
    ],
)
def test_answers_that_are_not_believed(web: Web, special: Callable[[Request], Answer], said: str) -> None:
    web.special["/x"] = special
    error = failure(lambda: open_remote(remote(url_of(web, "/x"))).read_at(0, 10))
    assert said in error.message and error.file == url_of(web, "/x")


def test_a_sound_answer_without_a_total(web: Web) -> None:
    web.special["/x"] = _answering(Content_Range="bytes 0-9/*")
    assert open_remote(remote(url_of(web, "/x"))).read_at(0, 10) == b"y" * 10


def test_an_object_that_is_replaced(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    assert file.read_at(0, 100) == DATA[:100]
    web.files["/run/step-100/model.safetensors"] = OTHER
    for act in (lambda: file.read_at(100, 100), file.unchanged):
        error = failure(act)
        assert error.message == "changed on its server while it was read"


def test_a_signed_url_that_is_too_old_in_the_end(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    assert file.read_at(0, 10) == DATA[:10]
    web.fail("GET|HEAD", 403, times=2)
    file.unchanged()
    del web.files["/run/step-100/model.safetensors"]
    assert failure(file.unchanged).message == "is not there"


def test_an_object_that_is_replaced_within_one_read(web: Web) -> None:
    file = open_remote(remote(url_of(web)))
    web.fail("GET", "short")
    web.fail("GET", lambda _: web.files.update({"/run/step-100/model.safetensors": OTHER}))
    assert "changed on its server" in failure(lambda: file.read_at(0, file.size)).message


def test_a_server_without_head(web: Web) -> None:
    """As those of URLs that are signed for GET alone."""
    for status in (403, 405, 501):
        web.fail("HEAD", status)
        assert whole(remote(url_of(web))) == DATA
    web.files["/empty"] = b""
    web.fail("HEAD", 405)
    assert remote(url_of(web, "/empty")).stat().st_size == 0


def _redirect(to: str, status: int = 302) -> Callable[[Request], Answer]:
    return lambda request: Answer(status, headers={"Location": to})


def test_what_a_redirect_leads_to_is_used_again(web: Web) -> None:
    web.special["/link"] = _redirect(f"{web.other_origin}/run/step-100/model.safetensors?signature=topsecret")
    file = open_remote(remote(url_of(web, "/link").replace("http://", "http://user:password@")))
    assert file.read_at(0, 1000) == DATA[:1000] and file.read_at(1000, 1000) == DATA[1000:2000]
    assert made(web) == ["HEAD /link"] + [f"{m} /run/step-100/model.safetensors" for m in ("HEAD", "GET", "GET")]
    assert [bool(request.headers.get("Authorization")) for request in web.log] == [True, False, False, False]


def test_a_place_that_expires_is_asked_for_again(web: Web) -> None:
    web.special["/link"] = _redirect(f"{web.other_origin}/run/step-100/model.safetensors")
    file = open_remote(remote(url_of(web, "/link")))
    web.fail("GET", 403)
    assert file.read_at(0, 1000) == DATA[:1000]
    assert made(web).count("HEAD /link") == 2
    web.fail("GET", 403, times=2)
    assert "refused by the storage" in failure(lambda: file.read_at(0, 1000)).message


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/x", "gopher://host", "http://", ""])
def test_redirects_that_are_not_followed(web: Web, to: str) -> None:
    web.special["/link"] = _redirect(to)
    message = failure(remote(url_of(web, "/link")).exists).message
    assert "is redirected" in message


def test_no_redirect_from_https_to_http() -> None:
    from types import SimpleNamespace

    from belay_cli.storage.remote.http import _onward

    answer = SimpleNamespace(status_code=302, headers={"Location": "http://host/x"})
    assert "from https to http" in failure(lambda: _onward(answer, "https://host/x", "https://host/x")).message
    answer.headers["Location"] = "//user:password@other/x#y"
    assert _onward(answer, "https://host/x", "") == "https://other/x"


def test_secrets_are_never_shown(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    web.files["/f.safetensors"] = DATA
    web.special["/link"] = _redirect(f"{web.other_origin}/f.safetensors?X-Signature=topsecret")
    seen = []
    for target in ("/f.safetensors", "/link", "/none"):
        url = url_of(web, f"{target}?X-Signature=topsecret").replace("http://", "http://user:topsecret@")
        path = remote(url)
        seen += [str(path), repr(path), os.fspath(path), path.name, str(path.parent), repr(path.tree.source)]
        if path.exists():
            assert whole(path) == DATA
            file = open_remote(path)
            web.fail("GET", 500, times=math.inf)
            error = failure(lambda file=file: file.read_at(0, 5))  # type: ignore[misc]
            web.failures.clear()
            assert error.__cause__ is None
            seen += [str(error), repr(error), str(error.hint)]
    assert any(request.headers.get("Authorization", "").startswith("Basic ") for request in web.log)
    assert any("X-Signature=topsecret" in request.target for request in web.log)
    seen += [record.getMessage() for record in caplog.records]
    assert seen and not any("topsecret" in text or TOKEN in text for text in seen)
    assert remote("https://h/f?v=1") != remote("https://h/f?v=2") and str(remote("https://h/f?v=1")) == "https://h/f"
    assert "pass" not in str(remote("ftp://user:pass@h/f")) and "pass" not in str(
        failure(lambda: parse("a b://u:pass@h"))
    )


def test_offline_nothing_is_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = failure(remote(url_of(web)).exists)
    assert "HF_HUB_OFFLINE is set" in error.message and error.hint == "unset HF_HUB_OFFLINE"
    assert made(web) == []


# The Hub


def test_a_revision(hub: HubServer, home: Path) -> None:
    files = hub.repo("org/model").files("step200")
    path = remote("hf://org/model@step200")
    assert path.is_dir() and [p.name for p in path.iterdir()] == ["config.json", "model.safetensors", "unet", "vae"]
    assert (path.repo, path.revision, path.from_cache) == ("org/model", "step200", False)
    assert path.commit == hub.repo("org/model").at("step200").id
    assert whole(path / "model.safetensors") == in_parts(path / "model.safetensors") == files["model.safetensors"]
    assert (path / "config.json").read_bytes() == (path / "config.json").read_bytes() == files["config.json"]
    assert list(path.glob("*.json")) == [path / "config.json"]
    assert not (path / "nothing").exists() and (path / "unet").is_dir()
    assert [p.name for p in (path / "unet").iterdir()] == ["diffusion_pytorch_model.safetensors"]
    asked = [request for request in made(hub) if "/storage/" not in request]
    assert len([request for request in asked if "/tree/" in request]) == 2  # 6 entries, 3 a page
    assert len([request for request in asked if request.startswith("HEAD")]) == 1
    assert len([request for request in asked if "/revision/" in request]) == 1
    assert len([request for request in asked if "config.json" in request]) == 1
    assert len(asked) == 5
    assert everything_in(home) == ["tmp"]


def test_arguments_of_one_revision_share_its_listing(hub: HubServer) -> None:
    listings: dict[str, Any] = {}
    paths = [parse(f"hf://org/model@step100/{name}", listings) for name in ("unet", "vae", "")]
    assert all(path.is_dir() for path in paths) and list(listings) == ["hf://org/model@step100"]
    assert len([request for request in made(hub) if "/revision/" in request]) == 1


def test_the_token_goes_to_the_hub_only(hub: HubServer) -> None:
    whole(remote("hf://org/model@step100") / "model.safetensors")
    sent = {request.path.partition("/org")[0]: request.headers.get("Authorization") for request in hub.log}
    assert sent == {"/api/models": f"Bearer {TOKEN}", "": f"Bearer {TOKEN}", "/storage": None}


def test_a_revision_is_read_at_its_commit(hub: HubServer) -> None:
    path = remote("hf://org/model@step100")
    before = hub.repo("org/model").files("step100")["model.safetensors"]
    assert path.exists()
    hub.repo("org/model").write({"model.safetensors": OTHER}, "step100")
    file = open_remote(path / "model.safetensors")
    assert file.read_at(0, file.size) == before
    file.unchanged()


@pytest.mark.parametrize("redirect", [True, False])
def test_a_file_of_the_hub_that_is_replaced(hub: HubServer, redirect: bool) -> None:
    hub.redirect = redirect
    path = remote("hf://org/model@step100")
    file, small = open_remote(path / "model.safetensors"), open_remote(path / "config.json")
    assert len(file.read_at(0, 10)) == 10
    hub.swap("org/model", "model.safetensors", OTHER[:50_000])
    hub.swap("org/model", "config.json", b'{"b": 2}')
    assert "changed on its server" in failure(file.unchanged).message
    assert "changed on its server" in failure(lambda: small.read_at(0, 8)).message
    if not redirect:
        assert "changed on its server" in failure(lambda: file.read_at(0, 10)).message


def test_a_place_in_the_storage_of_the_hub_expires(hub: HubServer, waits: list[float]) -> None:
    file = open_remote(remote("hf://org/model@step100") / "model.safetensors")
    expected = hub.repo("org/model").files("step100")["model.safetensors"]
    hub.fail("GET /storage", 403, times=1, skip=1)
    assert file.read_at(0, 10) + file.read_at(10, 49_990) == expected
    assert len([request for request in made(hub) if request.startswith("HEAD")]) == 2
    assert waits == []


def test_a_fifth_of_the_requests_to_the_hub_fails(hub: HubServer) -> None:
    for seed, how in enumerate((503, "short", "refused", "short range")):
        hub.fail_share(0.05, how, seed=seed, which="resolve|storage")
    for step in (100, 200, 300, 400):
        path = remote(f"hf://org/model@step{step}")
        assert (
            in_parts(path / "model.safetensors", 1999)
            == hub.repo("org/model").files(f"step{step}")["model.safetensors"]
        )


@pytest.mark.parametrize(
    ("url", "token", "said", "hint"),
    [
        ("hf://org/model@step500", TOKEN, "has no revision step500", "/org/model/tree/main"),
        ("hf://org/absent", TOKEN, "is not there, or not for everybody to see", "may the token see it?"),
        ("hf://org/model", None, "is not there, or not for everybody to see", "hf auth login, or set HF_TOKEN"),
        ("hf://org/model", "hf_unknown", "the token is not valid, or has expired", "/settings/tokens"),
    ],
)
def test_what_the_hub_refuses(
    hub: HubServer, home: Path, waits: list[float], url: str, token: str | None, said: str, hint: str
) -> None:
    with hub_client(hub, home, token):
        error = failure(remote(url).exists)
    assert said in error.message and hint in (error.hint or "") and error.file == url
    assert waits == [] and len(hub.requests) == 1
    assert (token or TOKEN) not in f"{error} {error.hint} {error!r}"


def test_a_gated_repository(hub: HubServer) -> None:
    hub.fail("GET", 403, times=math.inf)
    error = failure(remote("hf://org/model").exists)
    assert "is gated" in error.message and "ask for access at" in (error.hint or "")


def test_no_connection_to_the_hub(hub: HubServer, waits: list[float]) -> None:
    with hub.down():
        error = failure(remote("hf://org/model@step100").exists)
    assert "no connection to http://127.0.0.1" in error.message and len(waits) == 8


def test_links_of_the_hub_are_its_paths(hub: HubServer) -> None:
    for kind in ("resolve", "blob", "raw"):
        path = remote(f"{hub.endpoint}/org/model/{kind}/step100/unet/x.safetensors?download=true")
        assert str(path) == "hf://org/model@step100/unet/x.safetensors"
    assert str(remote(f"{hub.endpoint}/org/model/tree/refs/pr/1")) == "hf://org/model@refs/pr/1"


def test_what_holds_a_revision_is_the_repository(hub: HubServer) -> None:
    card = remote("hf://org/model@step100").parent / "README.md"
    assert str(card) == "hf://org/model/README.md" and card.read_bytes() == b"# card"


def test_the_content_is_known_before_it_is_read(hub: HubServer) -> None:
    hub.repo("org/model").write(
        {"model.safetensors": hub.repo("org/model").files("step100")["model.safetensors"]}, "step300"
    )
    paths = [remote(f"hf://org/model@step{step}") / "model.safetensors" for step in (100, 200, 300, 400)]
    assert same_content(paths) == [(paths[0], paths[2])]
    assert content_id(paths[0]).startswith("sha256:")  # type: ignore[union-attr]
    assert content_id(remote("hf://org/model@step100") / "config.json").startswith("git:")  # type: ignore[union-attr]
    assert not any(request.startswith("HEAD") for request in made(hub))


def _unsafe(hub: HubServer, revision: str, names: list[str]) -> None:
    hub.make_repo("org/unsafe", {revision: dict.fromkeys(names, b"1")})


def test_unsafe_names_are_not_seen(hub: HubServer) -> None:
    _unsafe(
        hub, "main", ["fine.json", "../up.json", "a/../../up.json", "a\\b.json", "c\n.json", "C:x.json", "/root.json"]
    )
    assert [path.name for path in remote("hf://org/unsafe").iterdir()] == ["fine.json"]


def test_a_listing_has_a_limit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belay_cli.storage.remote.hub.LARGEST_LISTING", 3)
    assert "holds more than 3 files" in failure(remote("hf://org/model@step100").exists).message


def _download(revision: str, **options: Any) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download("org/model", revision=revision, **options)


def test_the_cache_of_the_client_is_used(hub: HubServer, home: Path) -> None:
    _download("step100")
    stored, before = everything_in(home), len(hub.requests)
    path = remote("hf://org/model@step100")
    file = open_remote(path / "model.safetensors")
    assert file.read_at(0, file.size) == hub.repo("org/model").files("step100")["model.safetensors"]
    file.unchanged()
    file.close()
    assert (path / "config.json").read_bytes() == b'{"a": 1}'
    assert all("/api/models/" in target for _, target in hub.requests[before:])
    assert everything_in(home) == stored


def test_a_file_in_the_cache_that_is_another_is_passed_over(hub: HubServer) -> None:
    folder = Path(_download("step100"))
    hub.repo("org/model")
    target = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(target.read_bytes()[:-1])
    path = remote("hf://org/model@step100") / "model.safetensors"
    assert whole(path) == hub.repo("org/model").files("step100")["model.safetensors"]


def test_offline_the_cache_is_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _download("step100")
    _download("step200", allow_patterns=["config.json"])
    before = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = remote("hf://org/model@step100")
    assert path.from_cache and path.commit == hub.repo("org/model").at("step100").id
    assert whole(path / "model.safetensors") == hub.repo("org/model").files("step100")["model.safetensors"]
    assert [p.name for p in (path / "unet").iterdir()] == ["diffusion_pytorch_model.safetensors"]
    assert content_id(path / "model.safetensors").startswith("sha256:")  # type: ignore[union-attr]
    missing = remote("hf://org/model@step200") / "model.safetensors"
    if missing.is_file():  # clients that keep listings know that it belongs there
        error = failure(lambda: whole(missing))
        assert "is not in the cache" in error.message and "hf download org/model" in (error.hint or "")
    error = failure(remote("hf://org/model@step300").exists)
    assert error.message == "is not in the cache, and HF_HUB_OFFLINE is set"
    assert "hf download org/model --revision step300" in (error.hint or "")
    assert len(hub.requests) == before


def test_without_a_connection_the_cache_is_the_hub(hub: HubServer) -> None:
    _download("step100")
    with hub.down():
        path = remote("hf://org/model@step100")
        assert path.from_cache
        assert whole(path / "model.safetensors") == hub.repo("org/model").files("step100")["model.safetensors"]


# Object stores


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
    assert same_content([path, run / "step-2/model.safetensors", run / "twin.safetensors"]) == [
        (path, run / "twin.safetensors")
    ]
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
    _close_s3()
    error = failure(remote("s3://bucket/none").exists)
    assert "credentials are missing" in error.message and "AWS_PROFILE" in (error.hint or "")


@pytest.fixture
def fake_s3(home: Path, s3_environment: Callable[[str], None]) -> Iterator[Web]:
    """S3 as one object sees it, with failures."""
    with Web() as server:
        s3_environment(server.endpoint)
        server.files["/bucket/a.safetensors"] = DATA
        yield server
        _close_s3()


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
    assert content_id(path) is None and same_content([path, path]) == []
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
