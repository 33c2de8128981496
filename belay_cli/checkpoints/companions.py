"""The files beside the weights that a loader needs: configuration, tokenizer, custom code, chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.directory import INDEX_SUFFIX, SUFFIX
from belay_cli.checkpoints.steps import TRAINER_STATE, names_a_checkpoint
from belay_cli.checkpoints.storage import AnyPath

_NEEDED = re.compile(
    r".+\.(json|jinja|py|model|spm|bpe|tiktoken|vocab)|(.*[-_.])?(vocab|merges|tokens)(\.txt)?|(LICENSE|NOTICE).*",
    re.IGNORECASE,
)
# What a trainer keeps for itself, what describes the last checkpoint only, and what looks like a secret.
_NOT_NEEDED = re.compile(
    rf"{re.escape(TRAINER_STATE)}|.+{re.escape(INDEX_SUFFIX)}|.+\.bin\.index\.json|belay\.json"
    r"|(all|train|eval|test|predict)_results\.json|training_args.*"
    r"|(.*[-_.])?(secret|credential|password|api_?key)s?\..*|(.*[-_.])?token\.json",
    re.IGNORECASE,
)
CARD = "README.md"
_LARGEST_CARD = 1_000_000  # bytes
_DEPTH = 2  # 1_Pooling/config.json, additional_chat_templates/name.jinja


def companions(directory: AnyPath) -> tuple[list[str], list[str]]:
    """Names relative to the directory, `/` between, in order: those to copy, and links that lead elsewhere.

    A link is followed inside the directory and into the cache of the Hub's client, which keeps its files as
    links; any other would let a downloaded directory pick files of this machine.
    """
    found = sorted(_walk(directory, _DEPTH))
    roots = _roots(directory)
    inside = [name for name in found if any((directory / name).resolve().is_relative_to(root) for root in roots)]
    return inside, [name for name in found if name not in inside]


def is_companion(name: str) -> bool:
    """Whether a file of this name, without its directory, is one that a loader needs."""
    return _NEEDED.fullmatch(name) is not None and _NOT_NEEDED.fullmatch(name) is None


def source_card(checkpoint: Checkpoint) -> str | None:
    """The text of the model card beside a checkpoint, or of its run's: what a card of the average inherits from."""
    if checkpoint.directory is None:
        return None
    places = [checkpoint.directory]
    if names_a_checkpoint(checkpoint.directory.absolute().name):
        places.append(checkpoint.directory.absolute().parent)
    for place in places:
        path = place / CARD
        if path.is_file() and path.stat().st_size <= _LARGEST_CARD:
            return path.read_bytes().decode(errors="replace")
    return None


def _walk(directory: AnyPath, depth: int, inside: str = "") -> Iterator[str]:
    for entry in directory.iterdir():
        if entry.name.startswith((".", "__pycache__")):
            continue
        if entry.is_file():
            if is_companion(entry.name):
                yield inside + entry.name
        elif depth > 0 and entry.is_dir() and not entry.is_symlink() and not _is_a_model(entry):
            yield from _walk(entry, depth - 1, f"{inside}{entry.name}/")


def _is_a_model(directory: AnyPath) -> bool:
    return names_a_checkpoint(directory.name) or any(e.name.endswith(SUFFIX) for e in directory.iterdir())


def _roots(directory: AnyPath) -> list[AnyPath]:
    roots = [directory.resolve()]
    if directory.absolute().parent.name == "snapshots":  # models--org--name/snapshots/<commit>, blobs beside
        roots.append((directory.absolute().parent.parent / "blobs").resolve())
    return roots
