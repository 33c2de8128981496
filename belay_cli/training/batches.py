"""Parameters as lists of blocks, small enough that what one operation wrote the next one finds in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import nn

from belay_cli.training.parameters import local

# Elements of one batch. A pull and an average of a batch read the same two tensors: on a CPU 1 MiB of float32 stays in
# the second-level cache between them. A GPU wants few launches; there this bounds what is converted at a time.
_ELEMENTS = {"cpu": 2**18}
_ELEMENTS_ELSEWHERE = 2**26


@dataclass(eq=False)
class Averaged:
    """One parameter and its state, each a tensor of the parameter's shape (DTensor where the parameter is one).

    `average` and `velocity` are float32 or wider; `carry`, float32, is what a narrower parameter cannot show of its
    weight; `since`: the update of the optimizer before its first.
    """

    name: str
    group: int
    parameter: nn.Parameter
    average: torch.Tensor
    velocity: torch.Tensor | None
    carry: torch.Tensor | None
    since: int = 0


@dataclass(eq=False)
class Batch:
    """Blocks of one device, dtype, group and beginning: lists of equal length, of tensors of equal shapes.

    `frozen`: they are averaged and not pulled. `owners` has, for each block, its parameter and which elements of it,
    flat, the block is; None: all of them.
    """

    group: int
    since: int
    frozen: bool = False
    x: list[torch.Tensor] = field(default_factory=list)
    e: list[torch.Tensor] = field(default_factory=list)
    velocity: list[torch.Tensor] = field(default_factory=list)
    carry: list[torch.Tensor] = field(default_factory=list)
    owners: list[tuple[Averaged, slice | None]] = field(default_factory=list)

    def block_of(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        """Of a tensor of the parameter's shape, the elements of block i."""
        part, elements = local(tensor), self.owners[i][1]
        return part if elements is None else part.reshape(-1)[elements]


def addresses(averaged: Iterable[Averaged]) -> list[int]:
    """Where the parameters lie; other ones after `model.to(…)` or an assignment to `.data`."""
    return [local(one.parameter).data_ptr() for one in averaged]


def make_batches(averaged: Iterable[Averaged]) -> list[Batch]:
    """All blocks of all parameters, in order within a batch."""
    batches = []

    def key(one: Averaged) -> tuple[str, str, int, int, bool]:
        p = one.parameter
        return str(p.device), str(p.dtype), one.group, one.since, not p.requires_grad

    for (device, _, group, since, frozen), ones in groupby(sorted(averaged, key=key), key):
        most = _ELEMENTS.get(device.partition(":")[0], _ELEMENTS_ELSEWHERE)
        batch, left = None, 0
        for one in ones:
            for elements, tensors in _blocks(one, most):
                size = sum(t.numel() for t in tensors[:1] if t is not None)
                if batch is None or size > left:
                    batch, left = Batch(group, since, frozen), most
                    batches.append(batch)
                left -= size
                batch.owners.append((one, elements))
                for to, tensor in zip((batch.x, batch.e, batch.velocity, batch.carry), tensors, strict=True):
                    if tensor is not None:
                        to.append(tensor)
    return batches


def _blocks(one: Averaged, most: int) -> Iterator[tuple[slice | None, list[torch.Tensor | None]]]:
    tensors = [local(one.parameter), local(one.average)]
    optional = [None if t is None else local(t) for t in (one.velocity, one.carry)]
    present = [*tensors, *(t for t in optional if t is not None)]
    if not tensors[0].numel():
        return
    if tensors[0].numel() <= most or not all(t.is_contiguous() for t in present):
        yield None, [*tensors, *optional]
        return
    for start in range(0, tensors[0].numel(), most):
        elements = slice(start, start + most)
        yield elements, [None if t is None else t.view(-1)[elements] for t in (*tensors, *optional)]
