"""An output in the files of its last checkpoint: of torch files by themselves."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from belay_cli import average, verify
from belay_cli.errors import CheckpointError
from tests.conftest import Ran
from tests.output.same import changed, checksum_fields, loaded, saved, weight_bytes


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return saved(tmp_path)


def test_it_is_the_last_checkpoint_with_the_averaged_numbers(series: list[Path]) -> None:
    report = average(series, "out.pt", format="same")
    average(series, "out.safetensors")
    last, out, expected = loaded(series[-1]), loaded("out.pt"), load_file("out.safetensors")
    assert sorted(os.listdir()) == ["out.pt", "out.pt.belay.json", "out.safetensors"]
    assert [Path(file.path).name for file in report.files] == ["out.pt", "out.pt.belay.json"]
    assert [file.bytes for file in report.files] == [os.path.getsize(file.path) for file in report.files]
    assert list(out) == list(last)
    assert (out["global_step"], out["hyper_parameters"]) == (300, {"lr": 1e-3})
    assert torch.equal(out["optimizer"]["exp_avg"], last["optimizer"]["exp_avg"])
    assert list(out["state_dict"]) == list(last["state_dict"])
    for name, tensor in out["state_dict"].items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == last["state_dict"][name].dtype, name
        assert tensor.stride() == last["state_dict"][name].stride(), name
    assert not torch.equal(out["state_dict"]["plain"], last["state_dict"]["plain"])


def test_every_other_byte_is_that_of_the_last_checkpoint(series: list[Path]) -> None:
    average(series, "out.pt", format="same")
    differ = changed(Path("out.pt").read_bytes(), series[-1].read_bytes())
    ours, checksums = weight_bytes(series[-1]), checksum_fields(series[-1])
    assert differ <= ours | checksums
    assert len(differ & ours) > 5000
    assert differ & checksums


def test_every_checksum_of_the_archive_is_right(series: list[Path]) -> None:
    average(series, "out.pt", format="same")
    with zipfile.ZipFile("out.pt") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_copied_is_what_was_saved(series: list[Path], threads: int) -> None:
    """One bit of the optimizer's state, which no average reads."""
    for path in (series[0], series[-1]):
        data = bytearray(path.read_bytes())
        state = loaded(path)["optimizer"]["exp_avg"]
        at = data.index(state.numpy().tobytes())
        data[at + 5] ^= 8
        path.write_bytes(data)
        if path == series[0]:  # of which nothing else is taken
            average(series, "out.pt", threads=threads)
            os.remove("out.pt")
            os.remove("out.pt.belay.json")
    with pytest.raises(CheckpointError) as caught:
        average(series, "out.pt", threads=threads)
    assert caught.value.file == str(series[-1])
    assert re.fullmatch(r"'data/\d+' is not as it was saved: the CRC-32 of its bytes is another", caught.value.message)
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["out.pt", "out.pth", "out.ckpt", "out.bin"])
def test_the_name_of_the_output_implies_it(series: list[Path], name: str) -> None:
    average(series, "out.pt", format="same")
    expected = Path("out.pt").read_bytes()
    os.remove("out.pt")
    os.remove("out.pt.belay.json")
    assert average(series, name).format == "same"
    assert Path(name).read_bytes() == expected


def test_the_default_name_has_the_suffix_of_the_last_checkpoint(series: list[Path]) -> None:
    average(series, format="same")
    assert sorted(os.listdir()) == ["belay-average.pt", "belay-average.pt.belay.json"]


def test_the_bytes_depend_on_no_chunk_and_no_thread(series: list[Path]) -> None:
    average(series, "out.pt", threads=1, chunk=64)
    average(series, "again.pt", threads=3)
    average(series, "unsynced.pt", sync=False)
    assert Path("again.pt").read_bytes() == Path("out.pt").read_bytes() == Path("unsynced.pt").read_bytes()


def test_several_averages_in_one_read(series: list[Path]) -> None:
    average(series, rules=["ema", "uniform"], outputs=["ema.pt", "uniform.pt"])
    average(series, "alone.pt", method="uniform")
    assert Path("uniform.pt").read_bytes() == Path("alone.pt").read_bytes()
    assert Path("ema.pt").read_bytes() != Path("alone.pt").read_bytes()
    assert verify("ema.pt", checkpoints=series, sample="all").ok


def test_policies(series: list[Path]) -> None:
    average(series, "out.pt", last="plain")
    average(series, "out.safetensors", last="plain")
    out, last = loaded("out.pt")["state_dict"], loaded(series[-1])["state_dict"]
    assert torch.equal(out["plain"], last["plain"])
    assert torch.equal(out["bfloat16"], load_file("out.safetensors")["bfloat16"])
    assert verify("out.pt", checkpoints=series, sample="all").ok


def test_the_command_line_says_how_to_load_it(series: list[Path], belay: Callable[..., Ran]) -> None:
    ran = belay("average", *series, "--format", "same", "-o", "out.pt")
    assert (ran.code, ran.out.split(" in ")[0]) == (0, "✓ out.pt  11 tensors, 12.3 kB")
    assert ran.err.splitlines()[-1].split() == ["load", "it:", 'torch.load("out.pt")']


def test_verify_holds(series: list[Path], belay: Callable[..., Ran]) -> None:
    average(series, "out.pt")
    ran = belay("verify", "out.pt", "--checkpoints", *series, "--sample", "all")
    assert (ran.code, [line.split(maxsplit=2) for line in ran.out.splitlines()]) == (
        0,
        [
            ["held", "structure", "1 file"],
            ["held", "record", "out.pt.belay.json is what was written"],
            ["held", "digests", "every byte of 1 file"],
            ["held", "coefficients", "those of the recorded rule"],
            ["held", "inputs", "the 3 checkpoints are those recorded"],
            ["held", "values", "1551 of 1551 values, by the recursion"],
        ],
    )


def test_verify_finds_every_flipped_bit_of_the_record(series: list[Path]) -> None:
    average(series, "out.pt")
    record = Path("out.pt.belay.json")
    whole = record.read_bytes()
    for bit in range(0, 8 * len(whole), 41):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        record.write_bytes(damaged)
        try:
            assert not verify("out.pt", checkpoints=series).ok, bit
        except Exception as error:
            assert type(error).__name__ == "CheckpointError", bit


def test_verify_finds_a_flipped_bit_wherever_it_is(series: list[Path]) -> None:
    average(series, "out.pt")
    whole = Path("out.pt").read_bytes()
    for byte in range(0, len(whole), 397):
        damaged = bytearray(whole)
        damaged[byte] ^= 4
        Path("out.pt").write_bytes(damaged)
        try:
            found = verify("out.pt", checkpoints=series)
            assert [check.detail for check in found.checks if check.name == "digests"] == [
                "the bytes of out.pt are not those that were written"
            ]
        except Exception as error:
            assert str(error) == "out.pt: the bytes of out.pt are not those that were written", byte
