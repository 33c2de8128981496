"""An output in the files of its last checkpoint: tensors that share storage, or lie in it in a way of their own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from belay_cli import average, verify
from belay_cli.errors import SeriesError
from tests.output.same import STEPS, loaded, saved


def randn(step: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def series_of(directory: Path, make: Callable[[int], dict[str, Tensor]]) -> list[Path]:
    return [path for step in STEPS for path in saved(directory, [step], state=make(step))]


def check(series: list[Path], **options: Any) -> dict[str, Tensor]:
    """An average is what safetensors hold by every name, it is verified, and its archive is whole. Returns it."""
    average(series, "out.pt", **options)
    average(series, "plain.safetensors", **options)
    expected = load_file("plain.safetensors")
    out: dict[str, Tensor] = loaded("out.pt")["state_dict"]
    aliases = out.keys() - expected.keys()
    assert all(any(torch.equal(out[name], other) for other in expected.values()) for name in aliases)
    for name, tensor in expected.items():
        assert torch.equal(out[name], tensor), name
    with zipfile.ZipFile("out.pt") as archive:
        assert archive.testzip() is None
    assert verify("out.pt", checkpoints=series, sample="all").ok
    assert out.keys() == loaded(series[-1])["state_dict"].keys()
    return out


def tied(step: int) -> dict[str, Tensor]:
    w = randn(step, 6, 4)
    return {"embed": w, "head": w, "turned": w.t(), "other": randn(step + 1, 3)}


def test_names_of_the_same_bytes(tmp_path: Path) -> None:
    out = check(series_of(tmp_path, tied))
    assert out["embed"].data_ptr() == out["head"].data_ptr() == out["turned"].data_ptr()
    assert torch.equal(out["turned"], out["embed"].t())


def parts(step: int) -> dict[str, Tensor]:
    w = randn(step, 9, 4)
    return {"q": w[:3], "k": w[3:6], "qkv": w, "v": w[6:], "rows": w[2:5]}


def test_views_of_one_storage(tmp_path: Path) -> None:
    out = check(series_of(tmp_path, parts))
    assert torch.equal(torch.cat([out["q"], out["k"], out["v"]]), out["qkv"])


def chained(step: int) -> dict[str, Tensor]:
    w = randn(step, 20)
    return {"a": w[:10], "b": w[5:15], "c": w[8:20]}


def test_views_that_reach_into_each_other(tmp_path: Path) -> None:
    out = check(series_of(tmp_path, chained))
    assert torch.equal(out["a"][5:], out["b"][:5])
    assert torch.equal(out["b"][3:], out["c"][:7])


def test_checkpoints_that_store_it_in_another_order(tmp_path: Path) -> None:
    def make(step: int) -> dict[str, Tensor]:
        x, y = randn(step, 2, 3, 4, 5), randn(step + 1, 6, 7)
        x = x.to(memory_format=torch.channels_last) if step != 200 else x
        return {"conv": x, "linear": y.t().contiguous().t() if step == 300 else y}

    out = check(series_of(tmp_path, make))
    assert out["conv"].is_contiguous(memory_format=torch.channels_last)
    assert out["linear"].stride() == (1, 6)


def test_views_with_gaps(tmp_path: Path) -> None:
    def make(step: int) -> dict[str, Tensor]:
        w = randn(step, 8, 10)
        return {
            "left": w[:, :4],
            "right": w[:, 6:],
            "every other": randn(step + 1, 12)[::2],
            "deep": randn(step, 4, 5, 6)[:, 1:3],
        }

    series = series_of(tmp_path, make)
    out = check(series)
    whole = out["left"].as_strided((8, 10), (10, 1), 0)
    before = loaded(series[-1])["state_dict"]["left"].as_strided((8, 10), (10, 1), 0)
    assert torch.equal(whole[:, 4:6], before[:, 4:6])  # what no tensor shows stays as it is
    assert not torch.equal(whole[:, 6:], before[:, 6:])


def test_numbers_of_one_element_and_of_none(tmp_path: Path) -> None:
    out = check(series_of(tmp_path, lambda s: {"one": randn(s, 1, 1, 1), "none": torch.empty(0, 4), "x": randn(s)}))
    assert out["none"].shape == (0, 4)


def untied_before(step: int) -> dict[str, Tensor]:
    w = randn(step, 5, 4)
    return {"embed": w, "head": w if step == 300 else randn(step + 7, 5, 4)}


def test_tied_in_the_last_checkpoint_alone_is_refused(tmp_path: Path) -> None:
    series = series_of(tmp_path, untied_before)
    with pytest.raises(SeriesError) as caught:
        average(series, "out.pt")
    assert caught.value.message == "'embed' and 'head' share bytes, and their averages differ"
    assert caught.value.hint == "leave out --format same: the average as safetensors has each tensor by itself"
    assert os.listdir() == []


def untied_at_last(step: int) -> dict[str, Tensor]:
    w = randn(step, 5, 4)
    return {"embed": w, "head": w if step != 300 else randn(step + 7, 5, 4)}


def test_tied_before_and_not_in_the_last(tmp_path: Path) -> None:
    out = check(series_of(tmp_path, untied_at_last))
    assert not torch.equal(out["embed"], out["head"])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tied, {"last": "head"}, "'embed' and 'head' share bytes, and one of them is not averaged"),
        (parts, {"last": "rows"}, "'qkv' and 'rows' share bytes, and one of them is not averaged"),
        (parts, {"average": "k"}, "'qkv' and 'k' share bytes, and one of them is not averaged"),
        (
            lambda s: {"x": randn(s, 8), "y": randn(s, 8), "same": randn(s, 1).expand(6)},
            {},
            "'same' shows some of its numbers more than once, so its average cannot be written in its place",
        ),
        (
            lambda s: {"windows": randn(s, 10).unfold(0, 4, 2)},
            {},
            "'windows' shows some of its numbers more than once, so its average cannot be written in its place",
        ),
        (
            lambda s: {"column": randn(s, 10_001, 2)[:, 0]},
            {},
            "'column' lies in more than 10,000 runs of bytes, so its average cannot be written in its place",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, make: Callable[[int], dict[str, Tensor]], options: dict[str, Any], message: str
) -> None:
    series = series_of(tmp_path, make)
    with pytest.raises(SeriesError) as caught:
        average(series, "out.pt", **options)
    assert caught.value.message == message
    assert caught.value.file == str(series[-1])
    assert caught.value.hint == "leave out --format same: the average as safetensors has each tensor by itself"
    assert os.listdir() == []


def test_what_is_not_averaged_may_lie_anyhow(tmp_path: Path) -> None:
    series = series_of(tmp_path, lambda s: {"w": randn(s, 8), "mask": torch.ones(1, dtype=torch.bool).expand(6)})
    out = check(series)
    assert out["mask"].stride() == (0,)
