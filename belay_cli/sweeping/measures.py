"""What an evaluation wrote: metrics by task, with their standard errors and directions where it states them.

Read are, in this order: the newest `results_*.json` below its output directory, as lm-evaluation-harness and lighteval
write them; else the last line of its stdout, as JSON or as a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from belay_cli.storage.json_file import JsonError, read_json

_LARGEST_LINE = 1_000_000  # bytes of stdout that are looked at
_OF_ERRORS = "_stderr"


class Measured(NamedTuple):
    """A number, its standard error, and whether higher is better; None for what is not stated."""

    value: float
    error: float | None
    higher: bool | None


class Key(NamedTuple):
    """A metric of a task. The task is empty for what a line of stdout says without one."""

    task: str
    metric: str

    def __str__(self) -> str:
        return " ".join(filter(None, self)) or "the number it printed"


Measures = Mapping[Key, Measured]


class NoResult(Exception):  # noqa: N818 - it reads as what it is
    """An evaluation left nothing that can be read; the message completes its name in a sentence."""


def read_measures(out: Path, stdout: Path) -> Measures:
    """Everything that an evaluation measured. Raises NoResult."""
    files = [path for path in out.rglob("results_*.json") if path.is_file()]
    if files:
        newest = max(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
        return _of_file(newest)
    return _of_text(_end_of(stdout))


def _of_file(path: Path) -> Measures:
    try:
        content = read_json(path)
    except JsonError as error:
        raise NoResult(f"{path.name} {error.message}") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not results:
        raise NoResult(f"{path.name} holds no results")
    found: dict[Key, Measured] = {}
    for task, metrics in results.items():
        for name, value, spread in _numbers(metrics):
            found[Key(task, name)] = Measured(value, spread, _direction(content, task, name))
    if not found:
        raise NoResult(f"{path.name} holds no numbers")
    return found


def _numbers(metrics: Any) -> Iterator[tuple[str, float, float | None]]:
    """Name, value and standard error of the metrics of a task. The error of `acc,none` is `acc_stderr,none`."""
    entries = metrics.items() if isinstance(metrics, dict) else ()
    # lm-evaluation-harness: each metric has a filter and an error, even "N/A"; `sample_len` and the like have none.
    filtered_ones = any("_stderr," in str(name) for name, _ in entries)
    for name, value in entries:
        if filtered_ones and "," not in str(name):
            continue
        base, comma, filtered = str(name).partition(",")
        if base.endswith(_OF_ERRORS) or not _is_number(value):
            continue
        error = metrics.get(f"{base}{_OF_ERRORS}{comma}{filtered}")
        known = _is_number(error) and 0 <= error < float("inf")  # "N/A", and a bare NaN, are no errors
        yield str(name), float(value), float(error) if known else None


def _direction(content: Mapping[str, Any], task: str, name: str) -> bool | None:
    """Whether higher is better, as lm-evaluation-harness says it by task, and lighteval in a task's configuration."""
    by_task = content.get("higher_is_better")
    told = by_task.get(task) if isinstance(by_task, dict) else None
    if isinstance(told, dict) and isinstance(told.get(name.partition(",")[0]), bool):
        return bool(told[name.partition(",")[0]])
    configs = content.get("config_tasks")
    for known, config in configs.items() if isinstance(configs, dict) else ():
        if known in (task, task.rpartition("|")[0]) and isinstance(config, dict):
            for metric in config.get("metric") or config.get("metrics") or ():
                if isinstance(metric, dict) and name in _names(metric.get("metric_name")):
                    higher = metric.get("higher_is_better")
                    higher = higher.get(name) if isinstance(higher, dict) else higher
                    return higher if isinstance(higher, bool) else None
    return None


def _names(told: Any) -> list[Any]:
    return told if isinstance(told, list) else [told]


def _end_of(stdout: Path) -> list[str]:
    """The last lines, without those that are empty at the end."""
    with stdout.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _LARGEST_LINE))
        return file.read().decode("utf-8", "replace").rstrip().splitlines()


def _of_text(lines: Sequence[str]) -> Measures:
    if not lines:
        raise NoResult("printed nothing, and wrote no results_*.json below its {out}")
    told = _last_json(lines)
    if _is_number(told):
        return {Key("", ""): Measured(float(told), None, None)}
    if not isinstance(told, dict):
        raise NoResult(f"printed a last line that is neither JSON nor a number: {lines[-1].strip()[:60]!r}")
    found = {Key("", name): Measured(value, spread, None) for name, value, spread in _numbers(told)}
    for task, metrics in told.items():
        for name, value, spread in _numbers(metrics):
            found[Key(str(task), name)] = Measured(value, spread, None)
    if not found:
        raise NoResult("printed a last line without a number")
    return found


def _last_json(lines: Sequence[str]) -> Any:
    """What the last line is as JSON, or the last lines as an object over several."""
    begins = [len(lines) - 1]
    if lines[-1].startswith("}"):  # as json.dumps(…, indent=2) writes it
        begins += [n for n in range(len(lines) - 1, -1, -1) if lines[n].startswith("{")][:1]
    for begin in begins:
        try:
            return json.loads("\n".join(lines[begin:]))
        except (ValueError, RecursionError):
            continue
    return None


def _is_number(value: Any) -> bool:
    """A number, NaN and infinity too; an integer that no float64 is near is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (value != value or abs(value) < 10**308)
