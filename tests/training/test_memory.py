"""What Belay holds is one average a weight, and a step takes a few batches beside it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from belay_cli.training import Belay
from belay_cli.training.batches import _ELEMENTS

BATCH = 4 * _ELEMENTS["cpu"]


class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations made and that are still there, and the most that were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **kwargs)
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in before | self.known:
                self._count(t.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone() -> None:
            self.known.discard(key)
            self.now -= size

        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, gone)


def begin(dtype: torch.dtype, **options: Any) -> tuple[list[nn.Parameter], SGD, Belay]:
    g = torch.Generator().manual_seed(0)
    sizes = [(1000, 1000), (3000, 500), (777,), (500, 1024)]
    parameters = [nn.Parameter(torch.randn(size, generator=g).to(dtype)) for size in sizes]
    optimizer = SGD(parameters, lr=0.01, foreach=False)
    belay = Belay(optimizer, half_life=5, **options)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=g).to(dtype)
    return parameters, optimizer, belay


def bytes_of(state: dict[str, Any]) -> int:
    return sum(t.nbytes for part in ("average", "velocity", "carry") for t in state[part].values())


@pytest.mark.parametrize(
    ("dtype", "options", "times"),
    [
        (torch.float32, {}, 1),
        (torch.float32, {"stiffness": 1.0}, 1),
        (torch.float32, {"stiffness": 1.0, "inertia": 0.5}, 2),
        (torch.float64, {"stiffness": 1.0}, 1),
        (torch.bfloat16, {}, 2),  # float32 for two bytes
        (torch.bfloat16, {"stiffness": 1.0}, 4),
        (torch.bfloat16, {"stiffness": 1.0, "inertia": 0.5}, 6),
    ],
)
def test_the_state_is_what_it_is_said_to_be(dtype: torch.dtype, options: dict[str, Any], times: int) -> None:
    parameters, optimizer, belay = begin(dtype, **options)
    optimizer.step()
    assert bytes_of(belay.state_dict()) == times * sum(p.nbytes for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"stiffness": 1.0}, {"stiffness": 1.0, "inertia": 0.5}], ids=str)
def test_a_step_takes_less_than_four_batches_beside_the_state(dtype: torch.dtype, options: dict[str, Any]) -> None:
    _, optimizer, belay = begin(dtype, **options)
    optimizer.step()
    with Watched() as watched:
        belay._after_step(optimizer, (optimizer,), {})
    assert belay.steps == 2
    assert watched.most < 4 * BATCH
    assert watched.now < 1000


def test_wide_weights_are_averaged_and_pulled_in_place() -> None:
    """Nothing is made at all but the list that a foreach operation works through."""
    _, optimizer, belay = begin(torch.float32, stiffness=1.0, inertia=0.5)
    optimizer.step()
    with Watched() as watched:
        belay._after_step(optimizer, (optimizer,), {})
    assert watched.most < 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_wide_weights_takes_a_block_and_narrow_ones_a_copy(dtype: torch.dtype) -> None:
    parameters, optimizer, belay = begin(dtype)
    optimizer.step()
    with Watched() as watched:
        belay.eval()
        belay.train()
    copies = sum(p.nbytes for p in parameters) if dtype == torch.bfloat16 else 0
    assert copies <= watched.most < copies + BATCH + 1000
