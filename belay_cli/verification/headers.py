"""Whether the headers of an output are those that were written: each carries a digest of itself, and is made anew."""

from __future__ import annotations

from belay_cli import words
from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.formats.contents import Tensor
from belay_cli.formats.safetensors import WeightFile
from belay_cli.planning.layout import SEAL_PLACE, SEALED_BEGINS, PlannedTensor, header
from belay_cli.planning.policies import LAST
from belay_cli.record import Record
from belay_cli.storage.files import StoredFile, open_file
from belay_cli.storage.seal import seal_holds
from belay_cli.verification.checks import FAILED, HELD, NOT_CHECKED, Check


def check_headers(average: Checkpoint, record: Record) -> Check:
    """Every byte of the header of every weight file. Raises CheckpointError if one cannot be read."""
    for name, file in average.weights.named_files():
        with open_file(file.path) as opened:
            text = opened.read_at(0, file.data_start)
        if text != _made_anew(file) or not _is_whole(text, record):
            return Check("headers", FAILED, f"the header of {name} is not the one that was written")
    if not record.is_sealed:
        return Check("headers", NOT_CHECKED, "an older belay wrote it, with no digests of its headers")
    return Check("headers", HELD, f"every byte of {words.plural(len(average.files), 'header')}")


def _is_whole(text: bytes, record: Record) -> bool:
    if text.startswith(SEALED_BEGINS, 8):
        return seal_holds(text, SEAL_PLACE)
    return not record.is_sealed


def _made_anew(file: StoredFile) -> bytes | None:
    """The header of a file from what was read in it; None if that cannot be written down."""
    tensors = file.tensors if isinstance(file, WeightFile) else ()
    try:
        return header([planned(tensor) for tensor in tensors], file.metadata)
    except UnicodeEncodeError:  # half a character, which JSON can say by an escape
        return None


def planned(tensor: Tensor) -> PlannedTensor:
    """A tensor of an output as the plan had it, as far as a header tells of it."""
    name, dtype, shape, begin, nbytes, _ = tensor
    return PlannedTensor(name, LAST, dtype, dtype, shape, tensor.elements, nbytes, offset=begin)
