"""The reference of the commands, made from the program itself when the site is built: a hook of mkdocs.

python docs/reference.py     print it
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import typer.main

from belay_cli.cli import build

MARK = "<!-- every command and its options -->"
_DOCSTRING = re.compile(r"<!-- docstring of ([\w.]+) -->")
_KINDS = {int: "N", float: "NUMBER"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    markdown = markdown.replace(MARK, reference()) if MARK in markdown else markdown
    return _DOCSTRING.sub(lambda found: docstring(found[1]), markdown)


def docstring(module: str) -> str:
    """What a module says of itself, as it is laid out there."""
    return f"```text\n{inspect.cleandoc(import_module(module).__doc__ or '')}\n```"


def reference() -> str:
    """Every command, its help and its options, as Markdown."""
    commands = typer.main.get_command(build()).commands  # type: ignore[attr-defined]
    return "\n".join(line for name, command in commands.items() for line in _command(name, command))


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if not _is_option(parameter)]
    options = [parameter for parameter in command.params if _is_option(parameter) and not parameter.hidden]
    yield f"## belay {name}\n"
    yield f"```text\nbelay {' '.join([name, *map(_placeholder, arguments)])} [OPTIONS]\n```\n"
    yield _fenced(inspect.cleandoc(command.help or "")) + "\n"
    yield from _table("argument", arguments)
    for panel in dict.fromkeys(option.rich_help_panel for option in options):
        if panel:
            yield f"**{panel}**\n"
        yield from _table("option", [option for option in options if option.rich_help_panel == panel])


def _is_option(parameter: Any) -> bool:
    return any(name.startswith("-") for name in parameter.opts)


def _placeholder(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name + ("…" if argument.nargs == -1 else "")


def _fenced(text: str) -> str:
    """Indented examples as a fence, so that they are highlighted and can be copied."""
    lines, inside = [], False
    for line in [*text.splitlines(), ""]:
        indented = line.startswith("    ")
        if indented != inside and (indented or line):
            lines += ["```sh"] if indented else ["```", ""]
            inside = indented
        lines.append(line[4:] if indented else line)
    return "\n".join(lines).rstrip() + ("\n```" if inside else "")


def _table(heading: str, parameters: list[Any]) -> Iterator[str]:
    if parameters:
        rows = "\n".join(f"| {_names(parameter)} | {_text(parameter)} |" for parameter in parameters)
        yield f"| {heading} | |\n| --- | --- |\n{rows}\n"


def _names(parameter: Any) -> str:
    if not _is_option(parameter):
        return f"`{_placeholder(parameter)}`"
    names = sorted([*parameter.opts, *parameter.secondary_opts], key=len)
    value = "" if parameter.is_flag else f" {_value(parameter)}"
    return ", ".join(f"`{name}`" for name in names[:-1]) + (", " if names[1:] else "") + f"`{names[-1]}{value}`"


def _value(parameter: Any) -> str:
    """What stands for the value of an option: its choices, its metavar, or its kind."""
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "{" + ",".join(str(member.value) for member in kind) + "}"
    return str(parameter.metavar or _KINDS.get(kind, "TEXT"))


def _text(parameter: Any) -> str:
    return (parameter.help or "").replace("|", r"\|").replace("*", r"\*").replace("\n", " ")


if __name__ == "__main__":
    print(reference())
