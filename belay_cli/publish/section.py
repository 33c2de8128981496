"""Our section of a model card: what the weights are, how to load them, how they were made, how to check that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from belay_cli import words
from belay_cli.provenance import DOCUMENT
from belay_cli.publish import markdown as md
from belay_cli.publish.average import Average
from belay_cli.publish.front_matter import HEADS, architecture, infer_library
from belay_cli.publish.results import results_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_PAPER = "https://arxiv.org/abs/2310.13854"
_ROWS = 40  # of the table; more checkpoints share rows
_BAR = 40  # columns of the heaviest row
# The task of an adapter -> the end of the class of peft that loads it.
_ADAPTERS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}


def section(
    average: Average, config: Mapping[str, Any], repo_id: str | None, picture: str | None, results: Sequence[EvalResult]
) -> list[str]:
    """The lines of our section, without its marks."""
    parts = [
        ["## Averaged weights"],
        [_what(average)],
        [f"![The weight of every checkpoint in the average]({quote(picture)})"] if picture else _bars(average),
        [_lag(average)],
        ["### Checkpoints"],
        _table(average),
        ["### Loading"],
        md.block(_loading(average, config, repo_id or "ORG/NAME"), "python"),
        *([["### Evaluation"], results_table(results)] if results else []),
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


def overview(average: Average) -> list[str]:
    """What the weights are, in lines that need neither a picture nor a repository."""
    return [_what(average), "", *_bars(average), "", _lag(average)]


def _what(average: Average) -> str:
    count, (first, last) = len(average.names), (average.ticks[0], average.ticks[-1])
    steps = (f", steps {first} to {last}" if count > 1 else f", step {first}") if average.unit == "step" else ""
    return (
        f"These weights are an average of {words.plural(count, 'checkpoint')} of one training run{steps}: "
        f"{_rule(average)}. They were computed after training, from the saved checkpoints: every averaged tensor is "
        "the sum of the checkpoints' tensors, each times its weight below." + _own_reading(average)
    )


def _rule(average: Average) -> str:
    if average.method == "belay":
        name = "BELAY, in which a damped spring draws the average to the model and the model to the average"
    elif average.inertia:
        name = "an exponential moving average (EMA) with inertia, a damped oscillator"
    else:
        name = f"{'a debiased' if average.debias else 'an'} exponential moving average (EMA)"
    half_life = words.number(average.half_life)
    parts = [f"half-life {half_life} {average.unit}{'' if half_life == '1' else 's'}"]
    if average.feedback:
        parts.append(f"feedback {words.number(average.feedback)}, curvature {words.number(average.curvature)}")
    if average.inertia:
        parts.append(f"inertia {words.number(average.inertia)}")
    if average.damping_ratio is not None:
        parts.append(f"damping ratio {words.number(average.damping_ratio)}")
    return f"{name}; {', '.join(parts)}"


def _own_reading(average: Average) -> str:
    if average.method == "ema" and not average.inertia:
        return ""
    picture = f"[weight averaging as damped harmonic motion]({_PAPER})"
    return f" The picture is that of {picture}; the discretization is belay's own."


def _lag(average: Average) -> str:
    unit, summary = average.unit, average.summary
    return (
        f"The average lags {words.three_digits(summary.mean_lag)} {unit}s behind the last checkpoint; "
        f"it is as good as {summary.effective_checkpoints:.1f} checkpoints averaged equally."
    )


def _rows(average: Average) -> list[tuple[int, int]]:
    """First and last checkpoint of each row: one each, or as many as together weigh a fortieth of everything."""
    count = len(average.names)
    if count <= _ROWS:
        return [(i, i) for i in range(count)]
    rows, first, weight = [], 0, 0.0
    share = sum(map(abs, average.coefficients)) / _ROWS
    for i, c in enumerate(average.coefficients):
        if abs(c) >= share and first < i:  # a heavy one stands alone
            rows.append((first, i - 1))
            first, weight = i, 0.0
        weight += abs(c)
        if weight >= share or i == count - 1:
            rows.append((first, i))
            first, weight = i + 1, 0.0
    return rows


def _table(average: Average) -> list[str]:
    steps, revised = average.unit == "step", any(average.revisions)
    heading = ["step"] * steps + ["checkpoint"] + ["revision"] * revised + ["weight"]
    rows = [
        [_span(average.ticks, first, last)] * steps
        + [_span([md.code(name) for name in average.names], first, last)]
        + [_span([md.code(r) if r else "" for r in average.revisions], first, last)] * revised
        + [_percent(sum(average.coefficients[first : last + 1]))]
        for first, last in _rows(average)
    ]
    lines = md.table(heading, rows, [steps] * steps + [False] + [False] * revised + [True])
    if len(rows) < len(average.names):
        lines += ["", f"Light checkpoints share a row; `{DOCUMENT}` lists all {len(average.names)}."]
    return lines


def _span(values: Sequence[Any], first: int, last: int) -> str:
    return str(values[first]) if first == last else f"{values[first]} … {values[last]}"


def _percent(weight: float) -> str:
    return f"{round(100 * weight, 1) + 0.0:.1f}%"  # + 0.0: no minus before a zero


def _bars(average: Average) -> list[str]:
    rows = _rows(average)
    labels = [_span(average.ticks if average.unit == "step" else average.names, *row) for row in rows]
    weights = [sum(average.coefficients[first : last + 1]) for first, last in rows]
    shown = [words.printable(label if len(label) <= 36 else "…" + label[-35:]) for label in labels]
    width, heaviest = max(map(len, shown)), max(map(abs, weights))
    lines = [
        f"{label:<{width}}  {_percent(weight):>6}  {'░█'[weight > 0] * round(abs(weight) / heaviest * _BAR)}".rstrip()
        for label, weight in zip(shown, weights, strict=True)
    ]
    return md.block(lines)


def _loading(average: Average, config: Mapping[str, Any], repo: str) -> list[str]:
    library, name = infer_library({"copies": average.copies}, config), architecture(config)
    if library == "transformers" and name:
        return _transformers(average, config, name, repo)
    if library == "diffusers" and name:
        return _from_pretrained("diffusers", [name], repo)
    if library == "sentence-transformers":
        name = "SentenceTransformer"
        return [f"from sentence_transformers import {name}", "", f'model = {name}("{repo}")']
    if library == "peft":
        return _from_pretrained("peft", ["AutoPeftModel" + _ADAPTERS.get(str(config.get("task_type")), "")], repo)
    lines = ["from pathlib import Path", "", "from huggingface_hub import snapshot_download"]
    lines += ["from safetensors.torch import load_file", "", "weights = {}"]
    if average.folders:
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


def _transformers(average: Average, config: Mapping[str, Any], name: str, repo: str) -> list[str]:
    """By the Auto class of the architecture's head; without one that is known, by the architecture itself."""
    head = next((head for head in HEADS if name.endswith(head)), None)
    if head or name.endswith("LMHeadModel"):
        name = "AutoModel" + (head or "ForCausalLM")
    elif name.endswith("Model") or "auto_map" in config:
        name = "AutoModel"
    tokenizer = ["AutoTokenizer"] if "tokenizer_config.json" in average.copies else []
    return _from_pretrained("transformers", [name, *tokenizer], repo, own_code="auto_map" in config)


