"""Requests, answers and refusals, and which function answers which path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

BAD_TOKEN = "Invalid credentials in Authorization header"
NO_TOKEN = "Invalid username or password."


@dataclass
class Request:
    number: int
    method: str
    target: str  # path and query, as sent
    headers: Any
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.target.partition("?")[2]).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def asks(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def answer(self, request: Request) -> Answer:
        # Over https the client takes a 401 of a repo's URL for a repo that is missing, whatever its message, except for
        # BAD_TOKEN. This server has no https: with the code, the client raises over http what it raises on the Hub.
        of_a_repo = re.match(r"/api/models/.+|/.+/resolve/.+", request.path)
        if self.status == 401 and self.message != BAD_TOKEN and of_a_repo:
            self.code = "RepoNotFound"
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
        return json_answer({"error": self.message}, self.status, headers)


PARTS = {"repo": "[^/]+/[^/]+", "revision": "[^/]+", "path": ".+", "oid": "[0-9a-f]{64}", "part": r"\d+"}
ROUTES: list[tuple[list[str], re.Pattern[str], Callable[..., Answer]]] = []


def route(methods: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    regex = re.compile(re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{PARTS[name[1]]})", pattern))

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((methods.split(), regex, function))
        return function

    return register


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    same = request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
    if match is None or not any(match.groups()) or not same:
        return Answer(200, data, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
