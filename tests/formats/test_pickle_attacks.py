"""Attacks by pickles, as a table and at random: nothing runs, and nothing costs more than a file of that size may."""

from __future__ import annotations

import contextlib
import copyreg
import itertools
import json
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belay_cli.errors import CheckpointError
from belay_cli.formats.forbidden_names import is_forbidden
from belay_cli.formats.restricted_pickle import ForbiddenNames
from belay_cli.formats.torch.hidden import holds_tensors
from belay_cli.formats.torch.objects import ALLOWED, read_object
from belay_cli.formats.unknown import Unknown
from tests.formats.torch.files import archived, lying_tensor, pickled, read

P2, P4 = b"\x80\x02", b"\x80\x04"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stacked(module: str, attribute: str) -> bytes:
    """The same in protocol 4, where the name may have dots."""
    return text(module) + text(attribute) + b"\x93"


A = name("a", "B")  # what nobody knows
TENSOR = pickled(lying_tensor())[2:-1]
STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
MEMOS = sum(opcode.name == "BINPUT" for opcode, _, _ in pickletools.genops(P2 + TENSOR + b"."))


def get(number: int) -> bytes:
    """What was put into the memo as the first, second, … thing after the weights."""
    return b"h" + bytes([MEMOS + number])


def weights() -> bytes:
    """A pickle of {"model": {"w": tensor}, "x": …}, from which STOP and the value of x are missing."""
    return P4 + b"}" + text("model") + b"}" + text("w") + TENSOR + b"ss" + text("x")


def outcome(tmp_path: Path, value: bytes) -> Any:
    """What becomes of the file with this value beside its weights: the tensors' names, or the error's message."""
    path = archived(tmp_path / "a.pt", weights() + value + b"s.")
    begin = time.monotonic()
    try:
        return [tensor.name for tensor in read(path).tensors]
    except CheckpointError as error:
        assert error.hint and "\n" not in error.message and len(error.message) < 800
        return error.message
    finally:
        assert time.monotonic() - begin < 20


# ---- names that only an attack has

FORBIDDEN = [
    *("os.system", "posix.system", "nt.system", "os.path.join", "posixpath.join", "subprocess.Popen", "sys.exit"),
    *(
        "builtins.eval",
        "builtins.exec",
        "__builtin__.eval",
        "__builtin__.execfile",
        "builtins.compile",
        "builtins.open",
    ),
    *("builtins.getattr", "__builtin__.getattr", "builtins.setattr", "builtins.__import__", "builtins.globals"),
    *("operator.attrgetter", "_operator.methodcaller", "torch.load", "torch.serialization.load", "torch.hub.load"),
    *("numpy.load", "numpy.testing._private.utils.runstring", "numpy.f2py.crackfortran.myeval", "runpy.run_path"),
    *("webbrowser.open", "importlib.import_module", "imp.load_source", "marshal.loads", "codecs.decode", "pty.spawn"),
    *("types.FunctionType", "types.CodeType", "copyreg.add_extension", "copy_reg.__newobj__", "copyreg.pickle"),
    *("pickle.loads", "_pickle.loads", "cPickle.loads", "io.open", "_io.FileIO", "shutil.rmtree", "ctypes.CDLL"),
    *("socket.socket", "urllib.request.urlopen", "timeit.timeit", "pdb.run", "bdb.Bdb.run", "code.interact"),
    *("torch.storage._load_from_bytes", "torch.utils.cpp_extension.load", "logging.config.listen", "pydoc.pipepager"),
    *("torch.nn.os.system", "logging.os.system", "a.__globals__.b", "a.B.__subclasses__", "builtins.object.__new__"),
]
HARMLESS = [
    *("argparse.Namespace", "pathlib.PosixPath", "_io.BytesIO", "types.SimpleNamespace", "builtins.list", "__main__.A"),
    *("copy_reg._reconstructor", "_operator.getitem", "functools.partial", "logging.getLogger", "my.io.reader.Reader"),
    *("numpy.core.multiarray.scalar", "numpy.dtype", "project.__main__.Options", "torch.nn.modules.linear.Linear"),
    *("omegaconf.dictconfig.DictConfig", "re._compile", "osmnx.Graph", "systems.evaluation.Eval"),
]
CALLS: dict[str, Callable[[bytes], bytes]] = {
    "named": lambda at: at,
    "called": lambda at: at + b"(" + text("true") + b"tR",
    "called in an argument": lambda at: A + at + b")R\x85R",
    "called in a state": lambda at: A + b")\x81" + at + b")Rb",
    "as a class": lambda at: at + b")\x81",
    "as a class with keywords": lambda at: at + b")}\x92",
    "by OBJ": lambda at: b"(" + at + b"o",
    "as a key": lambda at: b"}" + at + b"Ns",
    "in a set": lambda at: b"\x8f(" + at + b"\x90",
    "set on an object": lambda at: A + b")R" + text("__reduce__") + at + b"s",
    "in a tensor": lambda at: name("torch._tensor", "_rebuild_from_type_v2") + b"(" + at + A + b")NtR",
    "as a storage": lambda at: at + b"Q",
    "dropped": lambda at: at + b"0N",
}


