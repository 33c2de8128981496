"""The model card of an output: a whole README.md, new, or one that is there with our part renewed.

Our part is the section between the two marks, and in the front matter the keys that were missing. Everything else of
an existing card stays byte for byte, its line endings too: read and write it with newline="".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from belay_cli import words
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.publish import yaml_text
from belay_cli.publish.front_matter import MODEL_NAME, front_matter, task_of
from belay_cli.publish.hub_rules import is_repo_id
from belay_cli.publish.results import prepared, renewed_index
from belay_cli.publish.section import section
from belay_cli.record import Record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN, END = "<!-- belay:begin -->", "<!-- belay:end -->"
README = "README.md"

_MARK = re.compile(rf"(?<![^\r\n])[ \t]*({BEGIN}|{END})[ \t]*(?![^\r\n])")
# Keys that mean something only together with another one: added only where that one was not there.
_COMPANIONS = {"base_model_relation": "base_model", "license_name": "license", "license_link": "license"}


def card(
    record: Record,
    *,
    existing: str | None = None,
    source_card: str | None = None,
    config: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    picture: str | None = None,
    eval_results: Sequence[EvalResult] | None = None,
) -> str:
    """The text of README.md.

    record: what the output says of itself; existing: the card that stands there now; source_card: the README.md beside
    the checkpoints; config: config.json or adapter_config.json; picture: a file name in the repository, or text bars.
    Raises CheckpointError if a card's front matter or marks are broken, UsageError for an impossible repo_id.
    """
    if repo_id is not None and not is_repo_id(repo_id):
        raise UsageError(f"{repo_id!r} is no id of the Hub", hint="write ORG/NAME")
    source = yaml_text.load(yaml_text.split(source_card or "")[1], f"{README} beside the checkpoints")
    config = config or {}
    metadata = front_matter(record, source, config, eval_results, repo_id=repo_id)
    results = prepared(eval_results or [], metadata.get("pipeline_tag") or task_of(config))
    lines = [BEGIN, *section(record, config, repo_id, picture, results), END]
    if existing is None:
        title = (repo_id or "").split("/")[-1] or f"Average of {words.plural(len(record.names), 'checkpoint')}"
        heading = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", title)  # elsewhere it is no emphasis
        return "\n".join(["---", yaml_text.dump(metadata), "---", "", f"# {heading}", "", *lines, ""])
    return _renewed(existing, metadata, lines, results)


def _renewed(existing: str, metadata: dict[str, Any], lines: list[str], results: Sequence[EvalResult]) -> str:
    newline = _newline(existing)
    opening, block, closing, body = yaml_text.split(existing)
    begin, end = _our_part(body)
    before, after = body[:begin], body[end:] or newline
    changes = _changes(yaml_text.load(block, README), metadata, body[begin:end], results)
    body = before + _gap(closing + before, newline, begin == end) + newline.join(lines) + after
    if opening:
        return opening + yaml_text.edit(block, changes, newline, README) + closing + body
    mark = "\ufeff" if existing.startswith("\ufeff") else ""
    top = yaml_text.dump(metadata).replace("\n", newline)
    return f"{mark}---{newline}{top}{newline}---{newline}{body.removeprefix(mark)}"


def _newline(text: str) -> str:
    """The line ending of most lines."""
    crlf = text.count("\r\n")
    return "\r\n" if 2 * crlf > text.count("\n") else "\n"


def _our_part(body: str) -> tuple[int, int]:
    """Where our section begins and ends; both at the end of the text if it has none."""
    marks = list(_MARK.finditer(body))
    if not marks:
        return len(body), len(body)
    if [mark[1] for mark in marks] != [BEGIN, END]:
        hint = f"leave one {BEGIN} and one {END} after it, or none of them"
        raise CheckpointError("the marks of belay's section are not one pair", file=README, hint=hint)
    return marks[0].start(), marks[1].end()


def _gap(before: str, newline: str, new: bool) -> str:
    """What separates a new section from the text before it: one empty line."""
    if not new or not before.strip("\ufeff"):
        return ""
    ends = before[len(before.rstrip("\r\n")) :]
    return newline * max(0, 2 - len(re.findall(r"\r\n|\r|\n", ends)))


def _changes(
    there: Mapping[str, Any], metadata: Mapping[str, Any], old_section: str, results: Sequence[EvalResult]
) -> dict[str, Any]:
    """The keys of an existing front matter that change: the missing ones, tags, and the results that are ours."""
    changes = {
        key: value
        for key, value in metadata.items()
        if there.get(key) is None and there.get(_COMPANIONS.get(key, key)) is None and key != "model-index"
    }
    tags = there.get("tags")
    tags = [tags] if isinstance(tags, str) else tags
    if isinstance(tags, list) and any(tag not in tags for tag in metadata["tags"]):
        changes["tags"] = [*tags, *(tag for tag in metadata["tags"] if tag not in tags)]
    index = there.get("model-index")
    name = metadata["model-index"][0]["name"] if results else MODEL_NAME
    renewed = renewed_index(index, results, old_section, name, README)
    if renewed != index:
        changes["model-index"] = renewed or yaml_text.REMOVED
    return changes
