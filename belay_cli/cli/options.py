"""The options, each declared once; commands share them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_RULE, _SERIES, _OUTPUT, _RUN, _HUB = "The rule", "The series", "The output", "The run", "The Hub"


def _option(*names: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINTS",
        help="Files, directories, URLs, or a run directory with the checkpoints in it.",
        show_default=False,
    ),
]

Method = Annotated[str, _option("-m", "--method", text="ema (default) or belay.", panel=_RULE, metavar="NAME")]
HalfLife = Annotated[
    str | None,
    _option(
        "--half-life",
        text="10% of the span, 2000steps, 3checkpoints, or ticks. Default: 5% of the span, at least the mean spacing.",
        panel=_RULE,
        metavar="TEXT",
    ),
]
Decay = Annotated[float | None, _option("--decay", text="Per tick, instead of the half-life.", panel=_RULE)]
Feedback = Annotated[
    float | None, _option("--feedback", text="belay: the pull on the model's end. Default 1.", panel=_RULE)
]
Curvature = Annotated[
    float | None,
    _option("--curvature", text="belay: the pull back to the recorded path. Default 1.", panel=_RULE),
]
DampingRatio = Annotated[
    float | None,
    _option("--damping-ratio", text="Inertia without a scale: 1 is critical, less overshoots.", panel=_RULE),
]
Inertia = Annotated[float | None, _option("--inertia", text="Velocity kept per tick, in [0, 1).", panel=_RULE)]
Debias = Annotated[bool, _option("--debias", text="ema: without the initial state.", panel=_RULE)]

Unit = Annotated[
    str,
    _option(
        "--unit",
        text="Of ticks: auto (steps if all have one), step, checkpoint.",
        panel=_SERIES,
        metavar="NAME",
    ),
]
Order = Annotated[
    str,
    _option("--order", text="step (default), or given: as the arguments come.", panel=_SERIES, metavar="NAME"),
]
FromStep = Annotated[int | None, _option("--from-step", text="Leave out what is before.", panel=_SERIES)]
ToStep = Annotated[int | None, _option("--to-step", text="Leave out what is after.", panel=_SERIES)]
Every = Annotated[
    int, _option("--every", text="Take every N-th, counted back from the last.", panel=_SERIES, metavar="N")
]
AllowAverages = Annotated[
    bool, _option("--allow-averages", text="Take what belay wrote as a checkpoint.", panel=_SERIES)
]
Subfolder = Annotated[
    str | None,
    _option(
        "--subfolder",
        text="Of several models in a checkpoint: one, such as unet; some, as unet,text_encoder; or all.",
        panel=_SERIES,
        metavar="NAME",
    ),
]
StateKey = Annotated[
    str | None,
    _option("--state-key", text="Where a torch file has its weights: model.state_dict.", panel=_SERIES, metavar="KEY"),
]
Source = Annotated[
    str | None,
    _option("--source", text="raw or ema, where a checkpoint holds both.", panel=_SERIES, metavar="NAME"),
]

Output = Annotated[
    str | None,
    _option(
        "-o",
        "--output",
        text="NAME.safetensors, or a directory. Default: belay-average, with .safetensors if the inputs are files.",
        panel=_OUTPUT,
        metavar="PATH",
    ),
]
Dtype = Annotated[
    str,
    _option("--dtype", text="same (default), float64, float32, bfloat16, float16.", panel=_OUTPUT, metavar="NAME"),
]
Average = Annotated[
    list[str] | None,
    _option("--average", text="Average only these tensors; the rest from the last.", panel=_OUTPUT, metavar="GLOB"),
]
Last = Annotated[
    list[str] | None,
    _option("--last", text="Take these from the last checkpoint.", panel=_OUTPUT, metavar="GLOB"),
]
Drop = Annotated[list[str] | None, _option("--drop", text="Leave these out.", panel=_OUTPUT, metavar="GLOB")]
Lora = Annotated[
    str | None,
    _option("--lora", text="Adapters: delta (the updates B·A), or factors (A and B).", panel=_OUTPUT, metavar="NAME"),
]
LoraRank = Annotated[
    int | None, _option("--lora-rank", text="With --lora delta: of the output.", panel=_OUTPUT, metavar="R")
]
MaxShardSize = Annotated[
    str | None,
    _option("--max-shard-size", text="Of a directory's weight files. Default 5GB.", panel=_OUTPUT, metavar="SIZE"),
]
Overwrite = Annotated[bool, _option("--overwrite", text="Replace what belay wrote there before.", panel=_OUTPUT)]

Device = Annotated[
    str,
    _option("--device", text="auto (CUDA if there is one), cpu, cuda, cuda:N.", panel=_RUN, metavar="NAME"),
]
Threads = Annotated[int | None, _option("--threads", text="Default: all cores.", panel=_RUN, metavar="N")]
MaxMemory = Annotated[
    str | None,
    _option("--max-memory", text="For buffers, beside torch itself. Default 300MB.", panel=_RUN, metavar="SIZE"),
]
NoSync = Annotated[bool, _option("--no-sync", text="Do not wait until the disk has it.", panel=_RUN)]
AllowNonfinite = Annotated[
    bool, _option("--allow-nonfinite", text="Average NaN and infinity like numbers.", panel=_RUN)
]
DryRun = Annotated[bool, _option("--dry-run", text="Show the plan and stop.", panel=_RUN)]
Summary = Annotated[
    Path | None,
    _option("--summary", text="Append what was done to this file, as Markdown.", panel=_RUN, metavar="FILE"),
]
Plot = Annotated[
    Path | None,
    _option("--plot", text="Draw the weights into this .png or .svg.", panel=_RUN, metavar="FILE"),
]
Json = Annotated[bool, _option("--json", text="One JSON object on stdout.", panel=_RUN)]
Quiet = Annotated[bool, _option("-q", "--quiet", text="No tables, no notes; only what was written.", panel=_RUN)]
Debug = Annotated[bool, _option("--debug", text="Show tracebacks.", panel=_RUN)]

PushToHub = Annotated[
    str | None,
    _option("--push-to-hub", text="Publish the average, as belay push does.", panel=_HUB, metavar="ORG/NAME"),
]
Revision = Annotated[
    str | None, _option("--revision", text="A branch of the repository. Default main.", panel=_HUB, metavar="NAME")
]
Private = Annotated[bool, _option("--private", text="If the repository is new, make it private.", panel=_HUB)]
CreatePr = Annotated[bool, _option("--create-pr", text="Open a pull request instead of committing.", panel=_HUB)]
CommitMessage = Annotated[
    str | None, _option("--commit-message", text="The first line of the commit.", panel=_HUB, metavar="TEXT")
]
CommitDescription = Annotated[
    str | None, _option("--commit-description", text="The rest of it.", panel=_HUB, metavar="TEXT")
]
Token = Annotated[
    str | None,
    _option("--token", text="Default: HF_TOKEN, or what hf auth login stored.", panel=_HUB, metavar="TOKEN"),
]
