"""The training step of a checkpoint: what it records, which its name must not contradict."""

from __future__ import annotations

import re
from typing import Any

from belay_cli.checkpoints.learning_rate import LearningRate, in_trainer_state
from belay_cli.checkpoints.meaning.recorded import RecordedStep
from belay_cli.checkpoints.order.pieces import MOST_DIGITS
from belay_cli.checkpoints.weights import Weights
from belay_cli.errors import SeriesError
from belay_cli.storage.files import AnyPath
from belay_cli.storage.json_file import read_json

TRAINER_STATE = "trainer_state.json"


def recorded_step(weights: Weights, directory: AnyPath | None) -> tuple[RecordedStep | None, LearningRate | None]:
    """The step that a checkpoint records: in the weights, as safetensors metadata, or in trainer_state.json.

    With it the learning rate of the same record; trainer_state.json is read for the step, or not at all.
    """
    if weights.step is not None:
        return weights.step, weights.learning_rate
    metadata = weights.metadata
    if re.fullmatch(rf"\d{{1,{MOST_DIGITS}}}", metadata.get("step", "")):
        return RecordedStep(int(metadata["step"]), "recorded in its metadata"), weights.learning_rate
    path = directory / TRAINER_STATE if directory else None
    if path is None or not path.is_file():
        return None, weights.learning_rate
    state = read_json(path, hint="the checkpoint's step is read from it; save it again, or remove it")
    return _trainer_step(state), in_trainer_state(state) or weights.learning_rate


def _trainer_step(state: Any) -> RecordedStep | None:
    step = state.get("global_step") if isinstance(state, dict) else None
    if type(step) is not int or not 0 <= step < 10**MOST_DIGITS:
        return None
    return RecordedStep(step, f"recorded in {TRAINER_STATE}")


def agreed_step(
    recorded: RecordedStep | None, named: int | None, path: AnyPath, needed: bool, *, named_low: bool = False
) -> RecordedStep | None:
    """The one step of a checkpoint. If its record contradicts its name, SeriesError, or None if no step is needed.

    named_low: whether its writer is known to put the step before the recorded one into the name.
    """
    if named is None or recorded is None:
        return recorded if named is None else RecordedStep(named, "by its name", by_name=True)
    if recorded.step == named or (named_low and recorded.step == named + 1):
        return recorded
    if recorded.loosely and abs(recorded.step - named) == 1:
        return RecordedStep(named, f"by its name, one off what is {recorded.where}")
    if not needed:
        return None
    raise SeriesError(
        f"records step {recorded.step}, but its name says {named}",
        file=path,
        hint="rename it, or give the checkpoints in order with --order given",
    )
