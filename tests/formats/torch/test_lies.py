"""Torch files that lie: refused in words, or read as torch reads them; and nothing in a file ever runs."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belay_cli.errors import CheckpointError
from belay_cli.storage.files import OpenFiles
from tests.formats.torch.files import (
    Claim,
    Lie,
    archived,
    assert_same,
    load,
    lying_tensor,
    pickled,
    read,
    refused,
    saved,
    sd,
    tensor_bytes,
)
from tests.reading import Found


def test_a_file_made_by_hand_is_read(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.pt", pickled({"w": lying_tensor()}))
    assert_same(read(path), {"w": torch.zeros(4)})
    path = archived(tmp_path / "b.pt", pickled({"w": lying_tensor()}), [("data/0", bytes(18))])
    assert_same(read(path), {"w": torch.zeros(4)})


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_payload_does_not_run(tmp_path: Path, suffix: str) -> None:
    made = tmp_path / "made"
    payloads = [Lie(os.mkdir, str(made)), Lie(eval, "1"), Lie(exec, "1"), Lie(getattr, 1, "x"), Lie(os.system, "true")]
    for number, payload in enumerate(payloads):
        path = saved(tmp_path / f"{number}{suffix}", {"state_dict": sd(), "hyper_parameters": payload})
        error = refused(path, "needs more than weights to be read: it would import")
        assert "torch.save(model.state_dict(), path)" in error.hint
    assert not made.exists()
    error = refused(saved(tmp_path / f"all{suffix}", {"a": sd(), "b": payloads}), "import ")
    assert "__builtin__.eval, __builtin__.exec, __builtin__.getattr, posix.mkdir, posix.system" in error.message


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "a.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear")
    assert "save the weights alone" in error.hint


def test_many_and_strange_names(tmp_path: Path) -> None:
    body = b"".join(b"cmodule%d\nname\n0" % i for i in range(50))
    refused(archived(tmp_path / "a.pt", b"\x80\x02" + body + b"N."), "and 45 more")
    strange = b"\x80\x04\x8c\x02a\n\x8c\x03b\x1b]\x93."
    refused(archived(tmp_path / "b.pt", strange), r"it would import 'a\n.b\x1b]'")


def test_names_with_backslashes(tmp_path: Path) -> None:
    refused(archived(tmp_path / "a.pt", b"\x80\x02c\\os\nsystem\n."), "it would import")
    # Python's scan and its unpickler read such a name differently; both have to allow it.
    refused(archived(tmp_path / "b.pt", b"\x80\x02ctorch\n\\x53ize\n."), "it would import")


def test_stand_ins_cannot_be_changed(tmp_path: Path) -> None:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for state in (
        b"}X\x01\x00\x00\x00aK\x01s",
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86",
        b"N}X\x05\x00\x00\x00_callNs\x86",
    ):
        for target in (rebuild, b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n"):
            refused(archived(tmp_path / "a.pt", b"\x80\x02" + target + state + b"b."), "has a data.pkl")
    path = archived(tmp_path / "b.pt", pickled({"w": lying_tensor()}))
    assert_same(read(path), {"w": torch.zeros(4)})
    refused(archived(tmp_path / "c.pt", b"\x80\x02ccollections\nOrderedDict\n)\x81."), "has a data.pkl")  # NEWOBJ


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lying_tensor(Claim(numel=5)), "the storage '0' should hold 5 elements of float32 and has 16 bytes"),
        (lying_tensor(Claim(numel=3)), "should hold 3 elements"),
        (lying_tensor(Claim(numel=-1)), "should hold -1 elements"),
        (lying_tensor(Claim(numel=1 << 70)), "should hold 1180591620717411303424 elements"),
        (lying_tensor(Claim(key="1")), "the storage '1' is not in the file"),
        (lying_tensor(Claim(key="../data.pkl")), "the storage '../data.pkl' is not in the file"),
        (lying_tensor(Claim(key=0)), "asks for something that is no storage"),
        (lying_tensor(Claim(what="module")), "asks for something that is no storage"),
        (lying_tensor(Claim(kind=torch.float32)), "asks for something that is no storage"),
        ([lying_tensor(), lying_tensor(Claim(kind=torch.IntStorage))], "describes the storage '0' in two ways"),
        (lying_tensor(offset=1), "'w' is 4 of float32 up to byte 20 of a storage that has 16"),
        (lying_tensor(offset=-1), "'w' has the shape (4,), strides (1,) and offset -1"),
        (
            lying_tensor(offset=1 << 20_000),
            "'w' has the shape (4,), strides (1,) and offset a number too large",
        ),
        (lying_tensor(strides=(-1,), offset=3), "'w' has the shape (4,), strides (-1,)"),
        (lying_tensor(strides=(1 << 62,)), "'w' is 4 of float32 up to byte"),
        (lying_tensor(strides=(1 << 64,)), "'w' has the shape (4,), strides (18446744073709551616,)"),
        (lying_tensor(shape=(-4,)), "'w' has the shape (-4,)"),
        (lying_tensor(shape=(1 << 40,), strides=(0,)), "'w' is 1099511627776 of float32, many times what"),
        (lying_tensor(shape=((1 << 62),) * 64, strides=(0,) * 64), "'w' is 4611686018427387904×"),
        (lying_tensor(shape=(1,) * 65, strides=(0,) * 65), "it makes a tensor of what is none"),
        (lying_tensor(shape=(4,), strides=()), "it makes a tensor of what is none"),
        (lying_tensor(shape=(4.0,)), "it makes a tensor of what is none"),
        (lying_tensor(shape=[4]), "it makes a tensor of what is none"),
        (lying_tensor(shape=(True,)), "it makes a tensor of what is none"),
        (lying_tensor(offset="0"), "it makes a tensor of what is none"),
        (lying_tensor(lying_tensor()), "it makes a tensor of what is none"),
        (Lie(torch._utils._rebuild_tensor_v2, 1), "has a data.pkl that cannot be read"),
        (Lie(torch._utils._rebuild_parameter, 1, True, None), "it makes a parameter of what is no tensor"),
        (Lie(torch.Size, [1 << 20]), "it makes a shape of what is none"),
        (
            Lie(torch._tensor._rebuild_from_type_v2, torch.Size, torch.Tensor, ((1,),), None),
            "in a way that torch does not",
        ),
    ],
)
def test_pickles_that_lie(tmp_path: Path, value: Any, message: str) -> None:
    assert message in refused(archived(tmp_path / "a.pt", pickled({"w": value})), "has a data.pkl").message


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    data = b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + pickled(lying_tensor())[2:-1] + b"s."
    refused(archived(tmp_path / "a.pt", data), "which is not one in Unicode")


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_nothing_unsafe(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    directory = tmp_path_factory.mktemp("changed")
    path = saved(directory / "a.pt", {"w": torch.arange(6.0).reshape(2, 3), "t": torch.arange(6).reshape(2, 3).t()})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        found = read(path)
        with OpenFiles(1) as files:
            for tensor in found.tensors:
                tensor.stored.read_into(files, memoryview(bytearray(tensor_bytes(tensor))), 0)
        _agrees_with_torch(path, found)


def _agrees_with_torch(path: Path, found: Found) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = load(path)
        except Exception:  # it checks what we do not need
            return
    if isinstance(theirs, dict) and all(isinstance(value, torch.Tensor) for value in theirs.values()):
        theirs = {name: value for name, value in theirs.items() if isinstance(name, str)}
        kept = {tensor.name for tensor in found.tensors}
        assert_same(found, {name: value for name, value in theirs.items() if name in kept})


@given(st.binary(max_size=300))
def test_any_pickle_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = archived(tmp_path_factory.mktemp("noise") / "a.pt", b"\x80\x02" + noise)
    with contextlib.suppress(CheckpointError):
        read(path)
