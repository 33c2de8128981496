"""Everything that a publication consists of: the output's files, its model card, and the picture in the card."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belay_cli.checkpoints.json_file import read_json
from belay_cli.errors import CheckpointError
from belay_cli.provenance import DOCUMENT, LOCAL, document_text
from belay_cli.publish.average import read_average
from belay_cli.publish.bundle import Upload, bundle
from belay_cli.publish.card import README, card
from belay_cli.publish.pictures import coefficients_png, have_matplotlib
from belay_cli.rules import TITLES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PICTURE = "coefficients.png"
_CONFIGS = ("config.json", "adapter_config.json", "model_index.json")
_LARGEST = 10_000_000  # bytes of a card or a configuration


def contents(
    output: Path,
    document: Mapping[str, Any],
    *,
    repo_id: str,
    published_card: str | None,
    eval_results: Sequence[EvalResult] | None,
    exclude: Sequence[str] = (),
) -> tuple[list[Upload], list[str]]:
    """The uploads in name order, and notes for people.

    The card is the output's own README.md if there is one, else the one published before, else a new one; in an
    existing one only belay's section is renewed. Raises PublishError or CheckpointError.
    """
    uploads, notes = bundle(output, exclude)
    own = output / README if output.is_dir() else None
    existing = _text(own) if own and own.is_file() else published_card
    picture = PICTURE if have_matplotlib() else None
    if picture is None:
        notes.append("the card has text in place of a picture; for one: pip install 'belay-cli[plots]'")
    text = card(
        document,
        existing=existing,
        source_card=_source_card(output),
        config=_config(output),
        repo_id=repo_id,
        picture=picture,
        eval_results=eval_results,
    )
    made = [Upload(README, text.encode())]
    if picture:
        made.append(Upload(PICTURE, _picture(document)))
    if own is None:  # a single file has its record in its metadata; a repository has it as a file too
        made.append(Upload(DOCUMENT, document_text(document)))
    kept = [upload for upload in uploads if upload.name not in {m.name for m in made}]
    return sorted([*kept, *made], key=lambda upload: upload.name), notes


def _picture(document: Mapping[str, Any]) -> bytes:
    average = read_average(document)
    return coefficients_png(
        average.ticks,
        average.coefficients,
        unit=average.unit,
        title=f"Weight of each checkpoint in the {TITLES[average.method]}",
        mean_lag=average.summary.mean_lag,
    )


def _source_card(output: Path) -> str | None:
    """The card that lay beside the checkpoints, if the output remembers one."""
    try:
        found = read_json(output / LOCAL, _LARGEST)
    except CheckpointError:
        return None
    card = found.get("card") if isinstance(found, dict) else None
    return card if isinstance(card, str) else None


def _config(output: Path) -> dict[str, Any] | None:
    for name in _CONFIGS:
        path = output / name
        if output.is_dir() and path.is_file():
            with contextlib.suppress(CheckpointError):
                found = read_json(path, _LARGEST)
                if isinstance(found, dict):
                    return found
    return None


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise CheckpointError("is too large for a model card", file=path)
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("is not text in UTF-8", file=path, hint="save it as UTF-8") from error
