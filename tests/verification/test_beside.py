"""`belay verify` and the files beside the weights: changed, absent, of an older belay, or no files at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from belay_cli import average, inspect
from tests.conftest import Ran, make_files, make_run
from tests.verification.outputs import as_before, several, with_metadata


def statuses(ran: Ran) -> dict[str, str]:
    return {check["name"]: check["status"] for check in ran.json["checks"]}


HELD = dict.fromkeys(("structure", "headers", "record", "files", "digests", "coefficients", "inputs", "values"), "held")


def test_of_an_older_output_is_said_what_cannot_be_checked(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out", max_shard_size="1kB")
    as_before(Path("out"))
    ran = belay("verify", "out")
    assert ran.code == 1
    assert ran.out.splitlines()[1:4] == [
        "  not checked  headers       an older belay wrote it, with no digests of its headers",
        "  held         record        belay.json and the metadata of the weights agree",
        "  not checked  files         an older belay wrote it, with no digests of the files beside the weights",
    ]
    assert ran.err == "belay: out: is not verified: an older belay wrote it, with no digests of its headers\n"
    assert statuses(belay("verify", "out", "--json")) == HELD | {"headers": "not checked", "files": "not checked"}
    assert inspect("out").ok


def test_an_older_file_has_no_files_beside_it(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    as_before(Path("out.safetensors"))
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path, "--json")
    assert (ran.code, statuses(ran)) == (1, HELD | {"headers": "not checked"})


def test_of_an_older_output_is_found_what_can_be(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out")
    as_before(Path("out"))
    weights, document = Path("out/model.safetensors"), Path("out/belay.json")
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = (length + 8).to_bytes(8, "little") + content[8 : 8 + length] + b" " * 8 + content[8 + length :]
    weights.write_bytes(padded)
    document.write_text(document.read_text().replace("\n", "\n\n", 1))
    ran = belay("verify", "out")
    assert ran.code == 1
    assert ran.out.splitlines()[1:3] == [
        "  failed       headers       the header of model.safetensors is not the one that was written",
        "  failed       record        belay.json is not what was written",
    ]


def test_a_record_without_its_seal_is_no_older_one(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average(make_files(tmp_path), "out.safetensors")
    with_metadata(Path("out.safetensors"), dict, seal=False)
    ran = belay("verify", "out.safetensors", "--checkpoints", tmp_path, "--json")
    assert (ran.code, statuses(ran)) == (1, HELD | {"headers": "failed"})
    said = "headers failed: the header of out.safetensors is not the one that was written"
    assert ran.json["error"]["message"] == f"out.safetensors: {said}"


def test_a_published_output_needs_nothing_local(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    average([make_run(tmp_path / "run")], "out")
    Path("out/.belay/local.json").unlink()
    Path("out/README.md").write_text("# A card\n")
    ran = belay("verify", "out", "--checkpoints", tmp_path / "run")
    assert (ran.code, ran.err) == (0, "")
    assert "  held         files         every byte of 2 files beside the weights" in ran.out


def test_a_model_index_that_was_changed_is_named(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    output, run = several(tmp_path / "made")
    index = output / "model_index.json"
    index.write_text(index.read_text().replace('"vae"', '"vaf"'))
    ran = belay("verify", output, "--checkpoints", run)
    assert ran.code == 1
    assert "model_index.json is not what was written" in ran.err.splitlines()[0]


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("name", ["config.json", "belay.json", ".belay/local.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("x" * 255),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.write_bytes(b"\xff\xfe\x00\x80"),
        lambda path: path.write_bytes(b"[" * 300_000),
        huge,
    ],
)
def test_what_is_no_file_of_an_output_is_one_line(
    tmp_path: Path, belay: Callable[..., Ran], name: str, put: Callable[[Path], Any]
) -> None:
    average([make_run(tmp_path / "run")], "out", max_shard_size="1kB")
    Path("out", name).unlink()
    put(Path("out", name))
    ran = belay("verify", "out", "--checkpoints", tmp_path / "run")
    assert ran.code == 1
    assert name in ran.err.splitlines()[0]
    assert ran.err.count("belay: ") == 1
    assert "unexpected" not in ran.err


@pytest.mark.parametrize(
    ("name", "check"), [("config.json", "files"), ("belay.json", "record"), (".belay/local.json", "files")]
)
def test_a_file_that_may_not_be_read(
    tmp_path: Path, belay: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, name: str, check: str
) -> None:
    average([make_run(tmp_path / "run")], "out")
    opened = os.open

    def refuse(path: Any, *options: Any, **named: Any) -> int:
        if Path(path) == Path("out", name):
            raise PermissionError(13, "Permission denied")
        return opened(path, *options, **named)

    monkeypatch.setattr(os, "open", refuse)
    ran = belay("verify", "out", "--checkpoints", tmp_path / "run")
    assert ran.code == 1
    assert ran.err == f"belay: out: {check} failed: {name} cannot be opened: permission denied\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../config.json", "../config.json would lie outside of the output"),
        ("/etc/hostname", "/etc/hostname would lie outside of the output"),
        ("", " would lie outside of the output"),
        ("a\0b.json", "a\\x00b.json would lie outside of the output"),
        ("x" * 300, f"{'x' * 300} cannot be read: file name too long"),
    ],
)
def test_a_record_that_names_other_files(tmp_path: Path, belay: Callable[..., Ran], name: str, said: str) -> None:
    average([make_run(tmp_path / "run")], "out")
    copies = json.dumps({name: "0" * 64})
    with_metadata(Path("out/model.safetensors"), lambda metadata: {**metadata, "belay.copies": copies}, seal=True)
    ran = belay("verify", "out")
    assert ran.code == 1
    assert f"  failed       structure     {said}" in ran.out
    assert f"  failed       files         {said}" in ran.out


@pytest.mark.parametrize("copies", ['{"config.json":"x"}', '{"config.json":5}', '"config.json"', "5", '{"a":null}'])
def test_digests_of_copies_that_are_none(tmp_path: Path, belay: Callable[..., Ran], copies: str) -> None:
    average([make_run(tmp_path / "run")], "out")
    with_metadata(Path("out/model.safetensors"), lambda metadata: {**metadata, "belay.copies": copies}, seal=True)
    ran = belay("verify", "out")
    assert (ran.code, ran.out) == (1, "")
    assert "has a damaged record of how it was made" in ran.err


def test_the_seal_of_a_header_can_be_taken_by_anyone(tmp_path: Path) -> None:
    average(make_files(tmp_path), "out.safetensors")
    content = Path("out.safetensors").read_bytes()
    header = bytearray(content[: 8 + int.from_bytes(content[:8], "little")])
    header[41:105] = b"0" * 64
    with safe_open("out.safetensors", framework="pt") as file:
        assert file.metadata()["belay.header"] == hashlib.sha256(header).hexdigest()
