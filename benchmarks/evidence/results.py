"""Results as JSON files beside this one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """What was written by this name, or nothing."""
    path = FOLDER / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(name: str, results: dict[str, Any]) -> None:
    """One entry a line, sorted, so that a change shows as one."""
    FOLDER.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in sorted(results.items())]
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def timed(work: tuple[Callable[[Any], T], Any]) -> tuple[T, float]:
    """A function of one argument, its result and its seconds."""
    begun = time.perf_counter()
    result = work[0](work[1])
    return result, time.perf_counter() - begun
