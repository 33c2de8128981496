"""Evaluation results: from a file of the user to the table of the card and the Hub's model-index."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belay_cli import words
from belay_cli.errors import BelayError, CheckpointError
from belay_cli.show.markdown import code, table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The Hub wants a task and a dataset with every result. A bare {"metric": number} states neither: `other` is the Hub's
# own word for a task, and `unknown` what its model cards write for a dataset.
_TASK, _DATASET, _DATASET_NAME = "other", "unknown", "Unknown"

_LARGEST = 10_000_000  # bytes
_FORMS = (
    'write {"accuracy": 0.96}, give the results file of lm-evaluation-harness, '
    "or a list of objects with the fields of huggingface_hub.EvalResult"
)
_TEXT_FIELDS = ("task_type", "dataset_type", "dataset_name", "metric_type")
_OBJECTS = {"dataset_args", "metric_args"}
_OF_THE_HUB = {"verified", "verify_token"}


def read_eval_results(path: Path) -> list[EvalResult]:
    """The results in a JSON file, in one of three forms: bare metrics, lm-evaluation-harness, or EvalResult's fields.

    Raises BelayError, with the file and the mend, for anything else, NaN included.
    """
    content = _read(path)
    try:
        if isinstance(content, list):
            results = [_from_fields(fields) for fields in content]
        elif isinstance(content, dict) and isinstance(content.get("results"), dict):
            results = _from_harness(content["results"])
        elif isinstance(content, dict):
            results = [_bare(name, value) for name, value in content.items()]
        else:
            raise ValueError("is neither an object nor a list")
        if not results:
            raise ValueError("holds no results")
    except (ValueError, TypeError) as error:
        raise BelayError(str(error), file=path, hint=_FORMS) from error
    return results


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise BelayError(f"cannot be read: {error.strerror}", file=path, hint="check --eval-results") from error
    if len(data) > _LARGEST:
        hint = "leave the samples out; the metrics alone are a few kB"
        raise BelayError(f"is larger than {words.size(_LARGEST)}", file=path, hint=hint)
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        what = str(error) if isinstance(error, _NotFiniteError) else "is not JSON"
        raise BelayError(what, file=path, hint=_FORMS) from error


class _NotFiniteError(ValueError):
    pass


def _refuse(constant: str) -> float:
    raise _NotFiniteError(f"holds {constant}, which is no result")


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{words.printable(name)}' is not a number")
    if abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError(f"'{words.printable(name)}' is not finite")
    return value


def _bare(name: str, value: Any) -> EvalResult:
    from huggingface_hub import EvalResult

    if not name.strip():
        raise ValueError("has a metric without a name")
    return EvalResult(_TASK, _DATASET, _DATASET_NAME, name, _number(name, value))


def _from_harness(tasks: Mapping[str, Any]) -> list[EvalResult]:
    """lm-evaluation-harness: `acc,none` is metric and filter; standard errors have no place in a model-index."""
    from huggingface_hub import EvalResult

    results = []
    for task, metrics in tasks.items():
        if not isinstance(metrics, dict):
            raise ValueError(f"'{words.printable(task)}' has no metrics")
        named = {key: value for key, value in metrics.items() if "," in key} or metrics
        for key, value in named.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, str) or metric.endswith("_stderr"):  # an alias, or an error of 'N/A'
                continue
            name = f"{metric} ({filtered})" if filtered not in ("", "none") else None
            number = _number(f"{task}: {key}", value)
            results.append(EvalResult("text-generation", task, task, metric, number, metric_name=name))
    return results


def _from_fields(fields: Any) -> EvalResult:
    from huggingface_hub import EvalResult

    if not isinstance(fields, dict):
        raise ValueError("is a list of something else than objects")
    missing = [name for name in (*_TEXT_FIELDS, "metric_value") if name not in fields]
    if missing:
        raise ValueError(f"has a result without '{missing[0]}'")
    for name, value in fields.items():
        if name in _OF_THE_HUB or name not in EvalResult.__dataclass_fields__:
            raise ValueError(f"has a result with '{words.printable(name)}', which is not for you to set")
        kind = dict if name in _OBJECTS else str
        if name == "metric_value" and not isinstance(value, str):
            _number(name, value)
        elif not isinstance(value, kind) and (value is not None or name in _TEXT_FIELDS):
            raise ValueError(f"has a result whose '{name}' is not {'an object' if kind is dict else 'text'}")
    return EvalResult(**fields)


def prepared(results: Sequence[EvalResult], task: str | None) -> list[EvalResult]:
    """Bare results with the model's own task, where that is known, and all texts without control characters."""
    named = [replace(r, task_type=task) if task and r.task_type == _TASK else r for r in results]
    return [replace(r, **{name: _printable(value) for name, value in vars(r).items()}) for r in named]


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return words.printable(value) if isinstance(value, str) else value


