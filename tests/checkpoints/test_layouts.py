"""One table of layouts, through every format that can hold them: the same decision, and the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

from belay_cli import BelayError, Ema, average
from tests.checkpoints.layouts import FLAT, NESTED, Layout, Tensors
from tests.conftest import shard

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STEPS = (100, 200, 300)


def halves(saved: Tensors) -> list[Tensors]:
    names = list(saved)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    return [{name: saved[name] for name in part} for part in parts]


def as_safetensors(step: int, saved: Tensors) -> None:
    save_file(saved, f"run/step-{step}.safetensors")


def as_sharded_safetensors(step: int, saved: Tensors) -> None:
    shard(Path(f"run/step-{step}"), halves(saved))


def as_sharded_bin(step: int, saved: Tensors) -> None:
    directory = Path(f"run/step-{step}")
    directory.mkdir()
    weight_map: dict[str, str] = {}
    for number, part in enumerate(halves(saved), 1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_bin(step: int, saved: dict[str, Any]) -> None:
    Path(f"run/step-{step}").mkdir()
    torch.save(saved, f"run/step-{step}/pytorch_model.bin")


def as_pt(step: int, saved: dict[str, Any]) -> None:
    torch.save(saved, f"run/step-{step}.pt")


def as_ckpt(step: int, saved: dict[str, Any]) -> None:
    torch.save(saved, f"run/step-{step}.ckpt")


def as_dcp(step: int, saved: dict[str, Any]) -> None:
    dcp.save(saved, checkpoint_id=f"run/step-{step}", no_dist=True)


OF_ANY_LAYOUT = (as_pt, as_ckpt, as_bin, as_dcp)
FORMATS = (as_safetensors, as_sharded_safetensors, as_sharded_bin, *OF_ANY_LAYOUT)


def outcome(options: Any) -> dict[str, Any] | str:
    """Name -> dtype, shape and bytes of the average, or the message of the refusal."""
    try:
        report = average(["run"], "out.safetensors", method=Ema(half_life="50%"), overwrite=True, **options)
    except BelayError as error:
        return error.message
    assert [entry.step for entry in report.checkpoints] == list(STEPS)
    with safe_open("out.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}


def saved_as(save: Any, contents: Any) -> None:
    Path("run").mkdir()
    for n, step in enumerate(STEPS):
        save(step, contents(n))


CASES = [
    pytest.param(layout, save, id=f"{name}-{save.__name__}")
    for name, layout, formats in (
        *((name, layout, FORMATS) for name, layout in FLAT.items()),
        *((name, layout, OF_ANY_LAYOUT) for name, layout in NESTED.items()),
    )
    for save in formats
]


@pytest.mark.parametrize(("layout", "save"), CASES)
def test_every_format_decides_the_same(layout: Layout, save: Any) -> None:
    saved_as(save, layout.saved)
    found = outcome(layout.options)
    if isinstance(layout.expected, str):
        assert isinstance(found, str)
        assert layout.expected in found
        assert not Path("out.safetensors").exists()
        return
    Path("run").rename("given")
    saved_as(as_safetensors, layout.expected)
    assert found == outcome({})
