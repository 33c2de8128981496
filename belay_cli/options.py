"""Options: what can be asked for, declared once, beside the field that it sets.

A group of options is a frozen dataclass; `name: Annotated[type, Option("help")] = default` is one of them. The command
line is made from these declarations, and the Python API takes the same fields by the same names.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from inspect import get_annotations
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from belay_cli.errors import UsageError


@dataclass(frozen=True)
class Option:
    """How a field is said on the command line, where its name is that of the field with dashes.

    `short` is a second name, such as -o; `metavar` stands for the value in the help; `also` are other words for the
    choices of a Literal, which are understood; `argument`: it is given by position, without a name; `several`: it takes
    all values up to the next option, as a glob of the shell gives them; `grouped`: one of it is up to three words, the
    third a number; `panel` is the heading in the help of an option
    outside a group; what is `secret` is never shown, in an error either. A switch that is True by default says the
    opposite: --no-NAME.
    """

    help: str
    metavar: str | None = None
    short: str | None = None
    also: Mapping[str, str] = field(default_factory=dict, hash=False)
    argument: bool = False
    several: bool = False
    grouped: bool = False
    panel: str | None = None
    secret: bool = False


class Declared(NamedTuple):
    """One option of a group: its field's name, type without Option and None, default, and declaration."""

    name: str
    type: Any
    default: Any
    option: Option
    panel: str

    @property
    def flag(self) -> str:
        """As it is typed."""
        return flag(self.name, negative=self.default is True)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have; empty if they are not listed."""
        return choices(self.type)


class Options:
    """A group of options, for a frozen dataclass to inherit. Raises UsageError for a value that is no choice."""

    panel: ClassVar[str] = "Options"

    def __post_init__(self) -> None:
        """Understand other words for a choice, and refuse what is none, or is of another type."""
        for declared in declared_in(type(self)):
            value = getattr(self, declared.name)
            if value is None and declared.default is None:
                continue
            understood = choice(declared, value) if declared.choices else _plain(declared, value)
            object.__setattr__(self, declared.name, understood)


def declared_in(group: type[Any]) -> tuple[Declared, ...]:
    """The options of a group, in the order of its fields."""
    return _declared_in(cast(Hashable, group))


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    str: ((str,), "text"),
}


def _plain(declared: Declared, value: Any) -> Any:
    """A value as one of Python's own, so that it is written down alike whoever gives it: 2 for a number is 2.0.

    Raises UsageError if it is of none of the option's types; a type that is no plain one is not looked at.
    """
    kinds = get_args(declared.type) or (declared.type,)
    if get_origin(declared.type) is tuple:
        if not (isinstance(value, tuple) and all(isinstance(one, str) for one in value)):
            raise UsageError(f"{declared.flag} takes texts, not {value!r}")
        return value
    known = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    if len(known) < len(kinds):
        return value
    given = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
    for kind in kinds:
        if isinstance(given, _KINDS[kind][0]) and isinstance(given, bool) == (kind is bool):
            return kind(given)
    shown = type(value).__name__ if declared.option.secret else repr(value)
    raise UsageError(f"{declared.flag} takes {' or '.join(words for _, words in known)}, not {shown}")


@cache
def _declared_in(group: Hashable) -> tuple[Declared, ...]:
    assert isinstance(group, type)  # noqa: S101 - which every type checker knows and no cache
    hints = get_type_hints(group, include_extras=True)
    found = []
    for one in fields(group):
        hint = hints[one.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, *more = get_args(hint)
        option = next((extra for extra in more if isinstance(extra, Option)), None)
        if option is not None:
            found.append(Declared(one.name, without_none(kind), _default(one), option, _panel(group, one.name)))
    return tuple(found)


def _panel(group: type, name: str) -> str:
    """The panel of the group that declares the option, which may be one that this group is made of."""
    owner = next(base for base in group.__mro__ if name in get_annotations(base))
    return str(getattr(owner, "panel", Options.panel))


def _default(one: Any) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def without_none(kind: Any) -> Any:
    """The type of a value that was given: `X` of `X | None`."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    rest = [one for one in get_args(kind) if one is not type(None)]
    return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 - made from a list


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a Literal of texts; empty for any other type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def choice(declared: Declared, value: object) -> str:
    """The choice that is meant, whatever its case; another word for it is understood. Raises UsageError."""
    return one_of(declared.flag, value, declared.choices, declared.option.also)


def one_of(flag: str, value: object, choices: Sequence[str], also: Mapping[str, str] | None = None) -> str:
    """The one of the choices that a value names. Raises UsageError that lists them and says which may be meant."""
    also = also or {}
    word = str(value)
    lower = word.lower()
    if lower in choices:
        return lower
    if lower in also:
        return also[lower]
    listed = ", ".join(choices)
    near = nearest(lower, [*choices, *also])
    meant = f"did you mean {also.get(near, near)}? " if near else ""
    raise UsageError(f"{flag} {word} is unknown", hint=f"{meant}one of: {listed}")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.7)), None)


def flag(name: str, *, negative: bool = False) -> str:
    """`max_memory` -> `--max-memory`. An underscore at the end keeps a field apart from a method, and is not said."""
    return "--" + ("no-" if negative else "") + name.rstrip("_").replace("_", "-")


def given(group: Options) -> Iterator[str]:
    """The names of a group's options that are not left at their default."""
    for declared in declared_in(type(group)):
        if getattr(group, declared.name) != declared.default:
            yield declared.name
