"""Directories of torch.distributed.checkpoint that are hostile or cut: nothing in them is executed."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belay_cli.errors import CheckpointError
from belay_cli.formats.dcp import metadata as dcp_metadata
from tests.formats.dcp.files import (
    Payload,
    attribute,
    blob,
    contents,
    copied,
    moved,
    of_dtype,
    read,
    refused,
    rewritten,
    with_piece,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_does_not_run(small: Path, tmp_path: Path, protocol: int) -> None:
    directory = copied(small, tmp_path)
    rewritten(directory, attribute("storage_meta", Payload(tmp_path / "ran")), protocol)
    error = refused(directory, "needs more than its own classes to be read: it would import ", file=".metadata")
    assert "pathlib.Path" in error.message
    assert not (tmp_path / "ran").exists()


def test_a_payload_in_a_piece_does_not_run(small: Path, tmp_path: Path) -> None:
    directory = with_piece(small, tmp_path, blob(Payload(tmp_path / "ran")))
    refused(directory, "holds a piece of 'w' that would import ", file="other.distcp", tensor="w")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", sorted(dcp_metadata._ALLOWED))
def test_stand_ins_cannot_be_changed(tmp_path: Path, name: str) -> None:
    stand_in = dcp_metadata._ALLOWED[name]
    before = {key: getattr(stand_in, key, None) for key in ("_call", "fields", "name", "dtype", "evil")}
    module, _, leaf = name.rpartition(".")
    for state in (
        b"}X\x04\x00\x00\x00evilK\x01s",
        b"N}X\x05\x00\x00\x00_callK\x01s\x86",
        b"N}X\x06\x00\x00\x00fieldsK\x01s\x86",
    ):
        for made in (b"", b")R", b")\x81"):
            (tmp_path / ".metadata").write_bytes(b"\x80\x02c" + f"{module}\n{leaf}\n".encode() + made + state + b"b.")
            with pytest.raises(CheckpointError):
                read(tmp_path)
    assert {key: getattr(stand_in, key, None) for key in before} == before


NEST = 10_000


def nested(found: Any) -> bytes:
    """The pickle of an object in which the text `NEST` is a list in a list in a list …"""
    deep = b"]" * NEST + b"a" * (NEST - 1)
    text = b"X\x04\x00\x00\x00NEST"
    data = pickle.dumps(found, 2)
    at = data.index(text)
    put = data[at + len(text) : at + len(text) + 2]
    assert put[:1] == b"q"
    return data[:at] + deep + data[at + len(text) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(relative_path="NEST"), "puts 'w' into a nest, which is not a file of this directory"),
        (moved(transform_descriptors="NEST"), "'w' is stored in a form of its own: a nest"),
        (moved(offset="NEST"), "cannot be right: a piece of 'w' begins or ends nowhere"),
        (of_dtype("NEST"), "'w' is of dtype none, which safetensors does not have"),
        (lambda found: setattr(found.state_dict_metadata["w"], "size", "NEST"), "a shape of 'w' is none"),
    ],
)
def test_nests(small: Path, tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    directory = copied(small, tmp_path)
    found = pickle.loads((directory / ".metadata").read_bytes())
    change(found)
    (directory / ".metadata").write_bytes(nested(found))
    refused(directory, message, file=None if "of dtype" in message else ".metadata", tensor="w")


def test_nests_of_other_kinds(small: Path, tmp_path: Path) -> None:
    directory = copied(small, tmp_path)
    (directory / ".metadata").write_bytes(b"\x80\x02" + b"]" * NEST + b"a" * (NEST - 1) + b".")
    refused(directory, "cannot be right: it is not the metadata of a checkpoint", file=".metadata")
    (directory / ".metadata").write_bytes(b"\x80\x02})" + b"\x85" * NEST + b"Ns.")
    refused(directory, "cannot be read: ", file=".metadata")


def test_metadata_that_is_too_large(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp_metadata, "LARGEST", 100)
    with pytest.raises(CheckpointError, match="too large for the metadata of a checkpoint"):
        read(small)


def test_truncated_anywhere(small: Path, tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        whole = (small / name).read_bytes()
        directory = tmp_path / name.strip(".")
        directory.mkdir()
        directory = copied(small, directory)
        for length in sorted({*range(0, len(whole), len(whole) // 30), 1, 2, 3, len(whole) - 1}):
            (directory / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointError) as caught:
                read(directory)
            assert Path(caught.value.file or "").name == name
            assert caught.value.hint


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_refused_or_change_nothing_unsafe(
    small: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    directory = copied(small, tmp_path_factory.mktemp("changed"))
    path = directory / data.draw(st.sampled_from([".metadata", "__0_0.distcp"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        for _, shape, found in contents(read(directory)).values():
            assert len(shape) <= 64 and len(found) < 1000
