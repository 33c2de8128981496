"""Numbers as people read them."""

from __future__ import annotations

import pytest

from belay_cli import words


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (3_127_500_000, 6_950_000_000, "3.13 of 6.95 GB"),
        (0, 579_442_920, "0.00 of 0.58 GB"),
        (6_953_315_040, 6_953_315_040, "6.95 of 6.95 GB"),
        (12_345, 150_000_000, "0 of 150 MB"),
        (100, 512, "100 of 512 bytes"),
        (0, 0, "0 of 0 bytes"),
    ],
)
def test_what_is_done_of_all(done: int, total: int, expected: str) -> None:
    assert words.part(done, total) == expected
    assert words.part(done, total, "/") == expected.replace(" of ", "/")


@pytest.mark.parametrize(
    ("seconds", "said", "clock"),
    [
        (0, "0 s", "0:00"),
        (12.4, "12 s", "0:12"),
        (99, "99 s", "1:39"),
        (100, "2 min", "1:40"),
        (3599.6, "60 min", "1:00:00"),
        (7500, "2 h 5 min", "2:05:00"),
    ],
)
def test_times(seconds: float, said: str, clock: str) -> None:
    assert words.duration(seconds) == said
    assert words.clock(seconds) == clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.1 s"),
        (0.24, "0.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (600, "10 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_about_how_long_a_run_takes(seconds: float, said: str) -> None:
    assert words.about(seconds) == said
