"""Pickles that would do something do nothing, and are refused by name."""

from __future__ import annotations

import collections
import contextlib
import fractions
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belay_cli.formats import pickle_scan
from belay_cli.formats.restricted_pickle import ForbiddenNames, load
from belay_cli.formats.unknown import Unknown

DICT = {"collections.OrderedDict": collections.OrderedDict}


class Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return self.what


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_is_named_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "made"
    data = pickle.dumps({"a": 1, "b": [Payload(os.mkdir, str(target)), Payload(eval, "1")]}, protocol=protocol)
    with pytest.raises(ForbiddenNames) as error:
        load(data, DICT)
    eval_name = "__builtin__.eval" if protocol < 3 else "builtins.eval"
    assert error.value.names == sorted([eval_name, "posix.mkdir"])
    assert not target.exists()


def test_pickles_of_very_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "_MOST_STEPS", 1000)
    assert load(pickle.dumps([[]] * 100), DICT) == [[]] * 100
    with pytest.raises(ValueError, match="it has more than 1,000 steps, each of which may take memory"):
        load(b"\x80\x02" + b"]" * 2000 + b".", DICT)


@pytest.mark.parametrize("wrap", [lambda key: key, lambda key: (1, key), lambda key: frozenset((key,))])
def test_keys_made_to_collide(wrap: Callable[..., Any]) -> None:
    for key in (2**61 - 1, -(2**61) + 1, 7 * (2**61 - 1)):
        with pytest.raises(ValueError, match="numbers for keys that are larger than any in a checkpoint"):
            load(pickle.dumps({wrap(key): None}), {**DICT, "builtins.frozenset": frozenset})
    assert load(pickle.dumps({2**61 - 2: None}), DICT) == {2**61 - 2: None}


@pytest.mark.parametrize("protocol", range(6))
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    )
)
def test_plain_values_come_back(protocol: int, value: Any) -> None:
    try:
        data = pickle.dumps(value, protocol=protocol)
        expected = pickle.loads(data)
    except UnicodeEncodeError:
        return
    allowed = {"_codecs.encode": lambda text, encoding: text.encode(encoding), "__builtin__.bytes": bytes}
    assert load(data, {**DICT, **allowed}) == expected


@given(st.binary(max_size=200))
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError, ForbiddenNames):
        load(data, DICT)


def test_names_from_the_stack_are_checked_when_they_are_used() -> None:
    # STACK_GLOBAL with a module that is put together out of sight of the scan
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94" + b"00" + b"\x93."
    with pytest.raises(ForbiddenNames, match=r"os\.system"):
        load(data, DICT)


def test_a_memo_that_would_fill_the_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = b"\x80\x02" + b"K\x01r" + struct.pack("<I", 0xFFFFFF00) + b"."
    with pytest.raises(ValueError, match="no program writes"):
        load(data, DICT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


def test_lengths_that_lie() -> None:
    for data in (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", b"\x80\x04\x96" + struct.pack("<Q", 1 << 45)):
        with pytest.raises(ValueError):
            load(data, DICT)


def test_a_nest_of_ten_thousand() -> None:
    found = load(b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".", DICT)
    assert isinstance(found, list)


# To hash the nest takes more stack than there is; to hash the pairs, 2 ** 40 steps.
@pytest.mark.parametrize("key", [b")" + b"\x85" * 250_000, b"K\x01" + b"q\x00h\x00\x86" * 40], ids=["nest", "pairs"])
def test_keys_that_cannot_be_hashed(key: bytes) -> None:
    for data in (b"\x80\x02}" + key + b"Ns.", b"\x80\x02}(" + key + b"Nu.", b"\x80\x04\x8f(" + key + b"\x90."):
        with pytest.raises(ValueError, match="keys in keys"):
            load(data, DICT)


# ---- stand-ins


def test_names_that_are_not_known_become_stand_ins() -> None:
    value = {"a": Payload(collections.deque, [1]), "b": fractions.Fraction(1, 2), "c": collections.OrderedDict()}
    data = pickle.dumps(value)
    with pytest.raises(ForbiddenNames) as error:
        load(data, DICT)
    assert error.value.names == ["collections.deque", "fractions.Fraction"]
    unknown: set[str] = set()
    found = load(data, DICT, stand_ins=unknown)
    assert unknown == {"collections.deque", "fractions.Fraction"}
    assert [type(value) for value in found.values()] == [Unknown, Unknown, collections.OrderedDict]
    assert found["a"].name == "collections.deque"
    assert found["a"].inside == [([1],)]
    assert repr(found["b"]) == "Unknown('fractions.Fraction')"


def test_stand_ins_of_one_load_are_not_those_of_another() -> None:
    data = b"\x80\x02ca\nB\n}X\x01\x00\x00\x00kK\x01sb."
    first, second = (load(data, DICT, stand_ins=set()) for _ in range(2))
    assert first is not second
    assert first.attribute("k") == second.attribute("k") == 1
    assert load(b"\x80\x02ca\nB\n.", DICT, stand_ins=set()).inside is None


def test_objects_of_one_class_are_several_keys() -> None:
    found = load(pickle.dumps({fractions.Fraction(1): 1, fractions.Fraction(2): 2}), DICT, stand_ins=set())
    assert list(found.values()) == [1, 2]


def test_a_payload_is_refused_among_stand_ins() -> None:
    data = pickle.dumps([fractions.Fraction(1), Payload(os.mkdir, "made"), {"x": Payload(eval, "1")}])
    unknown: set[str] = set()
    with pytest.raises(ForbiddenNames) as error:
        load(data, DICT, stand_ins=unknown)
    assert error.value.names == ["builtins.eval", "posix.mkdir"]
    assert unknown == set()
