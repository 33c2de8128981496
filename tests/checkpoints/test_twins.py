"""Two saves of one checkpoint count once, whatever their files look like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belay_cli.checkpoints import find_series, open_checkpoint
from belay_cli.checkpoints.order.twins import same_content
from belay_cli.errors import SeriesError


def model(value: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"a": torch.full((300, 7), value, dtype=dtype), "n": torch.tensor(3), "e": torch.zeros(0, 2)}


def test_the_same_tensors_in_other_files(tmp_path: Path) -> None:
    torch.save({"model": model(), "step": 10, "more": list(range(99))}, tmp_path / "last.pt")
    torch.save({"step": 10, "model": model()}, tmp_path / "step_10.pt")
    save_file(model(), tmp_path / "step_10.safetensors")
    torch.save({"step": 9, "model": model(2.0)}, tmp_path / "step_9.pt")
    series = find_series([*sorted(tmp_path.glob("*.pt")), tmp_path / "step_10.safetensors"])
    assert [c.step for c in series.checkpoints] == [9, 10]
    assert sum("it counts once" in note for note in series.notes) == 2


@pytest.mark.parametrize(
    "other",
    [
        model(1.5),
        model(dtype=torch.float16),
        {**model(), "a": torch.ones(7, 300)},
        {**model(), "b": torch.ones(1)},
        {name: tensor for name, tensor in model().items() if name != "e"},
        {**model(), "a": torch.cat([torch.ones(299, 7), torch.zeros(1, 7)])},
    ],
)
def test_other_tensors(tmp_path: Path, other: dict[str, torch.Tensor]) -> None:
    save_file(model(), tmp_path / "step_10.safetensors")
    torch.save(other, tmp_path / "step_10.pt")
    one, two = (open_checkpoint(tmp_path / f"step_10{suffix}") for suffix in (".safetensors", ".pt"))
    assert same_content(one, one) and same_content(two, two)
    assert not same_content(one, two)
    with pytest.raises(SeriesError, match="is at step 10, and so is .*, with other weights"):
        find_series([tmp_path / "step_10.pt", tmp_path / "step_10.safetensors"])


def test_a_tensor_whose_bytes_are_stored_in_another_order(tmp_path: Path) -> None:
    tensor = torch.arange(35, dtype=torch.float32).reshape(5, 7)
    save_file({"w": tensor}, tmp_path / "a.safetensors")
    torch.save({"w": tensor.t().contiguous().t()}, tmp_path / "b.pt")
    assert same_content(open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.pt"))
