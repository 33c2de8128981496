"""What is tried: methods with values of their options; a grid by default, and the halving around the best.

A candidate is a method with one value of each of its options that the grid names. An option belongs to the methods
that take it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from belay_cli.errors import UsageError
from belay_cli.options import Declared, declared_in, flag, one_of
from belay_cli.rules import METHODS, Rule, Uniform, asked

# Where lists have commas of their own.
_WHOLE = ("coefficients_", "scores", "widths")
# In a sweep --metric is that of the evaluation.
OTHER_NAMES = {"metric": "best_metric", "mode": "best_mode"}

_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?(.*)", re.ASCII | re.IGNORECASE)
_LONGEST = 200  # characters of a label
_FINEST = 1.02  # two values whose ratio is less are one

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A rule that is tried. `label`: its method and options, as they are typed; `given`: the options' values."""

    label: str
    method: str
    given: Given
    rule: Rule

    @property
    def is_baseline(self) -> bool:
        """Whether it is in every sweep: the last checkpoint, and the uniform average."""
        return self.label in (LAST, UNIFORM)


LAST, UNIFORM = "last checkpoint", "uniform"


@dataclass(frozen=True)
class Grid:
    """Values by option, None where nothing was said. methods: empty for those of the default grid."""

    methods: tuple[str, ...] = ()
    values: Given | None = None

    @classmethod
    def typed(cls, method: str | None, values: Mapping[str, Any]) -> Grid:
        """From what was typed: lists with commas. Raises UsageError."""
        named = [] if method is None else [name.strip() for name in method.split(",")]
        if "" in named:
            raise UsageError(f"--method {method!r} has an empty value", hint="--method ema,uniform")
        methods = [one_of("--method", name, tuple(METHODS)) for name in named]
        found: dict[str, Any] = {}
        for name, text in values.items():
            if text in (None, False):
                continue
            found[name] = [text] if text is True or name in _WHOLE else [p.strip() for p in text.split(",")]
            if "" in found[name]:
                raise UsageError(f"{flag(name)} {text!r} has an empty value", hint=f"{flag(name)} 1,2,4")
        return cls(tuple(dict.fromkeys(methods)), found)

    def candidates(self, checkpoints: int) -> list[Candidate]:
        """All of the grid, for a series of so many checkpoints, after the last one and the uniform average.

        Raises UsageError for a value that no rule can have, and for an option that no method of the grid takes.
        """
        given = dict(self.values or {})
        methods = self.methods or _methods_of(given)
        for name in given:
            if not any(name in _taken(method) for method in methods):
                asked(methods[0], {name: given[name][0]})  # which says whose option it is
        found = [*baselines(), *(one for method in methods for one in self._of_method(method, given, checkpoints))]
        unique: dict[str, Candidate] = {}
        for one in found:
            unique.setdefault(one.label, one)
        return list(unique.values())

    def _of_method(self, method: str, given: Given, checkpoints: int) -> Iterator[Candidate]:
        own = {name: values for name, values in given.items() if name in _taken(method)}
        for choice in _products(own) if own else _by_default(method, checkpoints):
            yield candidate(method, choice)


def baselines() -> list[Candidate]:
    """What every sweep has."""
    return [Candidate(LAST, "uniform", {}, Uniform(window=1)), Candidate(UNIFORM, "uniform", {}, Uniform())]


def candidate(method: str, given: Given) -> Candidate:
    """The candidate with these options. Raises UsageError."""
    rule = asked(method, {name: _typed(method, name, value) for name, value in given.items()})
    return Candidate(method + _said_options(given), method, dict(given), rule)


def of_rule(rule: Rule) -> Candidate:
    """A candidate of a rule that was made in Python."""
    options = declared_in(type(rule))
    given = {option.name: getattr(rule, option.name) for option in options if not _is_default(rule, option)}
    # A rule with every parameter a number has no options left, and says what it is itself.
    said = _said_options(given) if options else " ".join(["", *rule.arguments()])
    label = f"{rule.method}{said}".rstrip()
    if len(label) > _LONGEST:
        label = f"{label[:_LONGEST]}… {hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return Candidate(label, rule.method, given, rule)


def _is_default(rule: Rule, option: Declared) -> bool:
    return bool(getattr(rule, option.name) == option.default)


def _said_options(given: Given) -> str:
    """Options as they are typed in a sweep."""
    return "".join(f" {flag(OTHER_NAMES.get(n, n))}" + ("" if v is True else f" {v}") for n, v in given.items())


@contextlib.contextmanager
def as_typed() -> Iterator[None]:
    """What a rule says of its options, in the names that these have in a sweep."""
    try:
        yield
    except UsageError as error:
        texts = [error.message, error.hint or ""]
        for name, other in OTHER_NAMES.items():
            texts = [re.sub(rf"{flag(name)}\b", flag(other), text) for text in texts]
        raise UsageError(texts[0], hint=texts[1] or None) from error


def _methods_of(given: Given) -> tuple[str, ...]:
    """The methods of the default grid, and those that an option is called like."""
    implied = [name.rstrip("_") for name in given if name.rstrip("_") in METHODS]
    return tuple(dict.fromkeys([*_DEFAULT, *implied]))


