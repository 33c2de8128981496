"""Belay: the average of a model that trains, and the spring between the two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from belay_cli._version import __version__
from belay_cli.errors import UsageError
from belay_cli.training import save, swap, tick
from belay_cli.training.batches import Averaged, Batch
from belay_cli.training.parameters import (
    innermost_model,
    innermost_optimizer,
    is_distributed,
    plain_name,
)
from belay_cli.training.schedule import Schedule
from belay_cli.training.spring import LARGEST_SHARE, Spring, second_moment
from belay_cli.training.state import State

DEFAULT_WARMUP = 0.1  # the average lags by a tenth of the steps so far, until its half-life is reached


@dataclass(frozen=True)
class _Options:
    """What the caller said, for the record."""

    half_life: float | None
    decay: float | None
    feedback: float | None
    stiffness: float | None
    metric: str | None
    implicit: bool
    inertia: float
    warmup: float | None
    start_step: int
    update_every: int


class Belay:
    """Follows an optimizer: after each of its steps, the average e moves towards the model x, and x towards e.

    With x̂ the weights after the optimizer's step, one update is

        x' = x̂ + s (e − x')             the pull on the model: see `belay_cli.training.spring`
        v' = μ v + (1 − μ) a (x' − e)   the pull on the average, with inertia μ
        e' = e + v'

    (this project's discretization of arXiv 2310.13854). Without `feedback` and `stiffness` nothing pulls on the model,
    and e is its EMA. The state is e, v with inertia, and, where a spring pulls on a parameter narrower than float32,
    what that cannot show; each float32 at least, and a DTensor where the parameter is one.

    Args:
        optimizer: any torch optimizer, or accelerate's or Lightning's wrapper of one. Its parameters that require a
            gradient are averaged, also those that it gets later.
        model: what the parameters belong to: it gives them names and buffers. `save`, `averaged_state_dict` and
            FSDP2 need it. A DistributedDataParallel or compiled model will do.
        half_life: steps after which the average has forgotten half.
        decay: per step, instead of half_life. With neither, the average lags by `warmup` of the steps so far.
        feedback: the spring's strength is feedback · (1 − decay).
        stiffness: instead of feedback: it is the group's rate times the stiffness, a force.
        metric: "optimizer": that force in the metric of Adam, by the second moments that the optimizer keeps.
        implicit: whether the spring pulls at the point to which the step leads. False: at the point it comes from,
            which is done before the step, so that weight decay acts on the pulled weights and closures are refused.
        inertia: μ a step, as in the replay.
        warmup: the share of the steps so far, above 0 and at most 0.5, by which the average lags until it has reached
            the lag of its half-life. None: it begins with the weights that the training begins with.
        start_step: steps without average or spring.
        update_every: steps in one update. The half-life stays in steps.

    Raises:
        UsageError: for options that cannot be right together.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        model: nn.Module | None = None,
        half_life: float | None = None,
        decay: float | None = None,
        feedback: float | None = None,
        stiffness: float | None = None,
        metric: str | None = None,
        implicit: bool = True,
        inertia: float = 0.0,
        warmup: float | None = DEFAULT_WARMUP,
        start_step: int = 0,
        update_every: int = 1,
    ) -> None:
        if not (isinstance(update_every, int) and isinstance(start_step, int) and update_every > 0 <= start_step):
            raise UsageError("update_every is a whole number of 1 or more, and start_step one of 0 or more")
        self._options = _Options(
            half_life, decay, feedback, stiffness, metric, implicit, inertia, warmup, start_step, update_every
        )
        self._schedule = Schedule.of(half_life, decay, inertia, warmup, update_every)
        self._spring = Spring.of(feedback, stiffness, metric, a=self._schedule.a, implicit=implicit)
        self._optimizer = innermost_optimizer(optimizer)
        self._model = None if model is None else innermost_model(model)
        self.steps = 0
        """Steps of the optimizer that counted."""
        self.updates = 0
        """Updates of the average."""
        self.released = False
        """Whether the spring has let go of the model."""
        self._state = State(
            self._optimizer, self._model, inertia=bool(self._schedule.inertia), spring=self._spring is not None
        )
        self._swapped = False
        self._aside: dict[str, torch.Tensor] = {}
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._state.adopt(self.updates)
        # A compiled step calls the hooks as they are: traced, they would be compiled anew for other rates and counts.
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        self._hooks: list[Any] = [
            self._optimizer.register_step_pre_hook(before),
            self._optimizer.register_step_post_hook(after),
        ]
        if self._model is not None:
            guard = swap.Guard(self._before_state_dict)
            self._hooks.append(self._model.register_state_dict_pre_hook(guard))  # type: ignore[no-untyped-call]
            guard = swap.Guard(self._before_load_state_dict)
            self._hooks.append(self._model.register_load_state_dict_pre_hook(guard))  # type: ignore[no-untyped-call]

    # ---- the steps

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._swapped:
            raise UsageError(
                "the optimizer steps while the average is in the model's place",
                hint="leave averaged(), or call train(), before training goes on",
            )
        self._state.adopt(self.updates)
        if self.steps == self._options.start_step and not self.updates:
            self._state.begin()
        if self._spring is None or self._spring.implicit or not self._is_update(self.steps + 1):
            return
        if any(one is not None for one in (*args[1:], kwargs.get("closure"))):  # args[0] is the optimizer
            raise UsageError(
                "an explicit spring pulls before the step, and a closure would take the gradient after that",
                hint="take the implicit spring, or compute the gradient before step()",
            )
        if not (self._was_skipped() or self._moves_nothing()):
            for batch in self._state.batches():
                self._pull(batch)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._was_skipped() or self._moves_nothing():
            return
        self.steps += 1
        if not self._is_update(self.steps):
            return
        self.updates += 1
        implicit = self._spring is not None and self._spring.implicit
        with torch.no_grad():
            for batch in self._state.batches():
                if implicit:
                    self._pull(batch)
                self._average(batch)

    def _is_update(self, step: int) -> bool:
        """Whether the average is updated after this step, counted from 1."""
        since = step - self._options.start_step
        return since > 0 and since % self._options.update_every == 0

    def _was_skipped(self) -> bool:
        """Whether a GradScaler told a fused optimizer that the gradients are not finite, so that it moves nothing.

        Other optimizers are not called then at all.
        """
        found_inf = getattr(self._optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def _moves_nothing(self) -> bool:
        """Whether this is the step of torch.distributed.checkpoint, at rate 0 and by gradients of 0.

        It is how the state of an optimizer is made to exist when that is read or loaded.
        """
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        for rate in rates:  # one on a GPU is not waited for: that step has its rate on the CPU
            if rate is None or (isinstance(rate, torch.Tensor) and rate.device.type != "cpu") or float(rate):
                return False
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        # One by one, because some may be DTensors, of several meshes; and all, so that no process waits for another.
        # Sums of magnitudes, because squares may round to 0.
        norms = [float(save.whole(torch.linalg.vector_norm(gradient, 1))) for gradient in dense]
        return not any(norms)

    def _pull(self, batch: Batch) -> None:
        spring, options = self._spring, self._options
        if spring is None or self.released or batch.frozen:
            return
        group = self._optimizer.param_groups[batch.group]
        strength = spring.strength(group, options.update_every)
        if not spring.in_metric:
            with torch.no_grad():
                tick.pull(batch.x, batch.e, batch.carry, spring.share(strength))
            return
        state = self._optimizer.state
        moved = [i for i, (one, _) in enumerate(batch.owners) if state.get(one.parameter)]
        if not moved and any(state.values()):  # these have had no gradient yet
            return
        if not moved and not self.steps:
            return  # an explicit pull before the first step
        if not moved:
            second_moment({}, group, batch.owners[0][0].name)  # raises: this optimizer keeps nothing
        owners = [batch.owners[i][0] for i in moved]
        found = [second_moment(state[one.parameter], group, one.name) for one in owners]
        with torch.no_grad():
            tick.pull_in_metric(
                [batch.x[i] for i in moved],
                [batch.e[i] for i in moved],
                [batch.carry[i] for i in moved] if batch.carry else [],
                [batch.block_of(i, v) for i, (v, _) in zip(moved, found, strict=True)],
                [factor for _, factor in found],
                float(group["eps"]),
                strength,
                None if spring.implicit else LARGEST_SHARE,
            )

    def _average(self, batch: Batch) -> None:
        n = self.updates - batch.since
        a = self._schedule.share(n)
        # The first average of a warm-up is the weights, at any inertia.
        inertia = 0.0 if n == 1 and self._schedule.warmup is not None else self._schedule.inertia
        velocity = batch.velocity if inertia else []
        tick.average(batch.x, batch.e, velocity, batch.carry, a, inertia)

    # ---- evaluation

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average is in the model's place within, and the weights are back after, whatever happens.

        Before the first update the average is the weights, and nothing is done. Running statistics (BatchNorm) stay
        those of the weights; `torch.optim.swa_utils.update_bn` within re-estimates them, for within.
        """
        if self._swapped:
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def eval(self) -> None:
        """Put the average into the model's place, until `train()`. Twice is once."""
        if self._swapped or not self.updates:
            return
        if self._model is None and any(is_distributed(one.parameter) for one in self._state):
            raise UsageError(
                "FSDP keeps what it has gathered of a model, which has to be dropped when the average takes its place",
                hint="give the model: Belay(optimizer, model=model, …)",
            )
        if self._model is not None:
            swap.gather_again(self._model)
            self._statistics = swap.running_statistics(self._model)
        aside = swap.set_aside(self._state)
        swap.exchange(self._state.batches())
        swap.round_into_place(self._state, aside)
        self._aside, self._swapped = aside, True

    def train(self) -> None:
        """Put the weights back into the model. Twice is once."""
        if not self._swapped:
            return
        if self._model is not None:
            swap.gather_again(self._model)
        swap.put_back(self._state, self._aside)
        swap.exchange(self._state.batches())
        with torch.no_grad():
            for buffer, kept in self._statistics:
                buffer.copy_(kept)
        self._aside, self._statistics, self._swapped = {}, [], False

    def release(self) -> None:
        """Let go of the model: from now on the spring pulls on the average alone, which becomes an EMA of x."""
        self.released = True

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to go on bit for bit, by parameter name; also while swapped.

        The tensors are the state's own, as with an optimizer's. `torch.distributed.checkpoint` takes it as it is.
        """
        counts = {"steps": self.steps, "updates": self.updates, "released": self.released}
        return counts | self._state.tensors(self._average_of)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises UsageError if it is not of the same parameters."""
        if self._swapped:
            raise UsageError("a state is loaded while the average is in the model's place", hint="call train() before")
        missing = {"steps", "updates", "released", "since", "average"} - set(state)
        if missing:
            raise UsageError(f"this is no state of Belay: it has no {min(missing)!r}")
        self._state.adopt(self.updates)
        self._state.load(state)
        self.steps, self.updates, self.released = int(state["steps"]), int(state["updates"]), bool(state["released"])

    def _average_of(self, one: Averaged) -> torch.Tensor:
        """The average of a parameter, wherever it is just now."""
        exchanged = self._swapped and one.name not in self._aside
        return one.parameter.detach().clone() if exchanged else one.average

    def _before_state_dict(self) -> None:
        if self._swapped:
            raise UsageError(
                "the model's state dict is asked for while the average is in its place: training would go on from that",
                hint="leave averaged() before; for the average itself: averaged_state_dict(), or save()",
            )

    def _before_load_state_dict(self) -> None:
        if self._swapped:
            raise UsageError(
                "weights are loaded into the model while the average is in its place: they would be lost",
                hint="leave averaged(), or call train(), before",
            )

    def remove(self) -> None:
        """Stop following the optimizer. The average stays as it is."""
        self.train()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # ---- the result

    def averaged_state_dict(self, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The model's state dict with the average in it, for `load_state_dict` of such a model.

        Buffers, and parameters that were never trained, are the model's. Averages have the dtype of their parameters,
        or `dtype`, rounded once. Parts that other processes hold are gathered: each process has to call it.

        Raises UsageError without a model or before the first update, and for a parameter that is trained elsewhere.
        """
        return self._result(dtype, lambda tensor: tensor)

    def _result(
        self, dtype: torch.dtype | None, keep: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See above. `keep` gets each tensor, whole and a copy, before the next one is gathered."""
        model = self._required_model()
        if not self.updates:
            raise UsageError("no step was averaged yet", hint="save the model itself")
        by_parameter = {one.parameter: one for one in self._state}
        tensors: dict[str, torch.Tensor] = {}
        gathered: dict[str, torch.Tensor] = {}
        for name, value in self._state_of(model).items():
            one = by_parameter.get(value) if isinstance(value, nn.Parameter) else None
            if one is not None:
                if one.name not in gathered:
                    average = save.whole(self._average_of(one)).to(dtype or one.parameter.dtype, copy=True)
                    gathered[one.name] = keep(average)
                tensors[plain_name(name)] = gathered[one.name]
            elif isinstance(value, nn.Parameter) and value.requires_grad:
                raise UsageError(
                    "is trained, but not by this optimizer, so that there is no average of it", tensor=plain_name(name)
                )
            elif isinstance(value, torch.Tensor):
                tensors[plain_name(name)] = keep(save.whole(value).clone())
        if missing := self._state.by_name.keys() - gathered.keys():
            raise UsageError("is averaged, and not a parameter in the model's state dict", tensor=min(missing))
        return tensors

    def save(self, path: str | os.PathLike[str], *, step: int | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the average as one safetensors file, with its step and what made it in the metadata.

        `belay average` reads such files with --allow-averages. Of several processes the first writes, and each has to
        call it. step: the steps counted here, unless given. Raises what `averaged_state_dict` does, and OutputError.
        """
        first = not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
            torch.distributed.get_rank() == 0
        )
        # One at a time: no device holds the whole model, and only the first process does.
        tensors = self._result(dtype, lambda tensor: tensor.to("cpu") if first else torch.empty(0))
        if not first:
            return
        record = {"version": __version__, **asdict(self._options), "steps": self.steps, "updates": self.updates}
        save.write(path, tensors, record, self.steps if step is None else step)

    def _required_model(self) -> nn.Module:
        if self._model is None:
            raise UsageError("the model is not known", hint="Belay(optimizer, model=model, …)")
        return self._model

    def _state_of(self, model: nn.Module) -> dict[str, Any]:
        swapped, self._swapped = self._swapped, False
        try:
            return model.state_dict(keep_vars=True)
        finally:
            self._swapped = swapped
