"""`belay sweep`: many averages in one read, judged by the user's own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from belay_cli.api.sweep_directory import sweep_by_command
from belay_cli.checkpoints import Selection
from belay_cli.cli.screen import Checkpoints, Screen
from belay_cli.errors import BelayError, UsageError
from belay_cli.options import Option
from belay_cli.planning import PlanOptions
from belay_cli.show.sweep import sweep_lines
from belay_cli.sweeping.grid import Grid
from belay_cli.sweeping.options import EvaluationOptions, SweepOptions

Output = Annotated[
    Path,
    Option("The sweep's directory. Default: belay-sweep.", metavar="DIR", short="-o", panel="The sweep"),
]


def sweep(
    checkpoints: Checkpoints,
    grid: Grid,
    evaluation: EvaluationOptions,
    options: SweepOptions,
    selection: Selection,
    planned: PlanOptions,
    screen: Screen,
    output: Output = Path("belay-sweep"),
) -> None:
    """Try many averages, and keep the one that your own evaluation finds best.

    All candidates are made in one read of the series. The command is run for each; what it measured is read from
    the newest results_*.json below {out}, as lm-evaluation-harness and lighteval write it, or from its last line.
    Run again, it goes on: what was evaluated is not evaluated again.

    Examples:

        belay sweep run -o sweep --eval 'python evaluate.py {model}' --minimize
        belay sweep run --method ema,uniform --half-life 2%,5%,10% --eval 'python evaluate.py {model}' --metric loss
        belay sweep run --eval 'lm_eval --model hf --model_args pretrained={model} --tasks arc_easy
        --output_path {out}' --metric arc_easy acc_norm --jobs 8
    """
    if evaluation.eval is None and options.keep != "all":
        raise UsageError(
            "without --eval nothing can be chosen",
            hint="--eval 'python evaluate.py {model}', or --keep all to write all candidates",
        )
    if evaluation.eval is None and options.refine:
        raise UsageError("--refine goes with --eval")
    console = screen.console()
    done = sweep_by_command(checkpoints, grid, output, selection, planned, evaluation, options, console)
    if screen.json:
        console.json(done.to_json())
    elif evaluation.eval is None:
        console.line(f"{len(done.outcome.tried)} averages in {output / 'candidates'}")
    elif screen.quiet:
        if done.best_output:
            console.line(done.best_output)
    else:
        console.screen(lambda width, unicode: sweep_lines(done, width=width, unicode=unicode))
        if done.best_output:
            console.note(f"the best is in {done.best_output}; all that was measured is in {output / 'sweep.json'}")
    if evaluation.eval is not None and done.best is None:
        raise BelayError("no evaluation gave a score", hint=f"what they said is in {output / 'evaluations'}")
