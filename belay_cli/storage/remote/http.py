"""Requests to web servers on the client of huggingface_hub: redirects with distrust, and errors in words."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from belay_cli.storage.remote.source import CONNECT_TIMEOUT, TIMEOUT, Refusal
from belay_cli.storage.remote.waiting import answered
from belay_cli.storage.retry import Trouble, may_pass, wanted_wait

_HOPS = 5  # redirects
ABSENT = (404, 410)


@dataclass(frozen=True)
class HttpTarget:
    """A URL, and the headers that let us in, which no other origin gets to see."""

    url: str = field(repr=False)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)


@contextmanager
def ask(
    method: str, target: HttpTarget, shown: str, headers: Mapping[str, str] | None = None, *, stay: bool = False
) -> Iterator[tuple[Any, str]]:
    """The answer with its body unread, and the URL it came from. Raises Trouble and CheckpointError.

    Redirects are followed; with `stay` only those within the origin, and the URL is that of the redirect.
    """
    url = target.url
    for _ in range(_HOPS + 1):
        own = target.secret if origin(url) == origin(target.url) else {}
        with _answer(method, url, {**(headers or {}), **own}, shown) as response:
            onward = _onward(response, url, shown)
            if onward is None or (stay and origin(onward) != origin(url)):
                yield response, onward or url
                return
        url = onward
    raise Refusal("is redirected without end", file=shown)


@contextmanager
def _answer(method: str, url: str, headers: Mapping[str, str], shown: str) -> Iterator[Any]:
    client = _client()
    library = importlib.import_module(type(client).__module__.partition(".")[0])
    offline = importlib.import_module("huggingface_hub.errors").OfflineModeIsEnabled
    _hide_queries(library.__name__)
    try:
        timeout = library.Timeout(TIMEOUT, connect=min(TIMEOUT, CONNECT_TIMEOUT))
        request = client.build_request(method, url, headers={"Accept-Encoding": "identity", **headers}, timeout=timeout)
        with answered(shown, origin(url)):
            response = client.send(request, stream=True, follow_redirects=False)
        try:
            yield response
        finally:
            response.close()  # an unread body is not read: its connection is closed
    # The causes are dropped: they may hold the URL, or the header that was not to be sent.
    except library.TransportError as error:
        raise _trouble(error, url, shown) from None
    except offline:
        raise Refusal(
            "is not asked for, since HF_HUB_OFFLINE is set", file=shown, hint="unset HF_HUB_OFFLINE"
        ) from None
    except RuntimeError:
        if not client.is_closed:
            raise
        raise Trouble("cannot be read: its connection was closed by this process") from None  # the next has a new one
    except (library.InvalidURL, UnicodeError):
        raise Refusal("is not a URL, or is redirected to none", file=shown) from None


def _client() -> Any:
    import huggingface_hub

    return huggingface_hub.get_session()


def _trouble(error: Exception, url: str, shown: str) -> Exception:
    kind, where = type(error).__name__, origin(url)
    if "CERTIFICATE" in str(error):
        hint = "SSL_CERT_FILE names the certificates to trust"
        return Refusal(f"has a server, {where}, whose certificate is not trusted", file=shown, hint=hint)
    if kind == "ConnectTimeout":
        within = f"within {min(TIMEOUT, CONNECT_TIMEOUT):g} s"
        return Trouble(f"cannot be read: no connection to {where} {within}", reached=False)
    if "Timeout" in kind:
        return Trouble(f"cannot be read: {where} was silent for {TIMEOUT:.0f} s")
    if kind in ("ConnectError", "ProxyError"):
        return Trouble(f"cannot be read: no connection to {where}", reached=False)
    return Trouble(f"cannot be read: {where} closed the connection")


def _onward(response: Any, url: str, shown: str) -> str | None:
    """Where an answer redirects to, or None. Raises Refusal for a place that must not be trusted."""
    if response.status_code not in (301, 302, 303, 307, 308):
        return None
    location: str = response.headers.get("Location", "")
    parts = urlsplit(urljoin(url, location))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refusal("is redirected to what is no web server", file=shown)
    if parts.scheme == "http" and urlsplit(url).scheme == "https":
        raise Refusal("is redirected from https to http, which anybody can read and change", file=shown)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def origin(url: str) -> str:
    """Scheme, host and port: what may share a secret. Nothing else of the URL, and no password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def refuse_transient(response: Any, url: str) -> None:
    """Raise Trouble for a status that may be another one soon."""
    status = response.status_code
    if may_pass(status):
        what = "had too many requests" if status == 429 else f"failed with status {status}"
        raise Trouble(f"cannot be read: {origin(url)} {what}", wait=wanted_wait(response.headers))


def refusal(response: Any, shown: str) -> Refusal:
    """The error for a status that will stay."""
    status = response.status_code
    if status in ABSENT:
        return Refusal("is not there", file=shown, absent=True)
    if status in (401, 403):
        return Refusal(
            f"is not given to us: its server says {status}",
            file=shown,
            hint="a signed URL expires; a password goes before the host: https://user:password@host/…",
        )
    return Refusal(f"cannot be read: its server says {status}", file=shown)


def marks_of(response: Any) -> dict[str, str]:
    """What tells the content of an answer from another: its ETag, or its date where it has none."""
    etag, date = plain_etag(response.headers.get("ETag", "")), response.headers.get("Last-Modified", "")
    if etag:
        return {"etag": etag}
    return {"date": date} if date else {}


def plain_etag(etag: str) -> str:
    """An ETag without quotes, and without the prefix of those that also stand for a compressed body."""
    return etag.strip().removeprefix("W/").strip('"')


class _NoQueries(logging.Filter):
    """The client logs every URL: without what was signed."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(re.sub(r"\?.*", "?…", str(a)) if _is_url(a) else a for a in record.args)
        return True


def _is_url(value: object) -> bool:
    return str(value).startswith(("http://", "https://"))


_no_queries = _NoQueries()


def _hide_queries(library: str) -> None:
    for name in (library, "huggingface_hub.utils._http"):
        logging.getLogger(name).addFilter(_no_queries)  # once, however often it is added
