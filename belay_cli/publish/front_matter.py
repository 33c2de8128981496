"""The metadata at the top of a model card, by the rules of the Hub (hub_rules).

Nothing is invented: what the source does not say is left out, and what it says against these rules is left out too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from belay_cli.publish.hub_rules import LICENSES, PIPELINE_TAGS, is_repo_id
from belay_cli.publish.results import model_index, prepared
from belay_cli.record import Record
from belay_cli.show.loading import HEADS, architecture, infer_library

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MODEL_NAME = "belay-average"  # where there is no repository yet

# A config remembers where its model was loaded from: an id of the Hub, or a directory that looks like one.
_LOCAL = re.compile(
    r"(outputs?|runs?|results?|ckpts?|checkpoints?|models?|experiments?|logs?|data|tmp|home)/"
    r"|.*/(checkpoint|ckpt|step|epoch)[-_]?\d+",
    re.IGNORECASE,
)


def front_matter(
    record: Record,
    source_card: Mapping[str, Any],
    config: Mapping[str, Any],
    eval_results: Sequence[EvalResult] | None = None,
    *,
    repo_id: str | None = None,
) -> dict[str, Any]:
    """The metadata of an output's card, in the order in which it is written.

    record: what the output says of itself; source_card: the front matter of the run's own README.md; config:
    config.json, or adapter_config.json; each may be empty. repo_id: where the card will stand.
    """
    language, library = _language(source_card.get("language")), infer_library(record.copies, config)
    base, own = _base_model(record, source_card, config, repo_id)
    adapter = library == "peft" and not own
    found = {
        "language": language,
        **_license(source_card),
        "library_name": _one(source_card.get("library_name"), _is_word) or library,
        "pipeline_tag": _one(source_card.get("pipeline_tag"), PIPELINE_TAGS.__contains__),
        "base_model": base,
        # An average of adapters is still an adapter of its base.
        "base_model_relation": ("adapter" if adapter else "merge") if base else None,
        "datasets": _many(source_card.get("datasets"), is_repo_id),
        "metrics": _many(source_card.get("metrics"), _is_text),
        "tags": _merged_tags(_many(source_card.get("tags"), _is_text), record.rule.tags),
        "model-index": None,
    }
    if eval_results:
        name = repo_id.split("/")[-1] if repo_id else MODEL_NAME
        task = found["pipeline_tag"] or task_of(config)
        found["model-index"] = model_index(name, prepared(eval_results, task))
    return {key: value for key, value in found.items() if value}


def task_of(config: Mapping[str, Any]) -> str | None:
    """The task that the architecture in a config is made for."""
    name = architecture(config)
    return next((task for head, task in HEADS.items() if name.endswith(head)), None)


def _merged_tags(tags: Sequence[str], of_rule: Sequence[str]) -> list[str]:
    """Tags with ours at the end, none twice."""
    return list(dict.fromkeys([*tags, "belay", *of_rule, "weight-averaging"]))


def _base_model(
    record: Record, card: Mapping[str, Any], config: Mapping[str, Any], repo_id: str | None
) -> tuple[Any, bool]:
    """The run that was averaged, or what it says that it comes from; and whether it is the run itself."""
    run, base = (
        _many([checkpoint.repo for checkpoint in record.series], is_repo_id),
        _many(card.get("base_model"), is_repo_id),
    )
    name = config.get("_name_or_path")
    if not run and not base and isinstance(name, str) and "/" in name and not _LOCAL.match(name):
        base = _many(name, is_repo_id)
    ids = [one for one in run or base if one != repo_id]  # a branch of the same repository is not its base
    return (ids[0] if len(ids) == 1 else ids), bool(run)


def _license(card: Mapping[str, Any]) -> dict[str, Any]:
    given = _many(card.get("license"), _is_text)
    slugs = [re.sub(r"[^a-z0-9.+-]+", "-", one.lower()).strip("-") for one in given]
    if len(slugs) != 1 or slugs[0] in LICENSES - {"other"}:
        known = [slug for slug in slugs if slug in LICENSES]
        return {"license": known[0] if len(known) == 1 else known}
    name = _many(card.get("license_name"), _is_text) if slugs[0] == "other" else slugs
    link = _one(card.get("license_link"), lambda t: bool(re.fullmatch(r"LICENSE(\.md)?|https?://[^\s<>\"]{1,500}", t)))
    slug = re.sub(r"[^a-z0-9.-]+", "-", name[0].lower()).strip("-") if name else ""
    return {"license": "other", "license_name": slug, "license_link": link}


def _language(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    codes = ["no" if one is False else one for one in values]  # in YAML, Norwegian is a truth value
    known = _many(codes, lambda text: bool(re.fullmatch(r"[a-z]{2,3}|code|multilingual", text)))
    return known if isinstance(value, list) else next(iter(known), None)


def _one(value: Any, good: Callable[[str], bool]) -> str | None:
    return value if isinstance(value, str) and good(value) else None


def _many(value: Any, good: Callable[[str], bool]) -> list[str]:
    """The good texts of a list, or of one text, none twice."""
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(one for one in values if isinstance(one, str) and good(one)))


def _is_word(text: str) -> bool:
    return bool(re.fullmatch(r"[\w.+-]{1,100}", text, re.ASCII))


def _is_text(text: str) -> bool:
    return text.isprintable() and text == text.strip() and 0 < len(text) <= 200
