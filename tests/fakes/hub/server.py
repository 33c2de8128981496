"""The fake Hub itself: its listeners, and the failures that tests arrange."""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import unquote

from tests.fakes.hub.downloads import Downloads
from tests.fakes.hub.failures import HOWS, Failure, chooser
from tests.fakes.hub.listener import Listener
from tests.fakes.hub.messages import ROUTES, Answer, Refusal, Request, json_answer
from tests.fakes.hub.repos import Repos
from tests.fakes.hub.store import Repo
from tests.fakes.hub.uploads import Uploads


class HubServer(Repos, Uploads, Downloads):
    """The Hub, on an ephemeral port of 127.0.0.1.

    tokens: a role for each token: "read", "write" or "expired"; a token that is not there is unknown.
    namespaces: those that a write token may write to and see the private repos of; the first is the user's own.
    multipart: LFS files larger than this many bytes are uploaded in parts of this many bytes; by default, none is.
    page_size: the entries of a page of a tree or of commits; by default, everything is on one page.
    redirect: whether LFS files are downloaded from another origin, which the Hub redirects to, as on the real one:
    there is no X-Repo-Commit there and its ETag is not the sha256.
    """

    _listeners: Sequence[Listener] = ()

    def __enter__(self) -> Self:
        self._listeners = [Listener(self, 0), Listener(self, 0)]
        self.endpoint, self._storage = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.closing.set()
        for listener in self._listeners:
            listener.stop()
        if kind is None and self.errors:
            raise AssertionError("the server itself failed:\n" + "\n".join(self.errors))

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens: a connection is refused by the system, where how="refused" resets an accepted one."""
        ports = [listener.server_port for listener in self._listeners]
        for listener in self._listeners:
            listener.stop()
        try:
            yield
        finally:
            self._listeners = [Listener(self, port) for port in ports]

    # What tests arrange and look at

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path and query) of every request, in the order of arrival."""
        with self.lock:
            return [(request.method, request.target) for request in self.log]

    def repo(self, name: str) -> Repo:
        return self.repos[name]

    def swap(self, name: str, path: str, data: bytes) -> None:
        """From now on, downloads of this path give this content and its ETag, with no commit made."""
        with self.lock:
            self._swapped[name, path] = self.repos[name].blob(path, data)

    def fail(
        self,
        which: int | str | Callable[[Request], bool],
        how: str | int | Callable[[Request], object],
        *,
        times: float = 1,
        skip: int = 0,
        seconds: float = 1.0,
        retry_after: int | None = None,
        ratelimit: int | None = None,
    ) -> Failure:
        """Let requests fail: the `which`-th from now on, those a pattern finds in "METHOD target", or those picked.

        The first `skip` of them are spared and the next `times` fail (math.inf: all). `how` is:

        a status, with Retry-After: `retry_after` or RateLimit: "api";r=0;t=`ratelimit` if given
        "refused"        reset before the body is read
        "cut before"     closed when the request has been read, with nothing done
        "cut during"     closed when half the request's body has been read; without one, when half the answer is sent
        "cut after"      done whole, and closed without an answer
        "stall"          nothing for `seconds`, then closed, with nothing done
        "short"          half of the body that Content-Length promises, then closed
        "short range"    a sound answer with half of the bytes that Content-Range promises
        "ignore ranges"  200 and the whole file
        "slow"           the body in ten pieces over `seconds`
        "proxy"          502 with a page in HTML, as something in between answers
        a function       called with the request before it is answered as always: for a swap, or a commit by another
        """
        known = how in HOWS if isinstance(how, str) else callable(how) or 400 <= how < 600
        if not known:
            raise ValueError(f"no such failure: {how!r}")
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if ratelimit is not None:
            headers["RateLimit"] = f'"api";r=0;t={ratelimit}'
            headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
        failure = Failure(chooser(which, len(self.log)), how, times, skip, seconds, headers)
        with self.lock:
            self.failures.append(failure)
        return failure

    def fail_share(self, share: float, how: str | int, *, seed: int = 0, which: str = "", **options: Any) -> Failure:
        """Let a random share of the requests that `which` finds fail, drawn by a generator of its own."""
        draw, found = random.Random(seed).random, chooser(which, 0)
        return self.fail(lambda request: found(request) and draw() < share, how, **{"times": math.inf, **options})

    # What the handlers call

    def arrived(self, method: str, target: str, headers: Any) -> tuple[Request, Failure | None]:
        with self.lock:
            request = Request(len(self.log) + 1, method, target, headers)
            self.log.append(request)
            return request, next((failure for failure in self.failures if failure.strikes(request)), None)

    def answer(self, request: Request) -> Answer:
        try:
            for methods, regex, function in ROUTES:
                match = regex.fullmatch(request.path)
                if match and request.method in methods:
                    parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    with self.lock:  # a commit is there whole or not at all, and no two happen at once
                        return function(self, request, **parts)
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            return refusal.answer(request)
        except Exception:
            self.errors.append(f"{request.method} {request.target}\n{traceback.format_exc()}")
            return json_answer({"error": "the test's server failed"}, 500)
