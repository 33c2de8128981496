"""Trying again: how often, how long in between, and what a server asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from belay_cli.storage import retry
from belay_cli.storage.retry import Patience, Trouble, again, may_pass, wanted_wait


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[float] = []
    monkeypatch.setattr(retry, "pause", seen.append)
    return seen


def failing(*troubles: Any) -> Callable[..., Any]:
    """Raises each of them in turn; then returns how often it was called."""
    left, calls = list(troubles), []

    def ask() -> int:
        calls.append(1)
        if left:
            raise left.pop(0)
        return len(calls)

    return ask


def test_it_is_asked_until_it_works(waits: list[Any]) -> None:
    assert again(failing(Trouble("a"), Trouble("b")), Patience(3)) == 3
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_the_last_trouble_is_the_one_that_is_told(waits: list[Any]) -> None:
    with pytest.raises(Trouble, match="c"):
        again(failing(Trouble("a"), Trouble("b"), Trouble("c")), Patience(3))
    assert len(waits) == 2


def test_waits_grow_to_a_bound(waits: list[Any]) -> None:
    with pytest.raises(Trouble):
        again(failing(*[Trouble("a")] * 9), Patience(9))
    longest = [0.5, 1, 2, 4, 8, 8, 8, 8]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))


def test_what_the_server_asks_for_is_waited(waits: list[Any]) -> None:
    assert again(failing(Trouble("a", wait=17), Trouble("b", wait=60)), Patience(3)) == 3
    assert waits == [17, 60]


def test_nobody_waits_for_longer_than_a_minute(waits: list[Any]) -> None:
    with pytest.raises(Trouble, match="a"):
        again(failing(Trouble("a", wait=60.5)), Patience(9))
    assert waits == []


def test_patience_ends(waits: list[Any]) -> None:
    with pytest.raises(Trouble, match="a"):
        again(failing(Trouble("a")), Patience(9, seconds=-1.0))
    assert waits == []


def test_other_errors_are_not_tried_again(waits: list[Any]) -> None:
    with pytest.raises(KeyError):
        again(failing(KeyError()), Patience(9))
    assert waits == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": " 7 "}, 7),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55),
        ({"RateLimit": '"api";r=400;t=55'}, 0),
        ({"RateLimit": "limit=10"}, 0),
        ({"Retry-After": "5", "RateLimit": '"api";r=0;t=55'}, 5),
    ],
)
def test_what_a_server_asks_for(headers: dict[str, str], seconds: int) -> None:
    assert wanted_wait(headers) == seconds


def test_a_date_to_try_again() -> None:
    assert 28 < wanted_wait({"Retry-After": formatdate(time.time() + 30, usegmt=True)}) <= 30


def test_statuses_that_may_pass() -> None:
    passing = [status for status in range(200, 600) if may_pass(status)]
    assert passing == [408, 425, 429, 500, 502, 503, 504, *range(506, 600)]
