"""The training step that a checkpoint records in what was saved, beside the weights."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_LARGEST = 10**18  # below it, as in a name; fits a signed 64-bit integer


class RecordedStep(NamedTuple):
    """A step, and where it is recorded, in words. `loosely`: some count it before, and some after they increment it."""

    step: int
    where: str
    loosely: bool = False
    by_name: bool = False


class Recorder(NamedTuple):
    """A key that marks what a trainer saves, and the key of its step."""

    mark: str
    step: str


_RECORDERS = (
    # Lightning: lightning/pytorch/trainer/connectors/checkpoint_connector.py, dump_checkpoint.
    Recorder("pytorch-lightning_version", "global_step"),
    # DeepSpeed: deepspeed/runtime/engine.py, _save_checkpoint.
    Recorder("ds_version", "global_steps"),
)

# Keys at the top by which others record it: k-diffusion, Hugging Face scripts, nanoGPT, Megatron-LM, LitGPT.
_KEYS = ("step", "global_step", "iter_num", "iteration", "steps")


def recorded_in_root(root: Any) -> RecordedStep | None:
    """The step at the top of what was saved, as a plain integer; None if there is none, or several disagree."""
    if not isinstance(root, dict):
        return None
    for recorder in _RECORDERS:
        if recorder.mark in root:
            step = _step(root.get(recorder.step))
            return None if step is None else RecordedStep(step, f"recorded as {recorder.step}")
    found = {key: step for key in _KEYS if (step := _step(root.get(key))) is not None}
    if len(set(found.values())) != 1:
        return None
    return RecordedStep(next(iter(found.values())), f"recorded as {' and '.join(found)}", loosely=True)


def _step(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None


def names_one_low(root: Any) -> bool:
    """Whether what was saved is of a Lightning that put the step before the recorded one into names: before 1.6.

    Since then names count steps from 1 as the record does (Lightning's release notes for 1.6, global_step).
    """
    version = root.get("pytorch-lightning_version") if isinstance(root, dict) else None
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) < (1, 6)
