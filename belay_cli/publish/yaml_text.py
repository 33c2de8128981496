"""YAML front matter as text: read it, and change a few keys while everything else stays as it was written.

Ours, because ruamel.yaml drops comments in a list that changes, doubles the CR after a comment, and writes indented
lists, folded texts, `key:   value`, `~` and `[a,b]` anew; huggingface_hub's cards lose all comments and quotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from belay_cli.errors import CheckpointError

_MOST_NODES = 100_000
REMOVED = object()  # as a value: the key goes

# The block as the Hub and huggingface_hub find it, after a byte order mark or not.
_FRONT_MATTER = re.compile(r"(\ufeff?\s*---(?:\r\n|\r(?!\n)|\n))([\S\s]*?)((?:\r\n|\r(?!\n)|\n)---[ \t]*(?:\r\n|\n|$))")


def split(text: str) -> tuple[str, str, str, str]:
    """A card as opening line, YAML, closing line and body; the first three are empty without front matter."""
    match = _FRONT_MATTER.match(text)
    return (match[1], match[2], match[3], text[match.end() :]) if match else ("", "", "", text)


def load(block: str, name: str) -> dict[str, Any]:
    """The mapping of a front matter's YAML. Raises CheckpointError that names the file."""
    import yaml

    try:
        if _nodes(yaml.compose(block, yaml.SafeLoader), {}) > _MOST_NODES:
            raise _broken(name, "unfolds to more than any card says")
        data = yaml.safe_load(block)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 2}" if where is not None else ""  # the first line is the ---
        raise _broken(name, f"is not YAML{line}") from error
    if data is not None and not isinstance(data, dict):
        raise _broken(name, "is not a list of keys and values")
    return data or {}


def _nodes(node: Any, counted: dict[int, int]) -> int:
    """How many values a document has when every alias is written out."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MOST_NODES  # a node inside itself
        children = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        counted[id(node)] = 1 + sum(_nodes(child, counted) for child in children)
    return counted[id(node)]


def _broken(name: str, what: str) -> CheckpointError:
    hint = "mend what stands between the two --- lines at its top, or delete it"
    return CheckpointError(f"the front matter {what}", file=name, hint=hint)


def dump(data: Mapping[str, Any]) -> str:
    """As huggingface_hub writes it, without the newline at the end."""
    import yaml

    text: str = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != data:  # some line separators of Unicode come back as newlines unless they are escaped
        text = yaml.safe_dump(dict(data), sort_keys=False)
    return text.rstrip("\n")


def edit(block: str, changes: Mapping[str, Any], newline: str, name: str) -> str:
    """The YAML with some keys set, or REMOVED; comments, order and quotes of the others stay.

    YAML can be written in ways in which a line cannot be changed alone; then the whole mapping is written anew.
    """
    if not changes:
        return block
    wanted = {key: value for key, value in {**load(block, name), **changes}.items() if value is not REMOVED}
    edited = _edit_lines(block, changes, newline)
    try:
        if load(edited, name) == wanted:
            return edited
    except CheckpointError:
        pass
    return dump(wanted).replace("\n", newline)


def _edit_lines(block: str, changes: Mapping[str, Any], newline: str) -> str:
    entries = _entries(block)
    for key in sorted(changes.keys() & entries.keys(), key=lambda key: -entries[key][0]):
        start, end = entries[key][0], _end_of_line(block, entries[key][1])
        if changes[key] is REMOVED:
            start, end = _with_one_newline(block, start, end)
            new = ""
        else:
            new = _longer_list(block[start:end], entries[key][2], changes[key], newline)
            new = new or dump({key: changes[key]}).replace("\n", newline)
        block = block[:start] + new + block[end:]
    added = {key: value for key, value in changes.items() if key not in entries and value is not REMOVED}
    if not added:
        return block
    gap = newline if block and not block.endswith(("\n", "\r")) else ""
    return block + gap + dump(added).replace("\n", newline)


def _entries(block: str) -> dict[str, tuple[int, int, Any]]:
    """Where each key begins and its value ends, and the value's node."""
    import yaml

    root = yaml.compose(block, yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return {str(k.value): (k.start_mark.index, max(k.end_mark.index, _last(v)), v) for k, v in pairs}


def _last(node: Any) -> int:
    """Where the last word of a value ends; the end of a block itself lies after the comments that follow it."""
    if isinstance(node.value, str) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    child = node.value[-1]
    return _last(child[1] if isinstance(child, tuple) else child)


def _end_of_line(block: str, index: int) -> int:
    while index and block[index - 1] in "\r\n":  # a block scalar ends after its newline
        index -= 1
    match = re.compile(r"[^\r\n]*").match(block, index)
    return match.end() if match else index


def _with_one_newline(block: str, start: int, end: int) -> tuple[int, int]:
    after = re.compile(r"\r\n|\r|\n").match(block, end)
    if after:
        return start, after.end()
    before = re.search(r"(?:\r\n|\r|\n)$", block[:start])
    return (before.start() if before else start), end


def _longer_list(text: str, node: Any, value: Any, newline: str) -> str:
    """The entry with more items at the end, if that is all that changes in a list of one item a line."""
    import yaml

    if not isinstance(node, yaml.SequenceNode) or node.flow_style or not isinstance(value, list):
        return ""
    if any(item.value != old for item, old in zip(node.value, value, strict=False)) or len(value) < len(node.value):
        return ""
    dash = newline + " " * node.start_mark.column + "- "
    return text + "".join(dash + dump({"x": item})[3:] for item in value[len(node.value) :])
