"""Whether the checkpoints given are the ones that an output records."""

from __future__ import annotations

from belay_cli.checkpoints import Series
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.fingerprint import fingerprints
from belay_cli.errors import SeriesError
from belay_cli.record import Record


def recorded_inputs(record: Record, series: Series) -> list[Checkpoint]:
    """The checkpoints in the recorded order, whatever they are called now. Raises SeriesError if one is missing."""
    found = dict(zip(fingerprints(series.checkpoints), series.checkpoints, strict=True))
    for entry in record.series:
        if entry.fingerprint not in found:
            named = any(checkpoint.name == entry.name for checkpoint in series.checkpoints)
            what = "is not the one that was recorded" if named else "is not among the checkpoints given"
            raise SeriesError(f"{entry.name} {what}")
    return [found[entry.fingerprint] for entry in record.series]
