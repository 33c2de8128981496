"""Metadata of torch.distributed.checkpoint that lies, or does not fit its files, is refused in words."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata

from belay_cli.errors import CheckpointError
from tests.formats.dcp.files import MODEL, attribute, copied, moved, of_dtype, place_of, read, refused, rewritten, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_saves_that_did_not_finish(tmp_path: Path) -> None:
    directory = save(tmp_path / "x", {"model": MODEL})
    (directory / ".metadata").rename(tmp_path / "metadata")
    error = refused(directory, "holds *.distcp files but no .metadata")
    assert error.hint == "the save did not finish; leave the checkpoint out"
    (tmp_path / "metadata").rename(directory / ".metadata")
    (directory / "__0_0.distcp").unlink()
    first = next(iter(pickle.loads((directory / ".metadata").read_bytes()).storage_data)).fqn
    message = f"puts {first!r} into __0_0.distcp, which is not there"
    refused(directory, message, file=".metadata", tensor=first)
    (directory / "__0_0.distcp").mkdir()
    refused(directory, message, file=".metadata", tensor=first)


def test_a_file_that_ends_behind_the_weights(tmp_path: Path) -> None:
    """The optimizer that lies there is none of an average's business, but such a save is not whole."""
    directory = save(tmp_path / "x", {"model": MODEL, "optim": {"z": torch.ones(1000)}})
    file = directory / "__0_0.distcp"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    places = pickle.loads((directory / ".metadata").read_bytes()).storage_data
    last = max(places, key=lambda index: places[index].offset)
    message = f"is cut short: {last.fqn!r} should lie in it up to byte {size}, and it has {size - 1}"
    refused(directory, message, file=file.name, tensor=last.fqn)