def model_index(name: str, results: Sequence[EvalResult]) -> list[dict[str, Any]]:
    """The Hub's form of results."""
    from huggingface_hub.repocard_data import eval_results_to_model_index

    return eval_results_to_model_index(name, list(results))


def results_table(results: Sequence[EvalResult]) -> list[str]:
    """The lines of the card's table."""
    return table(("task", "dataset", "metric", "value"), [_cells(r) for r in results], (False, False, False, True))


def _cells(result: EvalResult) -> list[str]:
    stated = result.dataset_type != _DATASET
    dataset = ", ".join(
        code(str(part)) for part in (result.dataset_name, result.dataset_config, result.dataset_split) if part
    )
    value = result.metric_value
    shown = words.number(value) if isinstance(value, int | float) else code(str(value))
    metric = str(result.metric_name or result.metric_type)
    return [code(str(result.task_type)), dataset if stated else "not stated", code(metric), shown]


def renewed_index(existing: Any, ours: Sequence[EvalResult], old_section: str, name: str, file: str) -> Any:
    """The model-index of an existing card: the user's results as they are, ours anew; empty if none are left.

    Ours are those that the old section's table shows. A result of the user's for the same measurement stays.
    Raises CheckpointError if ours have no place in it.
    """
    if not existing:
        return model_index(name, ours) if ours else existing
    if not _is_of_one_model(existing):
        if not ours:
            return existing  # not ours to judge
        hint = "leave the results of one model in it, or push without --eval-results"
        raise CheckpointError("the model-index of its front matter is not that of one model", file=file, hint=hint)
    old = {line.strip() for line in re.split(r"[\r\n]+", old_section)} - set(results_table(ours))
    kept = [entry for entry in (_without(entry, old) for entry in existing[0]["results"]) if entry is not None]
    theirs = {_identity(r) for entry in kept for r in _flat(entry)}
    fresh = [r for r in ours if _identity(r) not in theirs]
    results = kept + (model_index(name, fresh)[0]["results"] if fresh else [])
    return [{**existing[0], "results": results}] if results else []


def _is_of_one_model(index: Any) -> bool:
    one = isinstance(index, list) and len(index) == 1 and isinstance(index[0], dict)
    return one and "name" in index[0] and isinstance(index[0].get("results"), list)


def _without(entry: Any, rows: set[str]) -> Any:
    """A result of the model-index without the metrics that those rows show; None if nothing is left."""
    flat = _flat(entry)
    keep = [results_table([r])[-1] not in rows for r in flat]
    if all(keep):
        return entry
    metrics = [metric for metric, kept in zip(entry["metrics"], keep, strict=True) if kept]
    return {**entry, "metrics": metrics} if metrics else None


def _flat(entry: Any) -> list[EvalResult]:
    """The results of one entry; none if it is not of the Hub's form."""
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        return model_index_to_eval_results([{"name": "", "results": [entry]}])[1]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _identity(result: EvalResult) -> tuple[str, ...]:
    measurement = (*result.unique_identifier, result.metric_type, result.metric_name, result.metric_config)
    return tuple(map(repr, measurement))
