"""Checkpoints of a web server that fails on demand. Every byte is that of the file."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from belay_cli.storage.remote import open_remote, parse
from tests.conftest import everything_in
from tests.fakes.hub import Answer, Request
from tests.fakes.web import Web
from tests.storage.remote.serving import DATA, OTHER, TOKEN, failure, in_parts, made, remote, url_of, whole


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
    for seed, how in enumerate[str | int]((503, "short", "refused", "short range")):
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
