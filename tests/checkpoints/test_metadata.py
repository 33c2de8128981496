"""The metadata of safetensors files that goes with their average."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file, save_model

from belay_cli import Ema, average
from belay_cli.checkpoints import metadata as module
from tests.conftest import Ran, make_files, raw_safetensors, shard

LEFT_OUT = "metadata of single checkpoints, or that cannot be carried, is left out:"


def series(directory: Path, *entries: Mapping[str, str], name: str = "step-{}.safetensors") -> list[Path]:
    """A file for each metadata."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name.format(100 * (t + 1)) for t in range(len(entries))]
    for value, (path, metadata) in enumerate(zip(paths, entries, strict=True)):
        save_file({"w": torch.full((2, 2), float(value))}, path, metadata=dict(metadata))
    return paths


def header(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def carried(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return {k: v for k, v in metadata.items() if k != "format" and not k.startswith("belay.")}


def result(*entries: Mapping[str, str], **options: Any) -> tuple[dict[str, str], list[str]]:
    """What the average of such files carries, and the notes."""
    report = average(series(Path("in"), *entries), "out.safetensors", **options)
    return carried(Path("out.safetensors")), report.notes


KOHYA = {"ss_network_module": "networks.lora", "ss_network_dim": "8", "ss_network_alpha": "4.0"}


def test_what_all_checkpoints_say_goes_with_the_average() -> None:
    scale = {"lora_adapter_metadata": '{"transformer.r": 8, "transformer.lora_alpha": 16}', "te.lora_alpha": "8"}
    entries = {"format": "pt", **KOHYA, **scale, "modelspec.title": "Ünï"}
    assert result(entries, entries, entries) == ({**KOHYA, **scale, "modelspec.title": "Ünï"}, [])


def test_what_differs_is_named_in_one_note() -> None:
    one = {"format": "pt", "step": "100", "ss_steps": "100", "modelspec.date": "1", "sshs_model_hash": "a", "same": "1"}
    other = {"format": "pt", "step": "200", "ss_steps": "200", "modelspec.date": "2", "sshs_model_hash": "b"}
    found, notes = result(one, {**other, "same": "1"})
    assert found == {"same": "1"}
    names = "'modelspec.date', 'ss_steps', 'sshs_model_hash'"
    assert notes == [f"{LEFT_OUT} {names}"]


def test_an_entry_that_one_checkpoint_lacks_is_left_out() -> None:
    names = "'a', 'b', 'c' and 1 more"
    entries = dict.fromkeys("abcd", "x")
    assert result(entries, {}, entries) == ({}, [f"{LEFT_OUT} {names}"])


def test_a_checkpoint_that_is_not_read_has_a_say_too(tmp_path: Path) -> None:
    paths = series(tmp_path, {"a": "1"}, {"a": "2"}, {"a": "2"})
    report = average(paths, "out.safetensors", method=Ema(decay=1e-200))
    assert report.checkpoints[0].coefficient == 0
    assert carried(Path("out.safetensors")) == {}


def test_of_one_checkpoint_its_step_and_hashes_are_not_those_of_the_average() -> None:
    entries = {
        "step": "100",
        "global_step": "100",
        "ss_epoch": "1",
        "sshs_legacy_hash": "ab",
        "ss_max_train_steps": "9",
    }
    found, notes = result({**entries, "modelspec.hash_sha256": "0x1"})
    assert found == {"ss_max_train_steps": "9"}
    names = "'global_step', 'modelspec.hash_sha256', 'ss_epoch' and 1 more"
    assert notes == [f"{LEFT_OUT} {names}"]


def test_metadata_cannot_speak_for_belay(belay: Callable[..., Ran]) -> None:
    forged = {"belay.note": "x", "belay.lora": "delta", "belay.rule": "{}", "belay.version": "9", "format": "mlx"}
    assert result(forged, forged, allow_averages=True) == ({}, [])
    metadata = header(Path("out.safetensors"))["__metadata__"]
    assert metadata["format"] == "pt"
    assert metadata["belay.version"] != "9"
    assert json.loads(metadata["belay.rule"])["method"] == "ema"
    assert {"belay.note", "belay.lora"}.isdisjoint(metadata)


OF_BELAY = [
    *("format", "belay.version", "belay.rule", "belay.series", "belay.policies", "belay.dtype", "belay.accumulation"),
    *("belay.command", "belay.copies", "belay.aliases", "belay.versions", "belay.digests"),
]


def test_without_such_metadata_the_header_is_what_it_was(tmp_path: Path) -> None:
    average(make_files(tmp_path / "in"), "out.safetensors")
    assert list(header(Path("out.safetensors"))["__metadata__"]) == ["belay.header", *OF_BELAY]


def test_entries_lie_before_those_of_belay_by_name() -> None:
    entries = {"zeta": "1", "alpha": "2", "__proto__": "3", "Über": "4"}
    result(entries, dict(reversed(entries.items())))
    names = list(header(Path("out.safetensors"))["__metadata__"])
    assert names == ["belay.header", "__proto__", "alpha", "zeta", "Über", *OF_BELAY]


def test_the_order_of_the_checkpoints_entries_changes_no_byte(tmp_path: Path) -> None:
    entries = {"b": "1", "a": "2", "c": "3"}
    average(series(tmp_path, entries, entries), "one.safetensors")
    average(series(tmp_path, dict(sorted(entries.items())), entries), "two.safetensors")
    one, two = (header(Path(name)) for name in ("one.safetensors", "two.safetensors"))
    for metadata in (one["__metadata__"], two["__metadata__"]):
        del metadata["belay.header"], metadata["belay.series"]  # the fingerprints are of the headers too
    assert list(one["__metadata__"].items()) == list(two["__metadata__"].items())


def test_verify_holds_an_output_with_carried_metadata(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = series(tmp_path, KOHYA, KOHYA)
    assert belay("average", *paths, "-o", "out", "-q").code == 0
    assert carried(Path("out/model.safetensors")) == KOHYA
    assert belay("verify", "out").code == 0
    assert KOHYA.keys().isdisjoint(json.loads(Path("out/belay.json").read_text()))


def sharded(directory: Path, *metadata: Mapping[str, str]) -> Path:
    """A checkpoint of two shards, each with its own metadata."""
    parts = [{"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)}]
    shard(directory, parts)
    for number, (part, entries) in enumerate(zip(parts, metadata, strict=True), 1):
        save_file(part, directory / f"model-{number:05d}-of-00002.safetensors", metadata=dict(entries))
    return directory


def test_shards_have_to_agree(tmp_path: Path) -> None:
    both, one = {"a": "1", "b": "1"}, {"a": "1"}
    for step in (100, 200):
        sharded(tmp_path / f"checkpoint-{step}", both, one)
    report = average([tmp_path], "out", max_shard_size="10B")
    assert len(list(Path("out").glob("*.safetensors"))) == 2
    assert all(carried(path) == {"a": "1"} for path in Path("out").glob("*.safetensors"))
    assert report.notes == [f"{LEFT_OUT} 'b'"]


def test_a_torch_file_in_the_series_says_nothing(tmp_path: Path) -> None:
    paths = series(tmp_path, {"a": "1"})
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "step-200.pt")
    report = average([*paths, tmp_path / "step-200.pt"], "out.safetensors")
    assert carried(Path("out.safetensors")) == {}
    assert report.notes == [f"{LEFT_OUT} 'a'"]


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_the_record_of_a_tied_weight_stays_while_it_is_true(tmp_path: Path) -> None:
    for step in (100, 200):
        save_model(Tied(), str(tmp_path / f"step-{step}.safetensors"))
    paths = sorted(tmp_path.glob("*.safetensors"))
    (record,) = carried(paths[0]).items()
    average(paths, "out.safetensors")
    assert carried(Path("out.safetensors")) == dict([record])


@pytest.mark.parametrize(
    "entries", [{"other": "w"}, {"b": "w"}], ids=["its tensor is dropped", "the other is there too"]
)
def test_the_record_of_a_tied_weight_goes_when_it_is_not_true(tmp_path: Path, entries: dict[str, str]) -> None:
    for step in (100, 200):
        held = {"w": torch.ones(2, 2), "b": torch.ones(2)}
        save_file(held, tmp_path / f"step-{step}.safetensors", metadata=entries)
    report = average(sorted(tmp_path.iterdir())[:2], "out.safetensors", drop="w" if "other" in entries else ())
    assert carried(Path("out.safetensors")) == {}
    assert report.notes == [f"{LEFT_OUT} '{next(iter(entries))}'"]


def test_hostile_text_stays_harmless(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    told = {"a\nb\x1b[2J": "x\x00\n\x1b", "__metadata__": "{}", "__proto__": "1", "": "empty", "half": "\ud800"}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for step in (100, 200):
        metadata = {**told, "differs\x1b[2J\n" + "n" * 500: str(step), "\udfff": "half"}
        raw_safetensors(tmp_path / f"in/step-{step}.safetensors", {"__metadata__": metadata, "w": entry}, bytes(4))
    ran = belay("average", tmp_path / "in", "-o", "out.safetensors", "--json")
    assert ran.code == 0
    assert carried(Path("out.safetensors")) == {name: value for name, value in told.items() if name != "half"}
    (note,) = ran.json["notes"]
    names = r"'differs\x1b[2J\n" + "n" * 48 + "'…, 'half', '\\udfff'"
    assert note == f"{LEFT_OUT} {names}"
    assert belay("verify", "out.safetensors", "--checkpoints", tmp_path / "in").code == 0


def test_what_is_carried_is_bounded() -> None:
    large = "x" * (module.LARGEST - 10)
    entries = {"a_large_one": large, "b": "1234", "c": "56789"}
    found, notes = result(entries, entries)
    assert found == {"b": "1234", "c": "56789"}
    assert notes == [f"{LEFT_OUT} 'a_large_one'"]


@given(
    st.dictionaries(st.text(alphabet="abé", max_size=3), st.text(alphabet="xü", max_size=9), max_size=9),
    st.integers(0, 60),
)
def test_the_most_entries_that_have_room(entries: dict[str, str], limit: int) -> None:
    found = module._within(limit, entries)
    assert list(found) == sorted(found)
    sizes = sorted(len((name + value).encode()) for name, value in entries.items())
    assert sum(sizes[: len(found)]) <= limit
    assert len(found) == len(sizes) or sum(sizes[: len(found) + 1]) > limit


@pytest.mark.parametrize("dtype, expected", [("same", {"dtype": "float32"}), ("bfloat16", {})])
def test_a_dtype_is_said_while_it_is_true(dtype: str, expected: dict[str, str]) -> None:
    assert result({"dtype": "float32"}, {"dtype": "float32"}, dtype=dtype)[0] == expected