def cut(*chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> Callable[..., Any]:
    def change(found: Any) -> None:
        found.state_dict_metadata["w"].chunks = [
            metadata.ChunkStorageMetadata(torch.Size(starts), torch.Size(sizes)) for starts, sizes in chunks
        ]

    return change


def of_size(*size: int) -> Callable[..., Any]:
    def change(found: Any) -> None:
        found.state_dict_metadata["w"].size = torch.Size(size)
        cut(((0,) * len(size), size))(found)

    return change


def elsewhere(found: Any) -> None:
    index = place_of(found)
    found.storage_data[metadata.MetadataIndex("w", [1, 0])] = found.storage_data.pop(index)


def unhashable(found: Any) -> None:
    object.__setattr__(place_of(found), "fqn", [])
    object.__setattr__(place_of(found, []), "offset", [])


def one_name(found: Any) -> None:
    found.planner_data["other"] = found.planner_data["w"]


LIES = [
    (moved(relative_path="../x/__0_0.distcp"), "puts 'w' into '../x/__0_0.distcp', which is not a file of this dir"),
    (moved(relative_path="/etc/passwd"), "puts 'w' into '/etc/passwd', which is not a file of this directory"),
    (moved(relative_path="a\\b"), "puts 'w' into 'a\\\\b', which is not a file of this directory"),
    (moved(relative_path=".."), "puts 'w' into '..', which is not a file of this directory"),
    (moved(relative_path="C:x"), "puts 'w' into 'C:x', which is not a file of this directory"),
    (moved(relative_path=7), "puts 'w' into 7, which is not a file of this directory"),
    (moved(relative_path=10**5000), "puts 'w' into a number too large to show"),
    (moved(offset=-1), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(length=-1), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(length="9"), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(offset=10**5000), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(offset=True), "cannot be right: a piece of 'w' begins or ends nowhere"),
    (moved(transform_descriptors=["stream.zstd"]), "'w' is stored in a form of its own: ['stream.zstd']"),
    (cut(), "cannot be right: of 'w' a piece is missing"),
    (cut(((0, 0), (3, 5))), "cannot be right: of 'w' a piece is missing"),
    (cut(((0, 0), (4, 5)), ((0, 0), (4, 5))), "cannot be right: of 'w' two pieces overlap"),
    (cut(((0, 0), (3, 5)), ((2, 0), (1, 5))), "cannot be right: of 'w' two pieces overlap"),
    (cut(((1, 0), (4, 5))), "cannot be right: of 'w' a piece reaches outside it"),
    (cut(((0,), (20,))), "cannot be right: of 'w' a piece has another number of dimensions"),
    (cut(((2, 0), (2, 5)), ((0, 0), (2, 5))), "cannot be right: a piece of 'w' is nowhere"),
    (of_size(20), "cannot be right: a piece of 'w' is nowhere"),
    (elsewhere, "cannot be right: a piece of 'w' is nowhere"),
    (lambda found: found.storage_data.clear(), "cannot be right: a piece of 'w' is nowhere"),
    (lambda found: setattr(found.state_dict_metadata["w"], "chunks", None), "cannot be right: 'w' has no list of pie"),
    (lambda found: setattr(found.state_dict_metadata["w"], "size", (4, -5)), "cannot be right: a shape of 'w' is none"),
    (lambda found: setattr(found.state_dict_metadata["w"], "size", [4, 5]), "cannot be right: a shape of 'w' is none"),
    (lambda found: delattr(found.state_dict_metadata["w"], "size"), "cannot be right: something in it has no size"),
    (of_dtype(torch.qint8), "'w' is of dtype qint8, which safetensors does not have"),
    (of_dtype(torch.complex128), "'w' is of dtype complex128, which safetensors does not have"),
    (of_dtype(torch.float4_e2m1fn_x2), "'w' is of dtype float4_e2m1fn_x2, which safetensors does not have"),
    (of_dtype([]), "'w' is of dtype none, which safetensors does not have"),
    (of_dtype("float32"), "'w' is of dtype none, which safetensors does not have"),
]


@pytest.mark.parametrize(("change", "message"), LIES)
def test_metadata_that_lies_about_a_tensor(
    small: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    file = None if "of dtype" in message else ".metadata"  # a tensor that is no plain array may be dropped
    refused(rewritten(copied(small, tmp_path), change), message, file=file, tensor="w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("state_dict_metadata", None), "it has no state_dict_metadata"),
        (attribute("storage_data", []), "it has no storage_data"),
        (attribute("planner_data", "x"), "it has no planner_data"),
        (attribute("storage_data", {"w": 1}), "something in it has no fqn"),
        (unhashable, "a piece of 'w' is nowhere"),
    ],
)
def test_metadata_that_is_no_such_thing(small: Path, tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(rewritten(copied(small, tmp_path), change))
    assert caught.value.hint


def test_two_tensors_of_one_name(small: Path, tmp_path: Path) -> None:
    directory = save(tmp_path / "x", {"w": torch.ones(2), "other": torch.zeros(2)})
    refused(rewritten(directory, one_name), "'w' and 'other' have one name", file=".metadata", tensor="w")
    directory = save(tmp_path / "y", {"w": torch.ones(2), "_orig_mod.w": torch.zeros(2)})
    refused(directory, "has 'w' twice, once with a prefix", tensor="w")


def test_names_that_are_no_unicode(small: Path, tmp_path: Path) -> None:
    def change(found: Any) -> None:
        found.planner_data["w"] = ("\ud800",)

    refused(rewritten(copied(small, tmp_path), change), "which is not one in Unicode", tensor="\ud800")


PIECES = [
    (moved(length=400), "holds a piece of 'w' that "),
    (moved(length=3), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(length=0), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(offset=8), "holds a piece of 'w' that is not as torch.save writes it"),
    (moved(length=1 << 40), "is cut short: 'w' should lie in it up to byte "),
    (moved(offset=(1 << 63) - 1), "is cut short: 'w' should lie in it up to byte "),
    (of_dtype(torch.bfloat16), "holds a piece of 'w' that is not 4×5 of bfloat16, as the metadata says"),
    (of_dtype(torch.int32), "holds a piece of 'w' that is not 4×5 of int32, as the metadata says"),
    (cut(((0, 0), (2, 5)), ((2, 0), (2, 5))), "holds a piece of 'w' that is not 2×5 of float32, as the metadata says"),
    (of_size(5, 4), "holds a piece of 'w' that is not 5×4 of float32, as the metadata says"),
    (of_size(1 << 40, 1 << 20), "holds a piece of 'w' that is not 1099511627776×1048576 of float32"),
]


@pytest.mark.parametrize(("change", "message"), PIECES)
def test_metadata_that_does_not_fit_its_files(
    small: Path, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    refused(rewritten(copied(small, tmp_path), change), message, file="__0_0.distcp", tensor="w")
