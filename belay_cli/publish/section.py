"""Our section of a model card: what the weights are, how to load them, how they were made, how to check that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from belay_cli.publish.results import results_table
from belay_cli.record import DOCUMENT, Record
from belay_cli.show import described
from belay_cli.show import markdown as md
from belay_cli.show.loading import Loader, find_loader

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_ROWS = 40  # of the table; more checkpoints share rows


def section(
    average: Record, config: Mapping[str, Any], repo_id: str | None, picture: str | None, results: Sequence[EvalResult]
) -> list[str]:
    """The lines of our section, without its marks."""
    parts = [
        ["## Averaged weights"],
        [described.what(average)],
        [f"![The weight of every checkpoint in the average]({quote(picture)})"] if picture else described.bars(average),
        [described.lag(average)],
        ["### Checkpoints"],
        _table(average),
        ["### Loading"],
        md.block(_loading(average, config, repo_id or "ORG/NAME"), "python"),
        *([["### Evaluation"]] if results or average.chosen else []),
        *([results_table(results)] if results else []),
        *([[described.choice(average.chosen)]] if average.chosen else []),
        ["### How it was made"],
        md.block(_command(average), "sh"),
        [_made(average)],
        ["### How to check it"],
        md.block(_checking(repo_id or "ORG/NAME"), "sh"),
        [
            "`RUN` is the directory of the checkpoints above. `belay verify` checks the SHA-256 of every tensor, "
            "derives the weights from the rule again, and recomputes the values from the checkpoints by the recursion."
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts).split("\n")


def _table(average: Record) -> list[str]:
    steps, revised = average.unit == "step", any(c.revision for c in average.series)
    heading = ["step"] * steps + ["checkpoint"] + ["revision"] * revised + ["weight"]
    rows = [
        [described.span(average.ticks, first, last)] * steps
        + [described.span([md.code(name) for name in average.names], first, last)]
        + [described.span([md.code(c.revision[:12]) if c.revision else "" for c in average.series], first, last)]
        * revised
        + [described.percent(sum(average.coefficients[first : last + 1]))]
        for first, last in described.rows(average)
    ]
    lines = md.table(heading, rows, [steps] * steps + [False] + [False] * revised + [True])
    if len(rows) < len(average.names):
        lines += ["", f"Light checkpoints share a row; `{DOCUMENT}` lists all {len(average.names)}."]
    return lines


def _loading(average: Record, config: Mapping[str, Any], repo: str) -> list[str]:
    if loader := find_loader(average.copies, config):
        tokenized = loader.library == "transformers" and "tokenizer_config.json" in average.copies
        return _by_library(loader, [Loader(loader.library, "AutoTokenizer")] * tokenized, repo)
    lines = ["from pathlib import Path", "", "from huggingface_hub import snapshot_download"]
    lines += ["from safetensors.torch import load_file", "", "weights = {}"]
    if average.components:
        return [
            *lines,
            f'root = Path(snapshot_download("{repo}"))',
            'for file in root.rglob("*.safetensors"):',
            "    weights.setdefault(file.parent.relative_to(root).as_posix(), {}).update(load_file(file))",
        ]
    return [
        *lines,
        f'for file in Path(snapshot_download("{repo}")).glob("*.safetensors"):',
        "    weights.update(load_file(file))",
    ]


def _by_library(model: Loader, tokenizers: Sequence[Loader], repo: str) -> list[str]:
    return [
        f"from {model.library} import {', '.join(loader.name for loader in (model, *tokenizers))}",
        "",
        *([f"# {repo} has code of its own; read it before you run it"] if model.own_code else []),
        f"model = {model.call(repo)}",
        *(f"tokenizer = {tokenizer.call(repo)}" for tokenizer in tokenizers),
    ]


def _command(average: Record) -> list[str]:
    """The canonical command; of a long series only the ends."""
    arguments = shlex.split(average.command)
    count = len(average.names)
    if count > _ROWS and len(arguments) > count:
        return md.command_lines([*map(shlex.quote, arguments[: 2 - count]), "…", shlex.quote(arguments[-1])])
    return md.command_lines(list(map(shlex.quote, arguments)))


def _made(average: Record) -> str:
    version = average.versions.get("torch")
    torch = f" with torch {md.code(version)}" if version else ""
    parts = [f"By belay {md.code(average.version)}{torch}; sums in float64, rounded once to the dtype of the output."]
    for name, what in (("last", "are those of the last checkpoint"), ("drop", "are left out")):
        if average.policies.get(name):
            parts.append(f"Tensors that match {', '.join(map(md.code, average.policies[name]))} {what}.")
    return " ".join([*parts, f"`{DOCUMENT}` records all of it."])


def _checking(repo: str) -> list[str]:
    directory = repo.split("/")[-1]
    return [
        f"hf download {repo} --local-dir {directory}",
        f"belay verify {directory} --checkpoints RUN",
    ]