def _taken(method: str) -> dict[str, Declared]:
    return {declared.name: declared for declared in declared_in(METHODS[method])}


def _typed(method: str, name: str, value: Any) -> Any:
    """A value as the option's own type."""
    kind = _taken(method)[name].type
    if kind not in (int, float) or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{flag(name)} takes {what}, not {value}", hint=f"{flag(name)} 1,2,4") from None


def _products(values: Mapping[str, Sequence[Any]]) -> Iterator[Given]:
    for choice in itertools.product(*values.values()):
        yield dict(zip(values, choice, strict=True))


_DEFAULT: dict[str, Mapping[str, Sequence[Any]]] = {
    "ema": {"half_life": ("2%", "5%", "10%", "20%", "40%")},
    # Replayed, BELAY lags twice as far as the EMA of its half-life.
    "belay": {"half_life": ("1%", "2.5%", "5%", "10%", "20%")},
    "uniform": {},
    "wsm": {},
    "power": {"sigma_rel": ("0.05", "0.1", "0.15", "0.2")},
}
_MORE: dict[str, Mapping[str, Sequence[Any]]] = {
    "polynomial": {"eta": ("1", "3", "8", "16")},
    "posthoc": {"sigma_rel": ("0.05", "0.1", "0.15", "0.2")},
    "bema": {},
    "best": {"best": ("3", "5")},
}


def _by_default(method: str, checkpoints: int) -> Iterator[Given]:
    """What is tried of a method where nothing is said of it."""
    if method in ("uniform", "wsm"):
        yield {}
        windows = {math.ceil(checkpoints / part) for part in (2, 4, 8)}
        yield from ({"window": str(w)} for w in sorted(windows, reverse=True) if 2 <= w < checkpoints)
        return
    yield from _products({**_DEFAULT, **_MORE}.get(method, {}))


# ---- the grid around the best


def axes(candidates: Iterable[Candidate], best: Candidate) -> dict[str, list[float]]:
    """By option, the numbers that the candidates of the best one's method have, rising, if there are several.

    Only of those that are like the best in all other options, and whose value is of the same unit.
    """
    found: dict[str, list[float]] = {}
    for name, value in best.given.items():
        if (own := _number(value)) is None:
            continue
        numbers = set()
        for other in candidates:
            alike = other.method == best.method and other.given.keys() == best.given.keys()
            if alike and all(other.given[n] == best.given[n] for n in best.given if n != name):
                number = _number(other.given[name])
                numbers |= {number[0]} if number and number[1] == own[1] else set()
        if len(numbers) > 1:
            found[name] = sorted(numbers)
    return found


def at_edges(candidates: Sequence[Candidate], best: Candidate) -> list[tuple[str, str]]:
    """The options in which the best is at an end of the grid, and a value beyond it."""
    found = []
    for name, numbers in axes(candidates, best).items():
        own = _number(best.given[name])
        assert own is not None  # noqa: S101 - it is on an axis
        rest = {other: value for other, value in best.given.items() if other != name}
        unlimited = any(one.method == best.method and one.given == rest for one in candidates)
        if own[0] == numbers[0] or (own[0] == numbers[-1] and not unlimited):  # without --window it is the whole
            beyond = _beyond(numbers, own[0])
            if _can_be(best, name, _said(beyond, best.given[name])):
                found.append((name, _said(beyond, best.given[name])))
    return found


def refined(candidates: Sequence[Candidate], best: Candidate) -> list[Candidate]:
    """Candidates half way to the best one's neighbours on each axis, by ratio; beyond an end, one step more."""
    found: list[Candidate] = []
    for name, numbers in axes(candidates, best).items():
        own = _number(best.given[name])
        assert own is not None  # noqa: S101 - it is on an axis
        place = numbers.index(own[0])
        between = [math.sqrt(own[0] * numbers[i]) for i in (place - 1, place + 1) if 0 <= i < len(numbers)]
        between += [_beyond(numbers, own[0])] if place in (0, len(numbers) - 1) else []
        for number in between:
            said = _said(number, best.given[name])
            new = _number(said)
            near = new is None or any(max(new[0], n) < _FINEST * min(new[0], n) for n in numbers)
            if not near and _can_be(best, name, said):
                found.append(candidate(best.method, {**best.given, name: said}))
    return found


def _beyond(numbers: Sequence[float], end: float) -> float:
    """One step past an end of the grid, by the ratio of the last two."""
    inner = numbers[1] if end == numbers[0] else numbers[-2]
    return end * end / inner if inner > 0 and end > 0 else end


def _can_be(best: Candidate, name: str, said: str) -> bool:
    try:
        candidate(best.method, {**best.given, name: said})
    except UsageError:
        return False
    return True


def _number(value: Any) -> tuple[float, str] | None:
    """A value as a number above 0, and the unit behind it."""
    found = _NUMBER.fullmatch(str(value).strip()) if value is not True else None
    number = float(found[1] + (found[2] or "")) if found else 0.0
    return (number, found[3].strip()) if found and number > 0 else None


def _said(number: float, like: Any) -> str:
    """A number as a value of the same kind."""
    _, unit = _number(like) or (0.0, "")
    whole = re.fullmatch(r"\d+", str(like)) is not None
    return f"{round(number)}" if whole else f"{number:.3g}{unit}"
