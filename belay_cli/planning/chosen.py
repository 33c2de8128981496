"""Whether an output has the files of its last checkpoint, and what does not go with that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from belay_cli.checkpoints import Series
from belay_cli.errors import UsageError, glob_for
from belay_cli.formats import TORCH_SUFFIXES
from belay_cli.planning.options import SAME, Format, PlanOptions
from belay_cli.planning.target import Target
from belay_cli.record import PLACEHOLDER


def chosen_format(
    series: Series, options: PlanOptions, outputs: Sequence[str | os.PathLike[str] | None] | None
) -> Format:
    """The format that is asked for, or implied by the name of an output. Raises UsageError if it cannot be."""
    last = series.last
    in_torch_files = all(part.places is not None for part in last.weights.components.values())
    named = [Path(path).suffix in TORCH_SUFFIXES for path in outputs or () if path is not None]
    alike = last.directory is None or last.path.suffix in TORCH_SUFFIXES
    implied = options.format is None and in_torch_files and alike and any(named)
    if options.without_optimizer and options.format != SAME and not implied:
        raise UsageError("--without-optimizer goes with --format same", hint="leave it out: safetensors never hold one")
    if options.format != SAME and not implied:
        return "safetensors"
    if outputs is None:
        raise UsageError(
            "--format same is for an average that is written by itself",
            hint="leave it out; belay average writes the one that is chosen once more, with --format same",
        )
    if not in_torch_files:
        raise UsageError(
            f"--format same is for torch files, and {last.path} is safetensors, which any average is",
            hint="leave it out",
        )
    return "same"


def files_of(target: Target | None, names: Sequence[str]) -> dict[str, str]:
    """The files of an output in those of the last checkpoint, whose names these are; digests are placeholders."""
    alone = target is not None and target.is_file
    return dict.fromkeys([target.path.name] if target and alone else names, PLACEHOLDER)


def refuse_other_shape(options: PlanOptions, *, dropped: Sequence[str], updates: bool) -> None:
    """Raise for what would not fit into the places that the last checkpoint has."""
    if options.policies.drop and dropped:
        raise UsageError(
            f"{dropped[0]!r} is left out, and --format same keeps what the last checkpoint has",
            hint=f"to keep it as it is there: --last {glob_for(dropped[0])}",
        )
    if updates:
        raise UsageError(
            "--lora delta does not go with --format same: the factors of an averaged update are new ones",
            hint="--lora factors, or leave out --format same",
        )
