"""Interrupts that come when they may: a step is never left half done, and a lock never half taken."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from belay_cli.errors import Terminated

T = TypeVar("T")
Heard = Callable[[], None]  # raises what a signal stands for, if one has come

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def signals_held() -> Iterator[Heard]:
    """Ctrl-C and SIGTERM wait until they are asked for, or until the end of the block.

    An exception out of a signal's handler may come between any two steps, also of a lock that is being taken. One that
    is asked for comes where nothing is under way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held: list[int] = []
    before = {s: signal.signal(s, lambda number, frame: held.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}

    def heard() -> None:
        if held:
            number = held.pop(0)
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, None)
            elif handler == signal.SIG_DFL:
                signal.signal(number, handler)
                signal.raise_signal(number)

    try:
        yield heard
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        if held:  # one is enough: the second would come while the first is on its way
            signal.raise_signal(held[0])


def meanwhile(work: Callable[[], T], heard: Heard) -> T:
    """What `work` returns, done in a thread of its own, since whoever waits for a disk hears no signal.

    A process that is terminated does not wait for the rest of it; whoever else is interrupted does, as the thread
    uses files that are to be closed.
    """
    with contextlib.ExitStack() as after:
        thread = ThreadPoolExecutor(1)
        after.callback(thread.shutdown)
        running: Future[T] = thread.submit(work)
        try:
            while not running.done():
                wait([running], timeout=_POLL_SECONDS)
                heard()
        except Terminated:
            after.pop_all()
            raise
        return running.result()
