"""Commands made from declarations: a function's groups of options become its command's options.

A command is a function. Each of its parameters is one option, `Annotated[type, Option(…)]`; a group, a dataclass whose
fields are options; or a `Rule`, which stands for --method and the options of every rule. Typer reads a function's
parameters, so what it is given here is a function that has one for each option, and that hands the groups on.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from belay_cli import rules
from belay_cli.errors import UsageError
from belay_cli.options import Declared, Option, Options, declared_in, without_none
from belay_cli.rules import METHODS, Rule
from belay_cli.sweeping.grid import OTHER_NAMES, Grid
from belay_cli.sweeping.options import SEPARATOR
from belay_cli.words import is_number

Run = Callable[..., None]

_WIDEST = 22  # characters of choices that the column of types has room for


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a command's function: its options, and what makes its value from theirs, by their names."""

    name: str
    options: tuple[Declared, ...]
    make: Callable[[dict[str, Any]], Any]


def command(run: Run) -> Run:
    """A function for Typer that has a parameter for each option, and calls `run` with its groups."""
    parameters = list(_parameters(run))

    def call(**typed: Any) -> None:
        given = {}
        for parameter in parameters:
            values = {option.name: _value(option, typed[_name(option)]) for option in parameter.options}
            given[parameter.name] = parameter.make(values)
        run(**given)

    # Typer asks for the signature (PEP 362), and reads it as it would that of a function written out by hand.
    signature = [_typed(option) for parameter in parameters for option in parameter.options]
    call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in signature}
    call.__name__, call.__doc__ = run.__name__, run.__doc__
    call.__dict__["several"] = {option.flag for p in parameters for option in p.options if option.option.several}
    call.__dict__["grouped"] = {option.flag for p in parameters for option in p.options if option.option.grouped}
    return call


def flags_of(run: Run) -> set[str]:
    """The long names of a command's options."""
    return {option.flag for parameter in _parameters(run) for option in parameter.options if not option.option.argument}


def _share(typed: str) -> str | None:
    """A percentage as the number that it is."""
    try:
        return f"write {float(typed.removesuffix('%')) / 100:g}" if typed.endswith("%") else None
    except ValueError:
        return None


def _parameters(run: Run) -> Iterator[_Parameter]:
    hints = get_type_hints(run, include_extras=True)
    for name, parameter in inspect.signature(run).parameters.items():
        hint = hints[name]
        if hint is Rule:
            # An option that is not given is not there, so that the methods that do not take it do not see it.
            options = [option._replace(default=False if option.type is bool else None) for option in rules.options()]
            yield _Parameter(name, (_method(), *options), _asked)
        elif hint is Grid:
            yield _Parameter(name, tuple(_grid_options()), _grid)
        elif isinstance(hint, type) and issubclass(hint, Options):
            yield _group(name, hint)
        else:
            yield _one(name, hint, parameter.default)


def _method() -> Declared:
    first, *others = METHODS
    option = Option(f"{first} (default), {', '.join(others)}. What each does: docs/rules.md.", "NAME", "-m")
    return Declared("method", str, None, option, Rule.panel)


def _grid_options() -> Iterator[Declared]:
    """The options of every rule as lists of values."""
    first, *others = METHODS
    named = Option(f"Of {first}, {', '.join(others)}. Default: a grid over several.", "A,B,…", "-m")
    yield Declared("method", str, None, named, "The grid: lists such as 1%,5%,20%")
    for option in rules.options():
        kind = bool if option.type is bool else str
        yield option._replace(
            name=OTHER_NAMES.get(option.name, option.name),
            type=kind,
            default=False if kind is bool else None,
            option=replace(option.option, metavar="" if kind is bool else "A,B,…", also={}),
            panel="The grid: lists such as 1%,5%,20%",
        )


def _grid(values: dict[str, Any]) -> Grid:
    back = {other: name for name, other in OTHER_NAMES.items()}
    return Grid.typed(values.pop("method"), {back.get(name, name): value for name, value in values.items()})


def _asked(values: dict[str, Any]) -> Rule:
    return rules.asked(values.pop("method"), values)


def _group(name: str, kind: type[Options]) -> _Parameter:
    """A group, with the groups that are fields of it."""
    hints = get_type_hints(kind)
    inner = {field.name: hints[field.name] for field in fields(kind) if _is_group(hints[field.name])}  # type: ignore[arg-type]

    def make(values: dict[str, Any]) -> Any:
        own = {option.name: values[option.name] for option in declared_in(kind)}
        for field, group in inner.items():
            own[field] = group(**{option.name: values[option.name] for option in declared_in(group)})
        return kind(**own)

    options = [*declared_in(kind), *(option for group in inner.values() for option in declared_in(group))]
    return _Parameter(name, tuple(options), make)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def _one(name: str, hint: Any, default: Any) -> _Parameter:
    kind, *more = get_args(hint)
    option = next(extra for extra in more if isinstance(extra, Option))
    default = ... if default is inspect.Parameter.empty else default
    declared = Declared(name, without_none(kind), default, option, option.panel or Options.panel)
    return _Parameter(name, (declared,), lambda values: values[name])


def _name(option: Declared) -> str:
    """Of the parameter that Typer sees."""
    return f"no_{option.name}" if option.default is True else option.name


def _value(option: Declared, typed: Any) -> Any:
    if option.default is True:
        return not typed
    if isinstance(option.default, tuple):
        return tuple(typed or ())
    if isinstance(typed, Path):
        return expanded(typed)
    if option.type in _NUMBERS and isinstance(typed, str):
        return _number(option, typed)
    return typed


