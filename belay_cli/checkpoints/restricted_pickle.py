"""Pickles read with distrust: only what is on a list is ever looked up, and nothing on the list does anything.

A pickle is a program. It is scanned first, without being run: for the names it would import, and for the one
instruction by which a few bytes can claim any amount of memory. Then it runs with stand-ins for the names.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

LARGEST = 100_000_000  # bytes of a pickle; the weights are not in it, and 50,000 tensors take 5 MB

_MOST_STEPS = 30_000_000  # a million tensors, or pieces of tensors
_LARGEST_KEY = 2**61 - 1  # numbers that differ by this have one hash, and a dict of many such takes for ever

_NOT_A_PICKLE = (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, MemoryError, ArithmeticError)
_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")


class ForbiddenNames(Exception):  # noqa: N818 - it reads as what it is
    """A pickle would import what is not on the list. `names` are as `module.name`, sorted."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def load(
    data: bytes,
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that a pickle describes, made of the stand-ins in `allowed`, by `module.name`.

    persistent_load: called with each persistent id. Raises ForbiddenNames, and ValueError for what is no pickle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd texts in it, which are its author's business
        return _load(data, allowed, persistent_load)


def _load(data: bytes, allowed: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None) -> Any:
    if forbidden := sorted(_scan(data) - allowed.keys()):
        raise ForbiddenNames(forbidden)
    try:
        return _Unpickler(data, allowed, persistent_load).load()
    except _NOT_A_PICKLE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


_InPython: Any = pickle._Unpickler  # its C twin does not let steps be replaced


class _Unpickler(_InPython):  # type: ignore[misc]
    """The unpickler in Python, whose steps can be refused one by one.

    A key is hashed, and the hash of a tuple in a tuple in a tuple … exhausts the stack of the process, or never ends
    if each holds the last one twice. No checkpoint has such keys.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, data: bytes, allowed: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
        self._allowed = allowed
        if persistent_load is not None:
            self.persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._allowed:  # the scan has seen to it; this is the lock itself
            raise ForbiddenNames([full])
        return self._allowed[full]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    for _opcode, _step in (
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
    ):
        dispatch[_opcode[0]] = _step


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        inside = key if isinstance(key, tuple | frozenset) else (key,)
        for part in inside:
            if isinstance(part, tuple | frozenset):
                raise ValueError("it has keys in keys, as no checkpoint has")
            if isinstance(part, int) and abs(part) >= _LARGEST_KEY:
                raise ValueError("it has numbers for keys that are larger than any in a checkpoint")


def _scan(data: bytes) -> set[str]:
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
                names.add(str(argument).replace(" ", ".", 1))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                names.add(f"extension {argument}")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return names
