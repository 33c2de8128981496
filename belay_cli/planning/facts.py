"""What rules ask about each checkpoint: numbers from a person, by name or in order, and what the run recorded."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from belay_cli import words
from belay_cli.checkpoints import Series
from belay_cli.checkpoints.metrics import recorded_metric
from belay_cli.errors import UsageError
from belay_cli.formats.text import listed
from belay_cli.storage.local import reason

_LARGEST = 100_000_000  # bytes of a file


class SeriesFacts:
    """The facts of one series."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self.names = [checkpoint.name for checkpoint in series.checkpoints]
        self.steps = [checkpoint.step for checkpoint in series.checkpoints]

    def numbers(self, flag: str, given: Any, *, whole: bool) -> list[float]:
        """One number for each checkpoint: in order, or by name, by path or by step.

        given: the name of a .json or .csv file, numbers with commas between them, a sequence, or a mapping.
        """
        told = _read(flag, given) if isinstance(given, str) else given
        if isinstance(told, Mapping):
            return self._by_name(flag, told, whole=whole)
        numbers = [_number(flag, one) for one in told]
        if len(numbers) == 1 and len(self.names) > 1 and flag == "--widths":
            return numbers * len(self.names)  # one width for all of them
        if len(numbers) != len(self.names):
            raise UsageError(
                f"{flag} has {words.plural(len(numbers), 'number')} for {words.plural(len(self.names), 'checkpoint')}",
                hint="give one for each, in the order of belay plan, or a file by name",
            )
        return numbers

    def _by_name(self, flag: str, told: Mapping[str, Any], *, whole: bool) -> list[float]:
        left, found = dict(told), []
        for checkpoint in self._series.checkpoints:
            path = str(checkpoint.path)
            known = (checkpoint.name, path, path.rpartition("/")[2], str(checkpoint.step))
            names = [name for name in dict.fromkeys(known) if name in left]
            if not names:
                raise UsageError(
                    f"{flag} has no number for {checkpoint.name}", hint="name each checkpoint of the series"
                )
            found.append(_number(flag, left.pop(names[0])))
        if whole and left:
            raise UsageError(
                f"{flag} names {listed(list(map(str, left)))}, and the series has no such checkpoint",
                hint="belay inspect shows their names",
            )
        return found

    def recorded(self, metric: str) -> tuple[list[float], str | None]:
        """A metric as the run recorded it at each checkpoint, and its good end if the run says that: `min` or `max`."""
        found = [recorded_metric(checkpoint, metric) for checkpoint in self._series.checkpoints]
        without = [name for name, one in zip(self.names, found, strict=True) if one is None]
        if without:
            count = f" and {len(without) - 1} more" if len(without) > 1 else ""
            raise UsageError(
                f"{without[0]}{count} record{'' if count else 's'} no {metric}",
                hint="--scores FILE, with a number for each checkpoint, or leave those out",
            )
        values = [one.value for one in found if one is not None]
        modes = {one.mode for one in found if one is not None and one.mode}
        return values, modes.pop() if len(modes) == 1 else None


def _number(flag: str, told: Any) -> float:
    try:
        number = float(told) if not isinstance(told, bool) else math.nan
    except (TypeError, ValueError):
        raise UsageError(f"{flag}: {told!r} is no number") from None
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{flag}: {told} is no number that can be")
    return number


def _read(flag: str, text: str) -> Sequence[Any] | Mapping[str, Any]:
    """What is typed after an option: numbers, or the name of a file with them."""
    parts = [part.strip() for part in text.split(",")]
    if all(map(words.is_number, parts)):
        return parts
    path = Path(text).expanduser()
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"{flag} {text} is over {words.size(_LARGEST)}")
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"{flag} {text} cannot be read: {why}", hint="give a .json or .csv file, or numbers") from None
    return _json(flag, text, content) if content.lstrip()[:1] in ("{", "[") else _csv(flag, text, content)


def _json(flag: str, name: str, content: str) -> Sequence[Any] | Mapping[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UsageError(f"{flag} {name} has {key} twice")
            found[key] = value
        return found

    try:
        told = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise UsageError(f"{flag} {name} is not valid JSON") from None
    if isinstance(told, list | dict):
        return told
    raise UsageError(f"{flag} {name} is neither an object by name nor a list of numbers")


def _csv(flag: str, name: str, content: str) -> Mapping[str, Any]:
    """Rows of a name or step and a number, with or without a heading."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(content), strict=True) if row]
    except csv.Error as error:
        raise UsageError(f"{flag} {name} is no CSV: {error}") from None
    if rows and not words.is_number(rows[0][-1]):
        rows = rows[1:]  # the heading
    found: dict[str, Any] = {}
    for row in rows:
        if len(row) != 2:
            raise UsageError(
                f"{flag} {name}: a row has {words.plural(len(row), 'column')}, not a checkpoint and a number",
                hint="write checkpoint-500,0.93",
            )
        if row[0] in found:
            raise UsageError(f"{flag} {name} has {row[0]} twice")
        found[row[0]] = row[1]
    if not found:
        raise UsageError(f"{flag} {name} is empty")
    return found