def _from_pretrained(library: str, names: list[str], repo: str, own_code: bool = False) -> list[str]:
    trust = ", trust_remote_code=True" if own_code else ""
    return [
        f"from {library} import {', '.join(names)}",
        "",
        *([f"# {repo} has code of its own; read it before you run it"] if own_code else []),
        f'model = {names[0]}.from_pretrained("{repo}"{trust})',
        *(f'tokenizer = {other}.from_pretrained("{repo}")' for other in names[1:]),
    ]


def _command(average: Average) -> list[str]:
    """The canonical command; of a long series only the ends."""
    try:
        arguments = shlex.split(average.command)
    except ValueError:
        return [average.command[:2000]]
    count = len(average.names)
    if count > _ROWS and len(arguments) > count:
        return md.command_lines([*map(shlex.quote, arguments[: 2 - count]), "…", shlex.quote(arguments[-1])])
    return md.command_lines(list(map(shlex.quote, arguments)))


def _made(average: Average) -> str:
    torch = f" with torch {md.code(average.torch)}" if average.torch else ""
    parts = [f"By belay {md.code(average.version)}{torch}; sums in float64, rounded once to the dtype of the output."]
    for name, what in (("last", "are those of the last checkpoint"), ("drop", "are left out")):
        if average.policies.get(name):
            parts.append(f"Tensors that match {', '.join(map(md.code, average.policies[name]))} {what}.")
    return " ".join([*parts, f"`{DOCUMENT}` records all of it."])


def _checking(repo: str) -> list[str]:
    directory = repo.split("/")[-1]
    return [
        "pip install belay-cli",
        f"hf download {repo} --local-dir {directory}",
        f"belay verify {directory} --checkpoints RUN",
    ]
