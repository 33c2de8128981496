"""Metrics that a run recorded at its checkpoints: by Hugging Face's Trainer, and by Lightning's ModelCheckpoint."""

from __future__ import annotations

import math
import re
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.order.steps import TRAINER_STATE
from belay_cli.errors import BelayError
from belay_cli.formats import file_format
from belay_cli.formats.contents import Contents, Layout
from belay_cli.formats.floats import as_float64
from belay_cli.storage.files import OpenFiles
from belay_cli.storage.json_file import read_json

_LARGEST = 64  # bytes of a number


class Recorded(NamedTuple):
    """A metric's value, and the end of it that the run says is good: `min`, `max` or, where it does not, None."""

    value: float
    mode: str | None


def recorded_metric(checkpoint: Checkpoint, metric: str) -> Recorded | None:
    """The metric at this checkpoint, None if it records none. Raises CheckpointError for a record that is damaged.

    Of trainer_state.json, the entry of the checkpoint's own step; `loss` is `eval_loss` where the run has one, as it is
    there. Of a Lightning checkpoint, what the ModelCheckpoint that monitors the metric saved this very file for.
    """
    for directory in dict.fromkeys([checkpoint.directory, checkpoint.path]):
        path = directory / TRAINER_STATE if directory is not None else None
        if path is not None and path.is_file():
            return _of_trainer(read_json(path), checkpoint.step, metric)
    return _of_lightning(checkpoint, metric)


def _of_trainer(state: Any, step: int | None, metric: str) -> Recorded | None:
    log = state.get("log_history") if isinstance(state, dict) else None
    entries = [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []
    # One name for the whole log: a training loss at some checkpoints and an evaluation's at others are no scores.
    name = f"eval_{metric}" if any(f"eval_{metric}" in entry for entry in entries) else metric
    for entry in reversed(entries):
        if entry.get("step") == step and _is_number(entry.get(name)):
            return Recorded(_as_float(entry[name]), None)
    return None


def _of_lightning(checkpoint: Checkpoint, metric: str) -> Recorded | None:
    path = checkpoint.path
    found = file_format(path.suffix) if len(checkpoint.files) == 1 else None
    if found is None or path.is_dir():
        return None
    try:
        with found.read([path]) as contents:
            callbacks = contents.root.get("callbacks") if isinstance(contents.root, dict) else None
            for key, state in callbacks.items() if isinstance(callbacks, dict) else ():
                if not isinstance(state, dict) or state.get("monitor") != metric:
                    continue
                # `current_score` would be that of the file that this callback saved last: another one, where two
                # callbacks save, or where `last.ckpt` is none of the best.
                if (value := _number(contents, _score_of(path.name, state.get("best_k_models")))) is not None:
                    mode = re.search(r"'mode': '(min|max)'", str(key))
                    return Recorded(value, mode[1] if mode else None)
    except BelayError:
        return None  # what is wrong with the file was said when it was opened
    return None


def _score_of(name: str, scores: Any) -> Any:
    """What a ModelCheckpoint saved the file of this name for, by its table of paths and scores."""
    found = list(scores.items()) if isinstance(scores, dict) else []
    return next((score for path, score in reversed(found) if PurePath(str(path)).name == name), None)


def _number(contents: Contents, value: Any) -> float | None:
    """A number, or what a tensor of one element holds."""
    if _is_number(value):
        return _as_float(value)
    if not isinstance(value, contents.leaves):
        return None
    found = contents.locate(Layout(score=value))
    tensor = found.tensors.get("score")
    if tensor is None or tensor.elements != 1 or tensor.nbytes > _LARGEST or found.stored is None:
        return None
    data = np.empty(tensor.nbytes, np.uint8)
    with OpenFiles(limit=1) as files:
        found.stored["score"].read_into(files, data.data, 0)
    return float(as_float64(data, tensor.dtype)[0])


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
