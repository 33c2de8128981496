"""The training step of a checkpoint: from its own record, else from its name."""

from __future__ import annotations

import re

from belay_cli.checkpoints.json_file import read_json
from belay_cli.checkpoints.storage import AnyPath
from belay_cli.checkpoints.weights import Weights
from belay_cli.errors import SeriesError

TRAINER_STATE = "trainer_state.json"

# Names in which a number is a training step. accelerate's checkpoint_3 counts saves, so `_` does not do for
# a bare `checkpoint`; epochs are no steps either.
_STEP_NAMES = (
    re.compile(r"(?:^|[^a-z])(?:global[_-]?)?steps?[=_-]?(\d+)", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z])iter(?:ation)?s?[=_-]?(\d+)", re.IGNORECASE),
    re.compile(r"^(?:checkpoint|ckpt|model|weights|pytorch_model|adapter_model)-(\d+)$", re.IGNORECASE),
)
_MOST_DIGITS = 18  # fits a signed 64-bit integer

# Names of checkpoints inside a run directory, whether their number is a step or a counter.
_CHECKPOINT_NAME = re.compile(r"^(?:checkpoint|ckpt|epoch|save)s?[-_=]?\d+$", re.IGNORECASE)


def step_in_name(name: str) -> int | None:
    """The step that a file's stem or a directory's name states, or None."""
    for pattern in _STEP_NAMES:
        found = [number for number in pattern.findall(name) if len(number) <= _MOST_DIGITS]
        if found:
            return int(found[-1])
    return None


def last_integer(name: str) -> int | None:
    """The last integer in a name, by which files without a step are ordered, or None."""
    found = [number for number in re.findall(r"\d+", name) if len(number) <= _MOST_DIGITS]
    return int(found[-1]) if found else None


def names_a_checkpoint(name: str) -> bool:
    """Whether a directory of this name inside a run is one of its checkpoints."""
    return step_in_name(name) is not None or _CHECKPOINT_NAME.match(name) is not None


def recorded_step(weights: Weights, directory: AnyPath | None) -> int | None:
    """The step that a checkpoint records: in the weights, as safetensors metadata, or in trainer_state.json."""
    if weights.step is not None:
        return weights.step
    metadata = weights.files[0].metadata
    if re.fullmatch(rf"\d{{1,{_MOST_DIGITS}}}", metadata.get("step", "")):
        return int(metadata["step"])
    state = directory / TRAINER_STATE if directory else None
    return _trainer_step(state) if state is not None and state.is_file() else None


def _trainer_step(path: AnyPath) -> int | None:
    state = read_json(path, hint="the checkpoint's step is read from it; save it again, or remove it")
    step = state.get("global_step") if isinstance(state, dict) else None
    return step if type(step) is int and 0 <= step < 10**_MOST_DIGITS else None


def agreed_step(recorded: int | None, named: int | None, path: AnyPath, needed: bool) -> int | None:
    """The one step of a checkpoint. If its record contradicts its name, SeriesError, or None if no step is needed."""
    if recorded is not None and named is not None and recorded != named:
        if not needed:
            return None
        raise SeriesError(
            f"records step {recorded}, but its name says {named}",
            file=path,
            hint="rename it, or give the checkpoints in order with --order given",
        )
    return named if recorded is None else recorded
