"""An output against its record, and against the checkpoints that it was made from."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from belay_cli import words
from belay_cli.api.average import Checkpoints, listener
from belay_cli.api.keywords import PathLike
from belay_cli.checkpoints import Selection, Series, find_series
from belay_cli.checkpoints.arguments import in_home
from belay_cli.errors import BelayError, SeriesError, UsageError
from belay_cli.formats.text import listed
from belay_cli.planning.buffers import wanted_threads
from belay_cli.record import LOCAL, Record
from belay_cli.show.checks import Verification
from belay_cli.show.listener import Listener
from belay_cli.storage.json_file import read_json
from belay_cli.storage.remote import is_url
from belay_cli.verification import check_output, recorded


def verify(
    output: PathLike,
    *,
    checkpoints: Checkpoints | None = None,
    sample: str | float = "5%",
    threads: int | None = None,
    progress: bool = False,
) -> Verification:
    """Check that an average is what it says it is; the result says of each check whether it held.

    checkpoints: those it was made from, or their run; without them, where they lay when it was made. sample: the share
    of the values that is computed again, as `5%`, `all`, or a number in (0, 1]. Raises UsageError for a sample that is
    none, CheckpointError if the output cannot be read at all, or has no record.
    """
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else checkpoints
    return verified(Path(output), given, share_of(sample), threads, listener(progress))


def verified(
    output: Path, checkpoints: Sequence[PathLike] | None, share: float, threads: int | None, hears: Listener
) -> Verification:
    """Every check, with a listener."""
    output = in_home(output)
    record = recorded(output)
    if record is None:
        _refuse_run(output)
    inputs = _find_inputs(output, checkpoints, record)
    with hears.share("Verifying") as progress:
        checks = check_output(output, inputs, share, wanted_threads(threads), progress)
    return Verification(str(output), checks, _left_out(record))


def _refuse_run(output: Path) -> None:
    """Raise UsageError if this is a run: what is verified is the average of one."""
    try:
        series = find_series([output], Selection(allow_averages=True))
    except BelayError:
        return  # what is wrong with it is found when it is checked
    if len(series.checkpoints) == 1:
        return
    raise UsageError(
        f"{output} is not an average of belay: it holds {words.plural(len(series.checkpoints), 'checkpoint')}",
        hint=f"give the average, and this with it: belay verify AVERAGE --checkpoints {shlex.quote(str(output))}",
    )


def share_of(sample: str | float) -> float:
    """`5%`, `0.05` or `all` as a number in (0, 1]. Raises UsageError."""
    text = str(sample)
    number = text.removesuffix("%")
    try:
        share = 1.0 if text == "all" else float(number) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text} is not a share", hint="write 5%, 100% or all")
    return share


def _left_out(record: Record | None) -> list[str]:
    """A warning about weights that lay beside those that were averaged."""
    where = record.left_out if record else ()
    return [f"its checkpoints have other weights, which are in no average: {listed(where)}"] if where else []


def _whichever_order(paths: Sequence[PathLike], selection: Selection) -> Series:
    """The checkpoints, in an order of their own if they have one: by their fingerprints they are known anyway."""
    try:
        return find_series(paths, selection)
    except SeriesError:
        return find_series(paths, replace(selection, order="given"))


def _find_inputs(output: Path, given: Sequence[PathLike] | None, record: Record | None) -> Series | str:
    """The checkpoints given, else those that the output remembers, else why there are none."""
    opened = record.opening if record else {}
    source = opened.get("source")
    selection = Selection(
        allow_averages=True,
        subfolder=opened.get("subfolder"),
        state_key=opened.get("state_key"),
        source="ema" if source == "ema" else "raw" if source == "raw" else None,
    )
    if given:
        return _whichever_order(given, selection)
    if not output.is_dir():
        return "a file does not say where the checkpoints lay; give them with --checkpoints"
    try:
        paths = [str(path) for path in read_json(output / LOCAL)["checkpoints"]]
        if any(map(is_url, paths)):  # whoever made the output would choose whom this machine asks
            return "the checkpoints lay at URLs, which are asked only if given: --checkpoints"
        return _whichever_order(paths, selection)
    except (ValueError, KeyError, TypeError, BelayError):
        return "the checkpoints are not where they were; give them with --checkpoints"
