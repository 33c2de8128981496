"""What a pickle would do, read from its instructions without running them."""

from __future__ import annotations

import pickletools
from collections.abc import Collection

_MOST_STEPS = 30_000_000  # a million tensors, or pieces of tensors
_MOST_NAMES = 10_000  # things that are imported
_LONGEST_NAME = 1000  # characters; a few bytes of a pickle can put any two of its texts together

_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_IMPORTS = ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")


def full_name(*parts: str) -> str:
    """A module and a name in it as one. Raises ValueError if no program has such a name."""
    if sum(map(len, parts)) > _LONGEST_NAME:
        raise ValueError(f"it would import something with a name of more than {_LONGEST_NAME:,} characters")
    return ".".join(parts)


def check_count(names: Collection[str]) -> None:
    """Raise ValueError for more names than any program has."""
    if len(names) > _MOST_NAMES:
        raise ValueError(f"it would import more than {_MOST_NAMES:,} things")


def imported_names(data: bytes) -> set[str]:
    """Every name that the pickle would import, as `module.name`. Raises ValueError for what is no pickle.

    A name that is put together on the stack in a way that pickles are never written is named as it can be.
    """
    names: set[str] = set()
    strings: list[str] = []  # texts as they were pushed: STACK_GLOBAL takes the last two
    memo: dict[int, str | None] = {}
    last: str | None = None
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == _MOST_STEPS:
                raise ValueError(f"it has more than {_MOST_STEPS:,} steps, each of which may take memory")
            if opcode.name in _STRINGS:
                last = str(argument)
                strings.append(last)
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = last
            elif opcode.name in _PUTS:
                memo[_place(argument, count)] = last
            elif opcode.name in _GETS:
                last = memo.get(int(str(argument)))
                if last is not None:
                    strings.append(last)
            else:
                last = None
                if opcode.name in _IMPORTS:
                    names.add(_imported(opcode.name, argument, strings))
                    check_count(names)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return names


def _place(argument: object, count: int) -> int:
    """Where a PUT puts something in the unpickler's table, which is made that long."""
    place = int(str(argument))
    if place > count:
        raise ValueError("it numbers its objects in a way that no program writes")
    return place


def _imported(opcode: str, argument: object, strings: list[str]) -> str:
    """The name that an instruction imports."""
    if opcode == "STACK_GLOBAL":
        return full_name(*strings[-2:])
    if opcode in ("GLOBAL", "INST"):
        return full_name(*str(argument).split(" ", 1))
    return f"extension {argument}"