@pytest.mark.parametrize("full", FORBIDDEN)
def test_a_name_that_only_an_attack_has(tmp_path: Path, full: str) -> None:
    assert is_forbidden(full)
    module, _, attribute = full.partition(".") if full.count(".") == 1 else full.rpartition(".")
    expected = f"needs more than weights to be read: it would import {full}"
    for at in (name(module, attribute), stacked(module, attribute), stacked(*full.split(".", 1))):
        assert outcome(tmp_path, at + b")R") == expected
    assert outcome(tmp_path, f"(i{module}\n{attribute}\n".encode()) == expected


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_wherever_it_stands(tmp_path: Path, call: Callable[..., Any]) -> None:
    assert "would import posix.system" in outcome(tmp_path, call(name("posix", "system")))
    assert "would import os.path.join" in outcome(tmp_path, call(stacked("os", "path.join")))


@pytest.mark.parametrize("full", HARMLESS)
def test_a_name_that_honest_files_have(full: str) -> None:
    assert not is_forbidden(full)


def test_a_name_that_is_put_together_out_of_sight(tmp_path: Path) -> None:
    hidden = text("os") + b"\x94" + text("system") + b"\x94" + text("a") + b"0" + text("B") + b"0\x93)R"
    assert "would import os.system" in outcome(tmp_path, hidden)


# ---- what is not known is inert, whatever is done with it

