"""`belay verify`: check an output against its record and against the checkpoints it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from belay_cli.checkpoints import Selection, Series, find_series
from belay_cli.cli import options as o
from belay_cli.cli import summary as summaries
from belay_cli.console import Console, error_json
from belay_cli.errors import BelayError, UsageError
from belay_cli.formats.text import listed
from belay_cli.plan.buffers import wanted_threads
from belay_cli.provenance import LOCAL, Record
from belay_cli.storage.json_file import read_json
from belay_cli.storage.remote import is_url
from belay_cli.verify import FAILED, HELD, Check, recorded
from belay_cli.verify import verify as check_output

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="What belay wrote: a file or a directory.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoints",
        metavar="PATH",
        help="The checkpoints it was made from; repeat it, or give the run directory.",
        show_default=False,
    ),
]
Sample = Annotated[
    str,
    typer.Option("--sample", metavar="SHARE", help="Of the values, such as 5% (default), or all.", show_default=False),
]


def verify(
    output: Output,
    checkpoints: Inputs = None,
    sample: Sample = "5%",
    threads: o.Threads = None,
    summary: o.Summary = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Check that an average is what it says it is.

    Its structure; the digest of every byte; its coefficients, from the rule again; whether the checkpoints are the ones
    recorded; and its values, from the checkpoints by the recursion. The exit code is 0 only if all of it was checked
    and held.

    Examples:

        belay verify belay-average
        belay verify averaged.safetensors --checkpoints ckpts --sample all
    """
    console = Console(json=json, quiet=quiet)
    share = _share(sample)
    record = recorded(Path(output))
    inputs = _find_inputs(Path(output), checkpoints, record)
    with console.share("Verifying") as progress:
        checks = check_output(Path(output), inputs, share, wanted_threads(threads), progress)
    good = all(check.status == HELD for check in checks)
    if summary:
        summaries.append(summary, summaries.of_verify(output, checks))
    if json:
        told = {
            "command": "verify",
            "output": output,
            "verified": good,
            "checks": [vars(check) for check in checks],
            "warnings": _left_out(record),
        }
        console.json(told if good else told | error_json(_error(output, checks)))
    elif not quiet:
        for check in checks:
            console.line(f"  {check.status:<11}  {check.name:<12}  {check.detail}")
    for warning in _left_out(record):
        console.warn(warning)
    if not good:
        if not json:
            console.error(_error(output, checks))
        raise typer.Exit(1)


def _error(output: str, checks: list[Check]) -> BelayError:
    failed = [check for check in checks if check.status == FAILED]
    first = failed[0] if failed else next(check for check in checks if check.status != HELD)
    what = f"{first.name} {first.status}: {first.detail}" if failed else f"is not verified: {first.detail}"
    return BelayError(what, file=output, tensor=first.tensor)


def _share(text: str) -> float:
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


def _find_inputs(output: Path, given: list[str] | None, record: Record | None) -> Series | str:
    """The checkpoints given, else those that the output remembers, else why there are none."""
    opened = record.opening if record else {}
    selection = Selection(
        order="given",
        allow_averages=True,
        subfolder=opened.get("subfolder"),
        state_key=opened.get("state_key"),
        source=opened.get("source"),
    )
    if given:
        return find_series(given, selection)
    if not output.is_dir():
        return "a file does not say where the checkpoints lay; give them with --checkpoints"
    try:
        paths = [str(path) for path in read_json(output / LOCAL)["checkpoints"]]
        if any(map(is_url, paths)):  # whoever made the output would choose whom this machine asks
            return "the checkpoints lay at URLs, which are asked only if given: --checkpoints"
        return find_series(paths, selection)
    except (ValueError, KeyError, TypeError, BelayError):
        return "the checkpoints are not where they were; give them with --checkpoints"
