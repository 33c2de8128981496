"""How far a command is: the figures by a clock of the test, the lines and the bars as they are shown."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import rich.console

from belay_cli.show.console import Console
from belay_cli.show.progress import Display, Phase, can_draw
from tests.show.terminal import Terminal, terminals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def phase(total: float | None = 6_950_000_000, **options: Any) -> tuple[Clock, Phase]:
    clock = Clock()
    return clock, Phase("Replaying", total, clock=clock, **options)


def test_nothing_is_guessed_at_the_beginning_and_at_the_end() -> None:
    clock, replaying = phase()
    assert replaying.line() == "Replaying 0%, 0.00 of 6.95 GB"
    assert replaying.figures() == "0.00/6.95 GB"
    clock.now += 0.5
    replaying(100_000_000)
    assert replaying.line() == "Replaying 1%, 0.10 of 6.95 GB"  # half a second says nothing yet
    clock.now += 9.5
    replaying(3_127_500_000)
    assert replaying.line() == "Replaying 45%, 3.13 of 6.95 GB, 12 s left"
    assert replaying.figures() == "3.13/6.95 GB  313 MB/s  0:12"
    clock.now += 10
    replaying(6_950_000_000)
    assert replaying.line() == "Replaying 100%, 6.95 of 6.95 GB"
    assert replaying.figures() == "6.95/6.95 GB  348 MB/s  0:20"
    assert "?" not in replaying.figures() + replaying.line()


def test_a_phase_of_unknown_length() -> None:
    clock, opening = phase(None)
    opening.describe("Opening 12 checkpoints\x1b[2J")
    clock.now += 75
    assert opening.line() == "Opening 12 checkpoints\\x1b[2J, 75 s so far"
    assert opening.figures() == "1:15"
    assert opening.left is None


def test_a_share() -> None:
    clock, checking = phase(1.0, share=True)
    clock.now += 240
    checking(0.25)
    assert checking.line() == "Replaying 25%, 12 min left"
    assert checking.figures() == " 25%  12:00"


def test_nothing_to_read_is_all_of_it() -> None:
    _, replaying = phase(0)
    assert replaying.line() == "Replaying 100%, 0 of 0 bytes"


def test_a_line_every_so_often_though_nothing_is_heard() -> None:
    lines: list[str] = []
    twice = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            twice.set()

    with Display(None, say, every=0.01).phase("Syncing to disk"):
        assert twice.wait(30)
    count = len(lines)
    time.sleep(0.05)
    assert lines[:2] == ["Syncing to disk, 0 s so far"] * 2
    assert len(lines) == count  # and none once it is over


def test_no_line_for_what_is_soon_over() -> None:
    lines: list[str] = []
    with Display(None, lines.append).phase("Opening"):
        pass
    assert lines == []


def test_a_line_that_cannot_be_written_ends_no_work() -> None:
    tried = threading.Event()

    def say(line: str) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    with Display(None, say, every=0.01).phase("Replaying", 10):
        assert tried.wait(30)
        time.sleep(0.05)


def test_it_is_told_from_many_threads() -> None:
    lines: list[str] = []
    screen = rich.console.Console(file=Terminal(), force_terminal=True, width=80)
    with Display(screen, lines.append, every=0.001).phase("Replaying", 1000) as told, ThreadPoolExecutor(8) as threads:
        list(threads.map(told, range(1001)))
    assert told.done <= 1000


def drawn(screen_width: int, total: int | None, keep: bool, seconds: float = 0.0) -> Terminal:
    file = Terminal()
    screen = rich.console.Console(file=file, force_terminal=True, width=screen_width, highlight=False)
    with Display(screen, None).phase("Replaying [bold]", total, keep=keep) as told:
        time.sleep(seconds)
        told(total or 0)
    return file


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_bar_is_as_wide_as_the_terminal(width: int) -> None:
    file = drawn(width, 2_000_000_000, keep=True)
    last = file.text.rstrip().splitlines()[-1].rpartition("\r")[2].rstrip()
    assert len(last) <= width
    if width > 40:  # there the description gives way, should the machine be slow and a speed be shown
        assert re.fullmatch(r"Replaying \[bold\] ━+ 2\.00/2\.00 GB  ([\d.]+ [GM]B/s  )?0:0\d", last)
    assert "?" not in last and "-:--" not in file.text


def test_a_bar_that_is_not_kept_is_wiped() -> None:
    assert drawn(60, 10, keep=False).getvalue().rstrip().endswith("\x1b[2K")


def test_a_short_phase_of_unknown_length_is_not_drawn() -> None:
    assert drawn(60, None, keep=False).getvalue() == ""
    assert "Replaying [bold]" in drawn(60, None, keep=False, seconds=0.6).text


def test_an_error_in_a_phase_is_the_error() -> None:
    screen = rich.console.Console(file=Terminal(), force_terminal=True, width=60)
    with pytest.raises(ZeroDivisionError), Display(screen, print).phase("Replaying", 10):
        raise ZeroDivisionError
    assert threading.active_count() < 20


@pytest.mark.parametrize(("options", "drawn"), [({}, True), ({"json": True}, False), ({"quiet": True}, False)])
def test_who_is_shown_progress(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], drawn: bool) -> None:
    out, err = terminals(monkeypatch, 80)
    with Console(**options).phase("Replaying", 10) as told:
        told(10)
    assert ("Replaying" in err.text, out.text) == (drawn, "")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = terminals(monkeypatch, 80, TERM="dumb")
    assert not Console().animated
    with Console().phase("Replaying", 10) as told:
        told(10)
    assert err.text == ""


@pytest.mark.parametrize("there", [True, False])
def test_a_notebook_draws_with_ipywidgets_only(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if there else None)
    assert can_draw(rich.console.Console(force_jupyter=True)) is there
