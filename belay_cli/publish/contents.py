"""Everything that a publication consists of: the output's files, its model card, and the picture in the card."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belay_cli.errors import CheckpointError, PublishError
from belay_cli.publish.bundle import Upload, bundle, holds_secret
from belay_cli.publish.card import README, card
from belay_cli.record import DOCUMENT, LOCAL, Record
from belay_cli.show.loading import CONFIGS
from belay_cli.show.pictures import coefficients_png, have_matplotlib
from belay_cli.storage.json_file import read_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PICTURE = "coefficients.png"
_RESULTS = "### Evaluation"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".pkl", ".npz", ".msgpack", ".h5", ".gguf")
_LARGEST = 10_000_000  # bytes of a card or a configuration


def contents(
    output: Path,
    record: Record,
    *,
    weights: Collection[str],
    repo_id: str,
    published_card: str | None,
    eval_results: Sequence[EvalResult] | None,
    exclude: Sequence[str] = (),
) -> tuple[list[Upload], list[str]]:
    """The uploads in name order, and notes for people.

    weights: the files of the output that are nothing without each other, by their names in it. The card is the output's
    own README.md if that is uploaded, else the one published before, else a new one; in an existing one only belay's
    section is renewed. Raises PublishError or CheckpointError.
    """
    uploads, notes = bundle(output, exclude)
    _refuse_incomplete({upload.name for upload in uploads}, weights)
    uploads, others = _without_other_weights(uploads, weights)
    notes += others
    own = output / README if any(upload.name == README for upload in uploads) else None
    existing = _text(own) if own else published_card
    picture = PICTURE if have_matplotlib() else None
    if picture is None:
        notes.append("the card has text in place of a picture; for one: pip install matplotlib")
    text = card(
        record,
        existing=existing,
        source_card=_source_card(output),
        config=_config(output),
        repo_id=repo_id,
        picture=picture,
        eval_results=eval_results,
    )
    if holds_secret(text.encode()):
        raise PublishError("the card would hold what looks like a secret; nothing was uploaded", file=output / README)
    if existing and _RESULTS in existing and _RESULTS not in text:
        notes.append("the evaluation results on the card go; to keep them, give them again: --eval-results")
    made = [Upload(README, text.encode())]
    if picture:
        made.append(Upload(PICTURE, _picture(record)))
    if not output.is_dir():  # a single file has its record in its metadata; a repository has it as a file too
        made.append(Upload(DOCUMENT, record.document()))
    kept = [upload for upload in uploads if upload.name not in {m.name for m in made}]
    return sorted([*kept, *made], key=lambda upload: upload.name), notes


def _refuse_incomplete(uploads: Collection[str], weights: Collection[str]) -> None:
    for name in weights:
        if name not in uploads:
            raise PublishError(
                f"{name} would not be uploaded, and the average is nothing without it",
                hint="do not --exclude it; a link to elsewhere has to be replaced by the file itself",
            )


def _without_other_weights(uploads: list[Upload], weights: Collection[str]) -> tuple[list[Upload], list[str]]:
    """The uploads but for checkpoints that lie in the same directory, and a note about those."""
    others = [u.name for u in uploads if u.name.endswith(_WEIGHTS) and u.name not in weights]
    own = {name.partition("/")[0] for name in weights if "/" in name}
    folders = tuple(f"{top}/" for name in others if (top := name.partition("/")[0]) != name and top not in own)
    left = [u.name for u in uploads if u.name in others or u.name.startswith(folders)] if others else []
    if not left:
        return uploads, []
    which = f"{left[0]} and {len(left) - 1} more are" if len(left) > 1 else f"{left[0]} is"
    note = f"{which} not uploaded: weights that are no part of the average, or files beside them"
    return [upload for upload in uploads if upload.name not in left], [note]


def _picture(record: Record) -> bytes:
    return coefficients_png(
        record.ticks,
        record.coefficients,
        unit=record.unit,
        title=f"Weight of each checkpoint in the {record.rule.title}",
        mean_lag=record.summary.mean_lag,
    )


def _source_card(output: Path) -> str | None:
    """The card that lay beside the checkpoints, if the output remembers one."""
    if not _lies_inside(output / LOCAL, output):
        return None
    try:
        found = read_json(output / LOCAL, _LARGEST)
    except CheckpointError:
        return None
    card = found.get("card") if isinstance(found, dict) else None
    return card if isinstance(card, str) else None


def _config(output: Path) -> dict[str, Any] | None:
    for name in CONFIGS:
        path = output / name
        if output.is_dir() and path.is_file() and _lies_inside(path, output):
            with contextlib.suppress(CheckpointError):
                found = read_json(path, _LARGEST)
                if isinstance(found, dict):
                    return found
    return None


def _lies_inside(path: Path, output: Path) -> bool:
    return path.resolve().is_relative_to(output.resolve())


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise CheckpointError("is too large for a model card", file=path)
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("is not text in UTF-8", file=path, hint="save it as UTF-8") from error
