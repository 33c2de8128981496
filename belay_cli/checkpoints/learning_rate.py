"""The learning rate, where a run records it: what it was, and what it has fallen to.

An average takes away the noise that the steps of a high rate leave in the weights. After a decay to zero there is
hardly any: the last checkpoints are nearly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

NEAR_ZERO = 0.01  # of the largest rate

_LARGEST = 1e9  # that can be a rate
_MOST_GROUPS = 1000  # of parameters, and schedulers, that are looked at
# Keys under which trainers keep the states of schedulers and optimizers: Lightning, and what others write by hand.
_SCHEDULERS = ("lr_schedulers", "lr_scheduler", "scheduler", "lr_scheduler_state_dict", "scheduler_state_dict")
_OPTIMIZERS = ("optimizer_states", "optimizer", "optimizer_state_dict", "optim")


class LearningRate(NamedTuple):
    """The last rate and the largest one that are recorded, and where, in words."""

    last: float
    largest: float
    where: str


def in_trainer_state(state: Any) -> LearningRate | None:
    """From the log of Hugging Face's Trainer: `log_history` of trainer_state.json."""
    log = state.get("log_history") if isinstance(state, dict) else None
    entries = log if isinstance(log, list) else []
    rates = [rate for entry in entries if isinstance(entry, dict) for rate in _rates([entry.get("learning_rate")])]
    return LearningRate(rates[-1], max(rates), "recorded in trainer_state.json") if rates else None


def in_root(root: Any) -> LearningRate | None:
    """From what was saved beside the weights: `_last_lr` of a scheduler, or `lr` of an optimizer's groups.

    The largest is that of the group that is the highest, and the last one too: groups may have rates of their own.
    """
    if not isinstance(root, dict):
        return None
    for keys, read in ((_SCHEDULERS, _of_scheduler), (_OPTIMIZERS, _of_optimizer)):
        for key in keys:
            pairs = [read(state) for state in _states(root.get(key))]
            last = [rate for rates, _ in pairs for rate in rates]
            if last:
                first = [rate for _, rates in pairs for rate in rates]
                return LearningRate(max(last), max(last + first), f"recorded under {key}")
    return None


def of_series(recorded: Iterable[LearningRate | None]) -> LearningRate | None:
    """Of all checkpoints in order: the rate of the last one, which must have one, and the largest of any."""
    rates = list(recorded)
    last = rates[-1] if rates else None
    if last is None:
        return None
    return last._replace(largest=max(rate.largest for rate in rates if rate is not None))


def _states(value: Any) -> Iterator[dict[Any, Any]]:
    """The states under a key: one, or a list of them."""
    for state in value[:_MOST_GROUPS] if isinstance(value, list) else [value]:
        if isinstance(state, dict):
            yield state


def _of_scheduler(state: dict[Any, Any]) -> tuple[list[float], list[float]]:
    return _rates(state.get("_last_lr")), _rates(state.get("base_lrs"))


def _of_optimizer(state: dict[Any, Any]) -> tuple[list[float], list[float]]:
    groups = list(_states(state.get("param_groups")))
    return _rates([g.get("lr") for g in groups]), _rates([g.get("initial_lr") for g in groups])


def _rates(values: Any) -> list[float]:
    """Those of a list that can be rates."""
    values = values[:_MOST_GROUPS] if isinstance(values, list) else []
    return [float(rate) for rate in values if type(rate) in (int, float) and 0 <= rate < _LARGEST]