INERT = {
    "a call": A + b"(K\x01K\x02tR",
    "a call with no tuple": A + b"K\x01R",
    "a call of what was made": A + b")R)R)R",
    "a class": A + b")\x81",
    "a class of a text": A + text("abc") + b"\x81",
    "keywords": A + b")}" + text("k") + b"Ns\x92",
    "keywords that are none": A + b"K\x01K\x02\x92",
    "OBJ": b"(" + A + b"K\x01o",
    "INST": b"(K\x01ia\nB\n",
    "a state": A + b")\x81}" + text("a") + b"K\x01sb",
    "a state that is none": A + b")\x81K\x01b",
    "slots": A + b")\x81N}" + text("name") + text("os.system") + b"s\x86b",
    "a state of its class": A + b")\x81}" + text("__class__") + A + b"sb",
    "a state of hooks": A + b")\x81}(" + text("__setstate__") + A + text("__dict__") + b"}" + text("inside") + b"Nub",
    "a state with odd keys": A + b")\x81}K\x05Nsb",
    "a state of the class": A + b"}" + text("name") + b"Nsb",
    "appends": A + b")R(K\x01K\x02eK\x03a",
    "items": A + b")R(K\x01K\x02uK\x03K\x04s",
    "items with keys that cannot be hashed": A + b")R(]K\x02u}K\x04s",
    "additions": A + b")R(K\x01K\x02\x90",
    "a key": b"}" + A + b"Ns",
    "keys of one class": b"}(" + A + b")RN" + A + b")RNu",
    "a key in a tuple": b"}" + A + A + b"\x86Ns",
    "a set": b"\x8f(" + A + A + b")R\x90",
    "a frozenset": b"(" + A + A + b"\x91",
    "loops": A + b")R\x94" + get(0) + b"a" + get(0) * 2 + b"s" + get(0) + b"b",
    "a tensor's class": name("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + name("torch._utils", "_rebuild_tensor_v2")
    + A
    + b")}tR",
    "a tensor's maker": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + A + name("torch", "Tensor") + b")}tR",
    "a parameter": name("torch._utils", "_rebuild_parameter") + A + b"\x88)\x87R",
    "a device": name("torch", "device") + A + b"\x85R",
    "an encoding": name("_codecs", "encode") + A + A + b"\x86R",
    "hooks of a tensor": name("torch._utils", "_rebuild_tensor_v2")
    + b"("
    + STORAGE
    + b"K\x00K\x04\x85K\x01\x85\x89"
    + A
    + b"tR",
    "a factory": name("collections", "defaultdict") + A + b"\x85R(" + text("k") + A + b"u",
    "a storage": A + STORAGE + b"\x85R",
    "odd names": stacked("", "") + stacked("a b", "c.d.e") + stacked("..", "..") + stacked("a\udc80", "\n") + b"000",
}


@pytest.mark.parametrize("value", INERT.values(), ids=INERT)
def test_what_is_not_known_is_inert(tmp_path: Path, value: bytes) -> None:
    assert outcome(tmp_path, value) == ["w"]


LIES = {
    "an unknown storage": A + b"Q",
    "an unknown in its place": b"(" + text("storage") + A + text("0") + text("cpu") + b"K\x04tQ",
    "an unknown key": b"(" + text("storage") + name("torch", "FloatStorage") + A + text("cpu") + b"K\x04tQ",
    "an unknown count": b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + A + b"tQ",
    "a text for a storage": b"P0\n",
    "a tensor of an unknown": name("torch._utils", "_rebuild_tensor_v2") + b"(" + A + b"K\x00))\x89)tR",
    "a tensor of the first form": name("torch._utils", "_rebuild_tensor") + b"(" + A + b"K\x00))tR",
    "an unknown offset": name("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + A + b"))\x89)tR",
    "an unknown shape": name("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00" + A + b")\x89)tR",
    "a shape of unknowns": name("torch", "Size") + A + b"\x85\x85R",
    "a dtype that is none": name("torch._utils", "_rebuild_tensor_v3") + b"(" + STORAGE + b"K\x00))\x89)NtR",
    "a state of a stand-in": name("torch", "float32") + A + b"b",
    "a state of a function": name("torch._utils", "_rebuild_tensor_v2") + A + b"b",
    "a state of a tensor": TENSOR + b"N}" + text("dtype") + A + b"s\x86b",
    "a state of a storage": STORAGE + b"N}" + text("key") + A + b"s\x86b",
    "a state of a list": b"]}" + text("a") + b"Nsb",
    "a class of a stand-in": name("torch", "float32") + b"(" + text("x") + b"t\x81",
    "a class of a tensor": TENSOR + b"(NNNNNt\x81",
    "a call of a tensor": TENSOR + b")R",
    "items of a list": b"]K\x00Ns",
    "items without a value": b"}(K\x00u",
    "additions to a list": b"](K\x00\x90",
    "a tensor as a key": b"}" + TENSOR + b"Ns",
    "keys in keys": b"}" + A + b"\x85\x85Ns",
    "long keys": b"}(" + A * 65 + b"tNs",
    "many arguments": name("torch", "device") + b"(" + b"N" * 33 + b"tR",
    "a text for arguments": name("torch", "device") + text("cpu") + b"R",
    "numbers that share a hash": b"}" + A + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1f\x86Ns",
    "a name too long": stacked("a" * 999, "bb"),
    "very many names": b"".join(name("a", f"B{i}") + b"0" for i in range(10_001)),
    "a buffer that is elsewhere": b"\x97",
    "a buffer of an unknown": A + b"\x98",
}


@pytest.mark.parametrize("value", LIES.values(), ids=LIES)
def test_pickles_that_lie(tmp_path: Path, value: bytes) -> None:
    assert outcome(tmp_path, value).startswith("has a data.pkl that cannot be r")


