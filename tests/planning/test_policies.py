"""What becomes of numbers that are not averaged: the true reason, and the options that decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from belay_cli.errors import SeriesError
from belay_cli.formats.contents import Tensor
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning.policies import Policies
from tests.conftest import Ran


def series(directory: Path, **more: Any) -> list[Path]:
    paths = []
    for step in (100, 200):
        paths.append(directory / f"step_{step}.safetensors")
        save_file({"w": torch.full((4,), float(step)), **{n: t * step for n, t in more.items()}}, paths[-1])
    return paths


def test_complex_numbers_are_said_to_be_that(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    paths = series(tmp_path, freqs_cis=torch.polar(torch.ones(4), torch.ones(4)))
    ran = belay("average", *paths, "-o", "out.safetensors")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "belay: 'freqs_cis' is complex64, which belay does not average\n"
        "       to keep the last one's: --last 'freqs_cis'; to leave it out: --drop 'freqs_cis'\n"
    )
    assert belay("average", *paths, "-o", "out.safetensors", "--last", "freqs_cis").code == 0
    assert torch.equal(load_file("out.safetensors")["freqs_cis"], load_file(paths[1])["freqs_cis"])
    assert belay("average", *paths, "-o", "other.safetensors", "--drop", "freqs_cis").code == 0
    assert set(load_file("other.safetensors")) == {"w"}


@pytest.mark.parametrize("code", [code for code in DTYPES if code.startswith(("F8_", "F6_", "F4"))])
def test_small_floats_need_their_scales(code: str) -> None:
    tensor = Tensor("l.weight", code, (8,), 0, DTYPES[code].bits)
    with pytest.raises(SeriesError) as error:
        Policies().check([tensor])
    assert error.value.message == (
        f"'l.weight' is {DTYPES[code].name}, whose numbers mean nothing without their scales"
    )
    assert error.value.hint == "average before quantization; to keep the last one's: --last 'l.weight'"
    Policies(last=("l.*",)).check([tensor])
    Policies(drop=("l.*",)).check([tensor])


def test_what_cannot_be_read_can_be_dropped(tmp_path: Path, belay: Callable[..., Ran]) -> None:
    for step in (100, 200):
        state = {"w": torch.full((4,), float(step)), "freqs_cis": torch.ones(4, dtype=torch.complex128)}
        torch.save(state, tmp_path / f"step_{step}.pt")
    paths = sorted(tmp_path.glob("*.pt"))
    assert "'freqs_cis' is of dtype complex128" in belay("average", *paths, "-o", "out.safetensors").err
    ran = belay("average", *paths, "-o", "out.safetensors", "--drop", "freqs_*")
    assert ran.code == 0, ran.err
    assert set(load_file("out.safetensors")) == {"w"}
    assert (
        "--drop 'f' matches no tensor" in belay("average", *paths, "-o", "out", "--drop", "freqs_*", "--drop", "f").err
    )


def test_names_of_the_shell_are_quoted() -> None:
    with pytest.raises(SeriesError) as error:
        Policies().check([Tensor("rope[0].c", "C64", (1,), 0, 8)])
    assert error.value.hint == ("to keep the last one's: --last 'rope[[]0].c'; to leave it out: --drop 'rope[[]0].c'")


def test_only_complex_numbers_are_complex() -> None:
    assert [code for code, dtype in DTYPES.items() if dtype.complex] == ["C64"]
