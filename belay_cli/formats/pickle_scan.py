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
                strings.append(str(argument))
                last = str(argument)
                continue
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = last
                continue
            if opcode.name in _PUTS:
                if int(str(argument)) > count:  # its table would be made that long
                    raise ValueError("it numbers its objects in a way that no program writes")
                memo[int(str(argument))] = last
                continue
            if opcode.name in _GETS:
                last = memo.get(int(str(argument)))
                if last is not None:
                    strings.append(last)
                continue
            last = None
            if opcode.name in ("GLOBAL", "INST"):
                names.add(full_name(*str(argument).split(" ", 1)))
            elif opcode.name == "STACK_GLOBAL":
                names.add(full_name(*strings[-2:]))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                names.add(f"extension {argument}")
            else:
                continue
            check_count(names)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return names