@pytest.mark.parametrize("code", [b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"])
def test_extensions_are_another_librarys(tmp_path: Path, code: bytes) -> None:
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        assert outcome(tmp_path, code + b")R").endswith("it would import extension 240")
        assert 0xF0 not in copyreg._extension_cache  # type: ignore[attr-defined]
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)


# ---- what costs

MANY = 100_000


def often(thing: bytes, kind: bytes, step: bytes) -> bytes:
    """One thing that is put away, and then is used by many steps on one kind."""
    return thing + b"\x940" + kind + b"\x940](" + (get(1) + get(0) + step) * MANY + b"e"


TUPLE = b"(" + b"N" * MANY + b"t"
KEPT = {
    "a nest of arguments": A * MANY + b"\x85R" * (MANY - 1),
    "a nest of states": A * MANY + b"b" * (MANY - 1),
    "a nest of lists": A + b"]" * MANY + b"a" * MANY,
    "arguments that double": A + b")" + b"2\x86" * MANY + b"R",
    "a text for many calls": often(text("a" * 1_000_000), A, b"R"),
    "a tuple for many calls": often(TUPLE, A, b"R"),
    "a tuple for many objects": often(TUPLE, A, b"\x81"),
    "a dict for many objects": often(b"}(" + b"NN" * MANY + b"u", A, b"b"),
    "many states": A + b"\x940](" + (get(0) + b")\x81}b") * MANY + b"e",
    "one thing given much": A + b")R" + b"Na" * 3 * MANY,
    "one state set often": A + b")R" + b"}b" * 3 * MANY,
    "many keys": b"}(" + (A + b")RN") * MANY + b"u",
    "one thing in itself": A + b")R\x94" + (get(0) + b"a") * MANY,
}
REFUSED = {
    "a tuple for many calls of what is known": often(TUPLE, name("torch", "device"), b"R"),
    "a tuple for many keys": TUPLE + b"\x940}" + (get(0) + b"Ns") * MANY,
    "a name of a long text": text("a" * 1_000_000) + b"\x94" + (b"0" + get(0) * 2 + b"\x93") * MANY,
    "names of any two texts": b"".join(text(f"{i:0400}") + b"\x940" for i in range(200))
    + b"".join(get(i) + get(j) + b"\x930" for i in range(200) for j in range(200))
    + b"N",
}


@pytest.mark.parametrize("value", [*KEPT.values(), *REFUSED.values()], ids=[*KEPT, *REFUSED])
def test_what_costs_no_more_than_its_size(tmp_path: Path, value: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outcome(tmp_path, value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000
    if value in KEPT.values():
        assert found == ["w"]
    else:
        assert found.startswith("has a data.pkl that cannot be read")


def colliding() -> Iterator[tuple[int, int]]:
    """Pairs of numbers whose tuples have one hash in Python, by its algorithm turned round."""
    first, second, start, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, (1 << 64) - 1
    undo_first, undo_second = pow(first, -1, 1 << 64), pow(second, -1, 1 << 64)
    wanted = (12345 * undo_first) & mask
    for x in itertools.count(1):
        after = (start + x * second) & mask
        after = ((after << 31 | after >> 33) * first) & mask
        y = (((wanted >> 31 | wanted << 33) & mask) - after) * undo_second & mask
        y -= (y >> 63) << 64
        if abs(y) < 2**61 - 2:
            yield x, y


@pytest.mark.parametrize("begin", [b"}(", b"\x8f("])
def test_keys_that_share_a_hash(tmp_path: Path, begin: bytes) -> None:
    pairs = list(itertools.islice(colliding(), 60_000))
    assert len(set(map(hash, pairs[:50]))) == 1
    keys = [b"\x8a\x08" + struct.pack("<q", x) + b"\x8a\x08" + struct.pack("<q", y) + b"\x86" for x, y in pairs]
    end = b"u" if begin == b"}(" else b"\x90"
    assert outcome(tmp_path, begin + b"".join(key + b"N" * (end == b"u") for key in keys) + end) == ["w"]


# ---- at random

FRAGMENTS = [
    *(b"(", b")", b"]", b"}", b"\x8f", b"N", b"K\x01", b"K\x00", b"\x88", b"G@\x00\x00\x00\x00\x00\x00\x00"),
    *(b"2", b"0", b"1", b"R", b"\x81", b"\x92", b"o", b"b", b"a", b"e", b"s", b"u", b"d", b"l", b"t", b"\x85"),
    *(b"\x86", b"\x87", b"\x90", b"\x91"),
    *(b"Q", b"P0\n", b"\x93", b"\x94", b"h\x00", b"h\x01", b"h\x05", b"q\x00", b"q\x01", b"\x97", b"\x98", b"\x82\x01"),
    *(A, A, name("c", "D"), name("posix", "system"), stacked("os", "path.join"), stacked("argparse", "Namespace")),
    *(b"(ia\nB\n", b"(iargparse\nNamespace\n", TENSOR, STORAGE, text("w"), text("__class__"), text("storage")),
    *(b".", b"U\x01a", b"C\x01a", b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a", b"I1\n", b"F1\n", b"L1\n"),
    *(name(*full.rsplit(".", 1)) for full in sorted(ALLOWED) if "Storage" not in full and "sparse" not in full),
]
COMMON = FRAGMENTS[:47] * 4 + FRAGMENTS
KNOWN = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, bool, type(None), Unknown)


def record(data: bytes) -> Any:
    """An archive of this pickle with one storage."""
    one = types.SimpleNamespace(size=16)
    file = types.SimpleNamespace(path="a.pt")
    return types.SimpleNamespace(records={"data/0": one}, file=file, read=lambda *_: data)


@settings(max_examples=1500)
@given(st.lists(st.sampled_from(COMMON), max_size=60))
def test_any_pickle_is_refused_or_inert(fragments: list[bytes]) -> None:
    with contextlib.suppress(CheckpointError, ForbiddenNames):
        root, unknown = read_object(record(P4 + b"".join(fragments) + b"."))
        assert isinstance(root, KNOWN) or type(root).__module__ == "belay_cli.formats.torch.objects"
        assert isinstance(holds_tensors(root), bool)
        assert not any(map(is_forbidden, unknown))


WATCHED = """
import json, sys, time, types
from belay_cli.api.report import peak_memory
from belay_cli.errors import CheckpointError
from belay_cli.formats.restricted_pickle import ForbiddenNames
from belay_cli.formats.torch.objects import read_object
payloads = [bytes.fromhex(line) for line in sys.stdin]
file, one = types.SimpleNamespace(path="a.pt"), types.SimpleNamespace(size=16)
modules, events, outcomes, slowest, watching = set(sys.modules), set(), {"read": 0, "refused": 0}, 0, True
sys.addaudithook(lambda event, _: events.add(event) if watching else None)
for data in payloads:
    begin = time.monotonic()
    archive = types.SimpleNamespace(records={"data/0": one}, file=file, read=lambda *_: data)
    try:
        read_object(archive)
        outcomes["read"] += 1
    except (CheckpointError, ForbiddenNames):
        outcomes["refused"] += 1
    slowest = max(slowest, time.monotonic() - begin)
watching = False
memory = peak_memory()
print(json.dumps([sorted(set(sys.modules) - modules), sorted(events), outcomes, slowest, memory]))
"""


def test_nothing_is_imported_opened_or_run() -> None:
    rng = random.Random(0)
    payloads = [weights() + value + b"s." for value in (*INERT.values(), *LIES.values())]
    payloads += [weights() + call(name(*full.rsplit(".", 1))) + b"s." for full in FORBIDDEN for call in CALLS.values()]
    payloads += [P4 + b"".join(rng.choices(COMMON, k=rng.randrange(1, 80))) + b"." for _ in range(10_000)]
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED], input="\n".join(map(bytes.hex, payloads)), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    modules, events, outcomes, slowest, memory = json.loads(ran.stdout)
    assert modules == []
    assert set(events) <= {"object.__getattr__", "sys._getframe"}
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 1000
    assert slowest < 60  # it would take for ever
    assert memory < 500_000_000
