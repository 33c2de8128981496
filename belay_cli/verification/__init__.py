"""Verify an output: its structure, its bytes, its coefficients, and its values by the recursion.

Three things are independent of what wrote it: the digests are taken again over every byte of every file; the
coefficients are derived again from the rule; and the values are made again from the checkpoints by the recursion, in
float64, never by the coefficients.

checks   what is asked, and how far the asking has come
alone    what can be asked without the checkpoints
headers  whether the headers are those that were written
beside   whether the files beside the weights are those that were written
same     the same of an output in the files of its last checkpoint
inputs   whether the checkpoints are those recorded
values   the values again
"""

from __future__ import annotations

from pathlib import Path

from belay_cli.checkpoints import Series
from belay_cli.errors import BelayError
from belay_cli.verification.alone import check_alone, check_unread, recorded, whole_record
from belay_cli.verification.beside import missing
from belay_cli.verification.checks import FAILED, HELD, NOT_CHECKED, Check, Counter, Progress
from belay_cli.verification.inputs import recorded_inputs
from belay_cli.verification.same import paths_of
from belay_cli.verification.values import check_values

__all__ = [
    "FAILED",
    "HELD",
    "NOT_CHECKED",
    "Check",
    "check_alone",
    "check_output",
    "check_unread",
    "missing",
    "paths_of",
    "recorded",
    "whole_record",
]


def check_output(
    output: Path, series: Series | str, share: float, threads: int, progress: Progress = lambda done: None
) -> list[Check]:
    """Every check of an output, in order; `share` of each tensor's values is sampled, 1 for all of them.

    Without the series, in place of which there is the reason, only the output itself is checked. Raises
    CheckpointError if the output cannot be read at all, or has no record.
    """
    of_values = 0.0 if isinstance(series, str) else _share_of_values(len(series.checkpoints), share)
    average, records, checks = check_alone(output, threads, lambda done: progress(done * (1 - of_values)))
    record = records[0]
    if isinstance(series, str):
        without = "without the checkpoints they cannot be"
        return [*checks, Check("inputs", NOT_CHECKED, series), Check("values", NOT_CHECKED, without)]
    try:
        inputs = recorded_inputs(record, series)
    except BelayError as error:
        return [*checks, Check("inputs", FAILED, str(error)), Check("values", NOT_CHECKED, "the inputs are others")]
    checks.append(Check("inputs", HELD, f"the {len(inputs)} checkpoints are those recorded"))
    so_far = Counter(average, lambda done: progress(1 - of_values + done * of_values))
    return [*checks, check_values(average, record, inputs, share, threads, so_far)]


def _share_of_values(checkpoints: int, share: float) -> float:
    """How much of the reading the values take: so much of each checkpoint, against the output once."""
    return share * checkpoints / (1 + share * checkpoints)
