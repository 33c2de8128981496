"""Trying again: the one place that decides how long, and that waits.

A request that another try may mend raises Trouble. This is ours because no client tries everything that belay asks:
huggingface_hub's retries uploads and nothing else, and fsspec's drivers each have rules of their own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

LONGEST_WISH = 60.0  # seconds that a server may ask for
_A_YEAR = 31_536_000  # seconds; what a server says may be no float
_LARGEST_WAIT = 8.0  # seconds

T = TypeVar("T")


class Trouble(Exception):  # noqa: N818 - it is not an error yet
    """A request that failed in a way that another try may mend.

    `what` happened, in words that follow the URL; `wait` is what the server asked for, in seconds; `reached` is
    False if no server answered.
    """

    def __init__(self, what: str, *, wait: float = 0.0, reached: bool = True) -> None:
        super().__init__(what)
        self.what, self.wait, self.reached = what, wait, reached


@dataclass(frozen=True)
class Patience:
    """How often a request is made at most, for how many seconds after the first it is made again, and the first wait.

    Each further wait is twice as long, up to 8 seconds.
    """

    tries: int
    seconds: float = float("inf")
    first_wait: float = 0.5

    def wait(self, attempt: int, wish: float) -> None:
        """Wait after the attempt of that number, counted from 1, at least the seconds that the server asked for."""
        longest = min(self.first_wait * 2.0 ** (attempt - 1), _LARGEST_WAIT)
        # Random, so that many threads do not come back together.
        pause(max(wish, longest * random.uniform(0.5, 1.0)))  # noqa: S311


def again(ask: Callable[[], T], patience: Patience) -> T:
    """Ask until it works, waiting longer each time. Raises the last Trouble when patience, or the server's, is out."""
    began = time.monotonic()
    for attempt in range(1, patience.tries):
        try:
            return ask()
        except Trouble as trouble:
            if trouble.wait > LONGEST_WISH or time.monotonic() - began > patience.seconds:
                raise
            patience.wait(attempt, trouble.wait)
    return ask()


def pause(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def may_pass(status: int) -> bool:
    """Whether an answer's status may be another one soon."""
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def wanted_wait(headers: Mapping[str, str]) -> float:
    """The seconds that an answer asks to wait: by Retry-After, a number or a date, or until the Hub's limit is lifted.

    0 if it asks for nothing.
    """
    from email.utils import parsedate_to_datetime  # here, as only an answer of a server has such a date

    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        limit = parse_ratelimit_headers(headers)
        return float(min(limit.reset_in_seconds, _A_YEAR)) if limit and not limit.remaining else 0.0
