"""Failures that wait for their requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.hub.messages import Request

CUT = ("refused", "cut before", "cut during", "cut after", "stall", "short")
HOWS = (*CUT, "short range", "ignore ranges", "slow", "proxy")
MESSAGES = {429: "Rate limited", 500: "Internal Error - We're working hard to fix this as soon as possible!"}


@dataclass
class Failure:
    """A failure that waits for its requests; `hits` are those that it struck."""

    which: Callable[[Request], bool]
    how: str | int | Callable[[Request], object]
    times: float
    skip: int
    seconds: float
    headers: dict[str, str]
    hits: list[Request] = field(default_factory=list)

    def strikes(self, request: Request) -> bool:
        if len(self.hits) >= self.times or not self.which(request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits.append(request)
        return True


def chooser(which: int | str | Callable[[Request], bool], seen: int) -> Callable[[Request], bool]:
    if isinstance(which, int):
        return lambda request: request.number >= seen + which
    if isinstance(which, str):
        pattern = re.compile(which)
        return lambda request: pattern.search(f"{request.method} {request.target}") is not None
    return which
