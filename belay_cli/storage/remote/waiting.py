"""What a person hears while a server is not reached: that it is waited for, and that it is tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SOON = 4.0  # seconds without an answer, after which that is said
_ONCE = 60.0  # seconds in which the same sentence, of one thread or several, is said once

_listeners: list[Callable[[str], None]] = []
_said: dict[str, float] = {}
_lock = threading.Lock()


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a listener is told a sentence at a time, by whichever thread waits."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def answered(shown: str, origin: str) -> Iterator[None]:
    """While the block runs a server is expected to answer; if it does not soon, that is said once."""
    late = threading.Timer(SOON, say, [f"{shown}: no answer from {origin} yet"])
    late.daemon = True
    if _listeners:
        late.start()
    try:
        yield
    finally:
        late.cancel()


def say(text: str) -> None:
    """Tell those who listen, but for what has just been said."""
    with _lock:
        again = time.monotonic() - _said.get(text, -_ONCE) < _ONCE
        _said[text] = time.monotonic()
    for listener in () if again else tuple(_listeners):
        listener(text)
