"""How far a command is: a bar on a terminal or in a notebook, elsewhere a line every 30 seconds.

A command is a sequence of phases (opening, replaying, syncing, checking). Each is a context; what it yields is called
with what is done so far, from any thread.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import rich.console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from belay_cli import words
from belay_cli.show.styles import BAR, DONE, TRACK

EVERY = 30.0  # seconds between two lines
_SHORT = 0.1  # seconds that are too few for a speed
_SOON = 0.3  # seconds before a phase of unknown length is shown: most are over by then


class Phase:
    """One phase: `total` is in bytes or, if `share`, 1; None where the length is not known. Times in seconds."""

    def __init__(
        self, description: str, total: float | None, *, share: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.description, self.total, self.done = words.printable(description), total, 0.0
        self._share, self._clock, self._began = share, clock, clock()

    def __call__(self, done: float) -> None:
        """Say what is done so far, in the unit of the total."""
        self.done = done

    def describe(self, description: str) -> None:
        """Say it in other words, once more is known: how many checkpoints are opened."""
        self.description = words.printable(description)

    @property
    def elapsed(self) -> float:
        """Seconds since the phase began."""
        return self._clock() - self._began

    @property
    def fraction(self) -> float | None:
        """What is done, from 0 to 1; None where the length is not known."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def left(self) -> float | None:
        """Seconds that are left at the speed so far; None where that says nothing: at the beginning and at the end."""
        fraction, elapsed = self.fraction, self.elapsed
        if not fraction or fraction == 1 or elapsed < 1:
            return None
        return elapsed / fraction * (1 - fraction)

    def line(self) -> str:
        """`Replaying 45%, 3.12 of 6.95 GB, 12 s left`."""
        if self.total is None or self.fraction is None:
            return f"{self.description}, {words.duration(self.elapsed)} so far"
        parts = [f"{self.description} {self.fraction:.0%}"]
        parts += [] if self._share else [words.part(self.done, self.total)]
        parts += [] if self.left is None else [f"{words.duration(self.left)} left"]
        return ", ".join(parts)

    def figures(self) -> str:
        """`3.12/6.95 GB  1.20 GB/s  0:12`, the time being what is left, or at the end what it took."""
        if self.total is None or self.fraction is None:
            return words.clock(self.elapsed)
        parts = [f"{self.fraction:4.0%}"] if self._share else [words.part(self.done, self.total, "/")]
        if not self._share and self.done and self.elapsed >= _SHORT:
            parts.append(f"{words.size(int(self.done / self.elapsed))}/s")
        shown = self.elapsed if self.fraction == 1 else self.left
        return "  ".join(parts + ([] if shown is None else [words.clock(shown)]))


class Display:
    """Shows phases. `screen` draws bars; `say` is given lines, instead or beside them; either may be None."""

    def __init__(
        self,
        screen: rich.console.Console | None,
        say: Callable[[str], None] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
    ) -> None:
        self._screen, self._say, self._clock, self._every = screen, say, clock, every

    @contextmanager
    def phase(
        self, description: str, total: float | None = None, *, share: bool = False, keep: bool = False
    ) -> Iterator[Phase]:
        """A phase, shown until the context is left; with `keep` its bar stays on the screen."""
        phase = Phase(description, total, share=share, clock=self._clock)
        with ExitStack() as stack:
            if self._screen is not None:
                stack.enter_context(_drawn(self._screen, phase, keep))
            if self._say is not None:
                stack.enter_context(_said(self._say, phase, self._every))
            yield phase


def can_draw(screen: rich.console.Console) -> bool:
    """Whether bars can be drawn: on a terminal that moves its cursor, and in a notebook with ipywidgets."""
    return screen.is_interactive or (screen.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


@contextmanager
def _said(say: Callable[[str], None], phase: Phase, every: float) -> Iterator[None]:
    """Say how far the phase is, every so many seconds, even while nothing is heard from it."""
    over = threading.Event()

    def talk() -> None:
        while not over.wait(every):
            with contextlib.suppress(OSError):  # a full disk under a log ends no work
                say(phase.line())

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _drawn(screen: rich.console.Console, phase: Phase, keep: bool) -> Iterator[None]:
    """Draw the phase: at once if its length is known, else as soon as it lasts."""
    bar = Progress(*_columns(screen, phase), console=screen, transient=not keep, expand=phase.total is not None)
    bar.add_task("", total=phase.total, phase=phase)
    lock, over = threading.Lock(), threading.Event()

    def start() -> None:
        with lock:
            if not over.is_set():
                bar.start()

    later = threading.Timer(_SOON, start)
    later.daemon = True
    later.start() if phase.total is None else start()
    try:
        yield
    finally:
        later.cancel()
        with lock:
            over.set()
            if bar.live.is_started:
                bar.refresh()  # a notebook keeps what was drawn last
                bar.stop()


def _columns(screen: rich.console.Console, phase: Phase) -> list[ProgressColumn]:
    description = _Of(lambda phase: phase.description)
    if phase.total is None:
        plain = not screen.encoding.lower().startswith("utf")
        return [SpinnerColumn("line" if plain else "dots", style=BAR), description, _Of(Phase.figures)]
    bar = _Bar(bar_width=None)
    return [description, bar, _Of(Phase.figures)]


class _Of(TextColumn):
    """A text of the phase, as it is at the time."""

    def __init__(self, text: Callable[[Phase], str]) -> None:
        super().__init__("", table_column=Column(no_wrap=True))
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task.fields["phase"]))


class _Bar(BarColumn):
    """A bar of the phase, as long as it is at the time."""

    def render(self, task: Task) -> ProgressBar:
        fraction = task.fields["phase"].fraction
        return ProgressBar(1.0, fraction or 0.0, style=TRACK, complete_style=BAR, finished_style=DONE)
