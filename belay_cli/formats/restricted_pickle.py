"""Pickles read with distrust: nothing that they name is ever looked up or called.

A pickle is a program. It is scanned first, without being run: for the names it would import, and for the one
instruction by which a few bytes can claim any amount of memory. Then it runs with stand-ins for the names: those on a
list, none of which does anything, and, where the reader asks for it, `Unknown` for all others.

The machine is the standard library's unpickler in Python; what is ours is what it must not do. torch's restricted one
makes tensors, and refuses a whole file for a configuration beside the weights.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from belay_cli.formats.forbidden_names import is_forbidden
from belay_cli.formats.pickle_scan import check_count, full_name, imported_names
from belay_cli.formats.unknown import Unknown

LARGEST = 100_000_000  # bytes of a pickle; the weights are not in it, and 50,000 tensors take 5 MB

_MOST_ARGUMENTS = 32  # of a call: each of many calls could copy all of a long list of them
_MOST_IN_KEY = 64  # parts of a tuple that is a key: it is hashed anew each time that it is used
_LARGEST_KEY = 2**61 - 1  # numbers that differ by this have one hash, and a dict of many such takes for ever

_NOT_A_PICKLE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, MemoryError, ArithmeticError),
    *(struct.error, RecursionError),
)


class ForbiddenNames(Exception):  # noqa: N818 - it reads as what it is
    """A pickle would import what it must not. `names` are as `module.name`, sorted."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def load(
    data: bytes,
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
    *,
    stand_ins: set[str] | None = None,
) -> Any:
    """The object that a pickle describes, made of the stand-ins in `allowed`, by `module.name`.

    persistent_load: called with each persistent id. stand_ins: a set makes all other names, but those that only an
    attack has, an Unknown, and takes these names. Raises ForbiddenNames, and ValueError for what is no pickle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd texts in it, which are its author's business
        return _load(data, _Globals(allowed, stand_ins), persistent_load)


def _load(data: bytes, names: _Globals, persistent_load: Callable[[Any], Any] | None) -> Any:
    if forbidden := sorted(filter(names.forbids, imported_names(data))):
        raise ForbiddenNames(forbidden)
    try:
        return _Unpickler(data, names, persistent_load).load()
    except _NOT_A_PICKLE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _Globals:
    """What stands for each name that a pickle may import."""

    def __init__(self, allowed: Mapping[str, Any], unknown: set[str] | None) -> None:
        self._known = dict(allowed)
        self._unknown = unknown

    def forbids(self, name: str) -> bool:
        if name in self._known:
            return False
        return self._unknown is None or is_forbidden(name)

    def find(self, name: str) -> Any:
        if self.forbids(name):  # the scan has seen to it; this is the lock itself
            raise ForbiddenNames([name])
        if name not in self._known and self._unknown is not None:
            self._known[name] = Unknown(name)
            self._unknown.add(name)
            check_count(self._unknown)
        return self._known[name]


_InPython: Any = pickle._Unpickler  # its C twin does not let steps be replaced


class _Unpickler(_InPython):  # type: ignore[misc]
    """The unpickler in Python, whose steps can be refused one by one.

    A key is hashed, and the hash of a tuple in a tuple in a tuple … exhausts the stack of the process, or never ends
    if each holds the last one twice. No checkpoint has such keys. What an Unknown is called with, or is given, it takes
    as it is: it is never copied, hashed or looked at.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, data: bytes, names: _Globals, persistent_load: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
        self._names = names
        if persistent_load is not None:
            self.persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        return self._names.find(full_name(module, name))

    def get_extension(self, code: int) -> Any:
        raise ForbiddenNames([f"extension {code}"])  # a table of this process, which other libraries share

    # ---- calls

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack[-1]
        if not isinstance(kind, type | Unknown):
            raise ValueError("it makes an object of what is no class")
        self.stack[-1] = _called(kind, arguments)

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        arguments = self.stack.pop()
        kind = self.stack[-1]
        if type(kind) is not Unknown:
            raise ValueError("it makes an object of what is no class, or one that takes no keywords")
        self.stack[-1] = Unknown(kind.name, arguments, keywords)

    def _instantiate(self, kind: Any, arguments: list[Any]) -> None:  # of INST and OBJ
        self.append(_called(kind, tuple(arguments)))

    # ---- changes

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Unknown:
            target.take(state)
        elif not hasattr(type(target), "__setstate__"):
            raise ValueError("it changes what it may only name")
        else:
            target.__setstate__(state)

    def load_append(self) -> None:
        value = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Unknown:
            target.take(value)
        else:
            target.append(value)

    def load_appends(self) -> None:
        values = self.pop_mark()
        target = self.stack[-1]
        if type(target) is Unknown:
            target.take(values)
        else:
            target.extend(values)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _set_items(self.stack[-1], [key], [value])

    def load_setitems(self) -> None:
        pairs = self.pop_mark()
        _set_items(self.stack[-1], pairs[::2], pairs[1::2])

    def load_dict(self) -> None:
        pairs = self.pop_mark()
        made: dict[Any, Any] = {}
        _set_items(made, pairs[::2], pairs[1::2])
        self.append(made)

    def load_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is Unknown:
            target.take(items)
            return
        if not isinstance(target, set):
            raise ValueError("it adds to what is no set")
        target.update(map(_checked, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(_checked, items)))

    for _opcode, _step in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.BUILD, load_build),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.DICT, load_dict),
        (pickle.ADDITEMS, load_additems),
        (pickle.FROZENSET, load_frozenset),
    ):
        dispatch[_opcode[0]] = _step


def _called(function: Any, arguments: Any) -> Any:
    if type(function) is Unknown:
        return Unknown(function.name, arguments) if arguments else Unknown(function.name)
    if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise ValueError("it calls something in a way that no program writes")
    return function(*arguments)


def _set_items(target: Any, keys: list[Any], values: list[Any]) -> None:
    if type(target) is Unknown:
        target.take(values)
        return
    if not isinstance(target, dict):
        raise ValueError("it sets items of what has none")
    safe = (key if type(key) is str else _checked(key) for key in keys)
    target.update(zip(safe, values, strict=True))


class _Key(tuple[Any, ...]):
    """A tuple that is a key. Python's own hash of tuples is the same in every process: whole files can be made of
    tuples that share one, and a dict of them takes for ever. Its hash of bytes has a secret in it.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(struct.pack(f"{len(self)}q", *map(hash, self)))


class _KeySet(frozenset[Any]):
    """The same for a set."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(_Key(sorted(map(hash, self))))


def _checked(key: Any) -> Any:
    """What stands for a key. Raises ValueError for keys that would take long to hash."""
    if not isinstance(key, tuple | frozenset):
        _check_part(key)
        return key
    if len(key) > _MOST_IN_KEY:
        raise ValueError("it has keys of more parts than any in a checkpoint")
    for part in key:
        _check_part(part)
        if isinstance(part, tuple | frozenset):
            raise ValueError("it has keys in keys, as no checkpoint has")
    return _Key(key) if isinstance(key, tuple) else _KeySet(key)


def _check_part(part: Any) -> None:
    if isinstance(part, int) and abs(part) >= _LARGEST_KEY:
        raise ValueError("it has numbers for keys that are larger than any in a checkpoint")
