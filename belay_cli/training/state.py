"""What Belay keeps: the average of each parameter, by name, and what of it a resumed training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from belay_cli.errors import UsageError
from belay_cli.training import swap
from belay_cli.training.batches import Averaged, Batch, addresses, make_batches
from belay_cli.training.parameters import local, state_dtype, trained


class State:
    """Every parameter that an optimizer trains, with its average; `inertia` and `spring`: whether there is one."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None, *, inertia: bool, spring: bool) -> None:
        self._optimizer = optimizer
        self._model = model
        self._inertia = inertia
        self._spring = spring
        self.by_name: dict[str, Averaged] = {}
        self._batches: list[Batch] = []
        self._addresses: list[int] = []
        self._trained: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Averaged]:
        return iter(self.by_name.values())

    def adopt(self, updates: int) -> None:
        """Take up parameters that the optimizer got, or that were unfrozen, since the last look."""
        groups = self._optimizer.param_groups
        now = tuple(id(p) for group in groups for p in group["params"] if p.requires_grad)
        if now == self._trained:
            return
        if self._model is not None:
            swap.gather_again(self._model)  # what FSDP2 has gathered is not what the optimizer has
        for name, group, parameter in trained(self._optimizer, self._model):
            if name not in self.by_name:
                self.by_name[name] = self._begun(name, group, parameter, updates)
            elif self.by_name[name].parameter is not parameter:
                raise UsageError(
                    "is the name of two parameters of the optimizer",
                    tensor=name,
                    hint="give the model, and make Belay when nothing replaces its parameters any more",
                )
        self._trained, self._addresses = now, []

    def _begun(self, name: str, group: int, parameter: nn.Parameter, updates: int) -> Averaged:
        if parameter.is_meta:
            raise UsageError("has no weights yet (it is on the meta device)", tensor=name, hint="load the model first")
        wide = state_dtype(parameter.dtype)
        with torch.no_grad():
            average = torch.empty_like(parameter, dtype=wide, requires_grad=False)
            local(average).copy_(local(parameter))
            velocity = torch.zeros_like(average) if self._inertia else None
            carry = torch.zeros_like(average) if self._spring and parameter.dtype != wide else None
        return Averaged(name, group, parameter, average, velocity, carry, updates)

    def begin(self) -> None:
        """The average begins with the weights as they are now."""
        with torch.no_grad():
            for batch in self.batches():
                torch._foreach_copy_(batch.e, batch.x)

    def batches(self) -> list[Batch]:
        """All blocks of all parameters, made anew when parameters came or moved."""
        now = addresses(self)
        if now != self._addresses:
            for one in self:
                for name in ("average", "velocity", "carry"):
                    held = getattr(one, name)
                    if held is not None and held.device != one.parameter.device:
                        setattr(one, name, held.to(one.parameter.device))
                if self._spring and one.carry is None and one.parameter.dtype != one.average.dtype:
                    one.carry = torch.zeros_like(one.average)  # narrower than it was: `model.to(torch.bfloat16)`
            self._batches, self._addresses = make_batches(self), now
        return self._batches

    def tensors(self, average_of: Callable[[Averaged], torch.Tensor]) -> dict[str, dict[str, Any]]:
        """Averages, velocities and carries by name, and the updates before the first of each parameter."""
        held: dict[str, dict[str, Any]] = {"since": {}, "average": {}, "velocity": {}, "carry": {}}
        for one in self:
            held["since"][one.name] = one.since
            held["average"][one.name] = average_of(one)
            for name in ("velocity", "carry"):
                if (tensor := getattr(one, name)) is not None:
                    held[name][one.name] = tensor
        return held

    def load(self, loaded: Mapping[str, Any]) -> None:
        """Copy what `tensors` gave. Raises UsageError if it is not of the same parameters."""
        self._check(loaded)
        with torch.no_grad():
            for one in self:
                one.average.copy_(loaded["average"][one.name])
                one.since = int(loaded["since"][one.name])
                for name in ("velocity", "carry"):
                    held, saved = getattr(one, name), loaded.get(name, {}).get(one.name)
                    if held is not None and saved is None:
                        held.zero_()
                    elif held is not None:
                        held.copy_(saved)
        self._addresses = []

    def _check(self, loaded: Mapping[str, Any]) -> None:
        ours, theirs = set(self.by_name), set(loaded["average"])
        if ours != theirs:
            name = min(ours ^ theirs)
            where = "the optimizer and not in the state" if name in ours else "the state and not in the optimizer"
            raise UsageError(f"is in {where}", tensor=name, hint="load it when the optimizer has its groups")
        for one in self:
            if (shape := tuple(loaded["average"][one.name].shape)) != tuple(one.average.shape):
                raise UsageError(
                    f"is {shape} in the state and {tuple(one.average.shape)} in the optimizer", tensor=one.name
                )