def expanded(typed: str | Path) -> Path:
    """A path with the home directory in place of ~, which a shell leaves as it is inside quotes."""
    return Path(os.path.expanduser(typed))  # noqa: PTH111 - which takes ~nobody as it stands


_NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


def _number(option: Declared, typed: str) -> int | float:
    try:
        number: int | float = option.type(typed)
    except ValueError:
        raise UsageError(f"{option.flag} takes {_NUMBERS[option.type]}, not {typed}", hint=_share(typed)) from None
    return number


def _typed(option: Declared) -> inspect.Parameter:
    """An option as Typer reads one."""
    about = option.option
    kind, default = _plain(option), option.default
    if isinstance(default, tuple) or option.default is True:
        default = None if isinstance(default, tuple) else False
    if about.argument:
        info = typer.Argument(metavar=about.metavar, help=about.help, show_default=False)
    else:
        names = [*([about.short] if about.short else []), option.flag]
        info = typer.Option(
            *names,
            help=_help(option),
            metavar=about.metavar or _metavar(option),
            rich_help_panel=option.panel,
            show_default=False,
            autocompletion=_completion(option),
        )
    optional = kind if kind is bool or default is ... else kind | None
    return inspect.Parameter(
        _name(option),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[optional, info],
    )


def _plain(option: Declared) -> Any:
    """The type that Typer converts to: choices are understood later, with other words for them."""
    if get_origin(option.type) is tuple:
        return list[str]
    if option.choices or option.type in _NUMBERS or get_origin(option.type) in (Union, UnionType):
        return str
    return option.type


def _help(option: Declared) -> str:
    text = option.option.help
    if len("|".join(option.choices)) > _WIDEST:
        text += f" One of {', '.join(option.choices)}."
    if option.choices and option.default is not None:
        text += f" Default: {option.default}."
    return text


def _metavar(option: Declared) -> str | None:
    if option.choices and len("|".join(option.choices)) <= _WIDEST:
        return f"[{'|'.join(option.choices)}]"
    if option.choices:
        return option.name.upper()
    return {bool: "", int: "N", float: "NUMBER", Path: "FILE"}.get(option.type, "TEXT")


def _completion(option: Declared) -> Callable[[str], list[str]] | None:
    """What the shell offers for a value that is a choice."""
    words = tuple(METHODS) if option.name == "method" else option.choices
    if not words:
        return None

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


class _AsTyped:
    """What makes a value of an option in place of Typer, which imports pydantic for it: a tenth of a second.

    Options are text, flags and paths, and whatever else they are is made of text by `_value`.
    """

    def __init__(self, annotation: Any) -> None:
        self._is_path = Path in (annotation, *get_args(annotation))

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value, None where there is none, and a tuple where there may be several."""
        if param.multiple or param.nargs == -1:
            return tuple(value or ())
        return Path(value) if self._is_path and isinstance(value, str) else value


class BelayCommand(TyperCommand):
    """A command that refuses an option with a value that is given twice: which one was meant, it cannot know."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the arguments once for that, then parse them."""
        args = _repeated(args, getattr(self.callback, "several", ()))
        args = _grouped(args, getattr(self.callback, "grouped", ()))
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        once = [one for one in order if not getattr(one, "multiple", True) and not getattr(one, "is_flag", True)]
        for one in once:
            if once.count(one) > 1:
                raise UsageError(f"{max(one.opts, key=len)} is given twice", hint="give it once")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, with no types in the help where these say nothing to a person."""
        return _as_typed(_without_types(super().get_params(ctx)))


def _repeated(args: Sequence[str], several: Collection[str]) -> list[str]:
    """`--checkpoints a b` as `--checkpoints a --checkpoints b`, which is how the parser takes several values."""
    found: list[str] = []
    name, values = "", 0
    for arg in args:
        if arg.startswith("-"):
            name, values = (arg if arg in several else ""), 0
        elif name:
            values += 1
            found += [name] if values > 1 else []
        found.append(arg)
    return found


def _grouped(args: Sequence[str], grouped: Collection[str]) -> list[str]:
    """`--metric TASK METRIC 0.5` as one value: a second word, and a third one if it is a number."""
    found, rest = [], list(args)
    while rest:
        arg = rest.pop(0)
        found.append(arg)
        if arg not in grouped or not rest:
            continue
        words = [rest.pop(0)]
        while rest and len(words) < 3 and _goes_with(words, rest[0]):
            words.append(rest.pop(0))
        found.append(SEPARATOR.join(words))
    return found


def _goes_with(words: Sequence[str], arg: str) -> bool:
    """Whether another word belongs to those of a metric: its name, or last of all a weight."""
    ends = len(words) > 1 and is_number(words[-1])
    return not ends and (is_number(arg) or (len(words) == 1 and not arg.startswith("-")))


class BelayGroup(TyperGroup):
    """All commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, with no types in the help where these say nothing to a person."""
        return _as_typed(_without_types(super().get_params(ctx)))


def _as_typed(params: list[Any]) -> list[Any]:
    for param in params:
        if (described := getattr(param, "type_descriptor", None)) is not None:
            param._runtime_param = _AsTyped(described.annotation)
    return params


def _without_types(params: list[Any]) -> list[Any]:
    """A switch takes no value, and of an argument its name says enough."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        elif isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    return params
