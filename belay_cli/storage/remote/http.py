"""Requests to web servers on the client of huggingface_hub: redirects with distrust, and errors in words."""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from belay_cli.errors import CheckpointError
from belay_cli.storage.remote.source import TIMEOUT, Refusal, Trouble

_HOPS = 5  # redirects
ABSENT = (404, 410)


@dataclass(frozen=True)
class Target:
    """A URL, and the headers that let us in, which no other origin gets to see."""

    url: str = field(repr=False)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)


@contextmanager
def ask(
    method: str, target: Target, shown: str, headers: Mapping[str, str] | None = None, *, stay: bool = False
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
        request = client.build_request(method, url, headers={"Accept-Encoding": "identity", **headers}, timeout=TIMEOUT)
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

    if not hasattr(huggingface_hub, "set_client_factory"):
        raise CheckpointError("reading URLs takes huggingface-hub 1.0 or newer", hint="pip install -U huggingface-hub")
    return huggingface_hub.get_session()


def _trouble(error: Exception, url: str, shown: str) -> Exception:
    kind, where = type(error).__name__, origin(url)
    if "CERTIFICATE" in str(error):
        hint = "SSL_CERT_FILE names the certificates to trust"
        return Refusal(f"has a server, {where}, whose certificate is not trusted", file=shown, hint=hint)
    if "Timeout" in kind:
        return Trouble(f"cannot be read: {where} was silent for {TIMEOUT:.0f} s", reached=kind != "ConnectTimeout")
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
    if status in (408, 425, 429) or (status >= 500 and status not in (501, 505)):
        what = "had too many requests" if status == 429 else f"failed with status {status}"
        raise Trouble(f"cannot be read: {origin(url)} {what}", wait=_wish(response.headers))


def _wish(headers: Mapping[str, str]) -> float:
    """Seconds to wait by Retry-After, a number or a date, or by the Hub's RateLimit; 0 without."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
        return float(limit[1]) if limit else 0.0


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
