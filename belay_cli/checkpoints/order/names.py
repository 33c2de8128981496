"""What a name says: the step, the epochs it may start again in, and whether it is that of a checkpoint.

A name is the stem of a file or the name of a directory.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from belay_cli.checkpoints.order.pieces import Kind, Piece, has_number, last_word, pieces

_STEP_WORD = re.compile(r"(?:^|[^a-z])(?:global[_-]?)?(?:steps?|iter(?:ation)?s?)[=_-]?$", re.IGNORECASE)
# Words that number what a step may start again in.
_ROUND_WORD = re.compile(r"(?:^|[^a-z])(?:epochs?|ep|stage|phase|round|cycle)[=_-]?$", re.IGNORECASE)
_STEP_BEHIND = re.compile(r"[-_](?:steps?|iter(?:ation)?s?)(?:$|[-_].*)", re.IGNORECASE)

# A whole name of one of these and a number states a step. accelerate's checkpoint_3 counts saves, so `_` does not do.
_STEPPED = re.compile("checkpoint-|ckpt-|model-|weights-|pytorch_model-|adapter_model-")
_CHECKPOINT = re.compile("[a-z0-9][-_.]checkpoint-$|^[-_.]checkpoint-$")  # behind the name of a model or a run


@lru_cache(maxsize=8192)
def step_in_name(name: str) -> int | None:
    """The training step that a file's stem or a directory's name states, or None. Epochs and counts of saves are none.

    `step_1000`, `checkpoint-500`, `model-000500`, `iter200`, `global_step40`, `epoch=1-step=200`, `500k`.
    """
    stated = _stated(name)
    return stated.value if stated else None


def groups_digits(name: str) -> bool | None:
    """Whether the step in a name is spelled as `9_500` is; None if that cannot be told, below a thousand."""
    stated = _stated(name)
    return None if stated is None or (stated.value or 0) < 1000 else "_" in stated.text


def last_thousands(name: str) -> str | None:
    """The last three digits of a step that is spelled as `9_500` is; None for others."""
    stated = _stated(name)
    return stated.text.rpartition("_")[2] if stated is not None and "_" in stated.text else None


def numbers_before_step(name: str) -> list[int]:
    """The integers in a name before the step that it states: of an epoch or a run, and never a score of that step."""
    found, stated = pieces(name), _stated(name)
    before = found[: found.index(stated)] if stated else ()
    return [piece.value for piece in before if piece.kind is Kind.NUMBER and piece.value is not None]


def _stated(name: str) -> Piece | None:
    found = pieces(name)
    stated = [n for n in _after(found, _STEP_WORD) if _ends(found, n)] or _before(found, _STEP_BEHIND)
    if stated or _is_stepped(found):
        return stated[-1] if stated else found[-1]
    return found[-5] if _is_of_onetrainer(found) else None


def _is_of_onetrainer(found: tuple[Piece, ...]) -> bool:
    """Whether these end in a time, `-save-` or `-backup-`, and OneTrainer's step, epoch and step of that epoch."""
    kinds = [piece.kind for piece in found[-7:]]
    texts = [piece.text for piece in found[-6::2]]
    number, text = Kind.NUMBER, Kind.TEXT
    return kinds == [Kind.DATE, text, number, text, number, text, number] and (
        texts in (["-save-", "-", "-"], ["-backup-", "-", "-"])
    )


def _is_stepped(found: tuple[Piece, ...]) -> bool:
    """Whether these are a whole name such as `checkpoint-500` or `500k`, or end as `llama_7b_checkpoint-500` does."""
    if not found or found[-1].kind is not Kind.NUMBER:
        return False
    if len(found) == 1:
        return found[0].text[-1] in "kKM"
    before = found[-2].text.lower()
    return (len(found) == 2 and bool(_STEPPED.fullmatch(before))) or (
        bool(_CHECKPOINT.search(before)) and not any(is_round_word(piece.text) for piece in found[:-2])
    )


def is_round_word(text: str) -> bool:
    """Whether a text ends in a word that numbers epochs, stages or the like."""
    return _ROUND_WORD.search(text) is not None


def rounds_in_name(name: str) -> tuple[int, ...]:
    """The numbers of epochs, stages and phases that a name states: what a step may start again in."""
    return tuple(piece.value or 0 for piece in _after(pieces(name), _ROUND_WORD))


def _after(found: tuple[Piece, ...], word: re.Pattern[str]) -> list[Piece]:
    """The integers that stand behind a word."""
    return [number for text, number in pairwise(found) if number.kind is Kind.NUMBER and word.search(text.text)]


def _before(found: tuple[Piece, ...], word: re.Pattern[str]) -> list[Piece]:
    """The integers before a word, as in rl_model_1000_steps."""
    return [number for number, text in pairwise(found) if number.kind is Kind.NUMBER and word.fullmatch(text.text)]


# Words that may follow a number without anything between; other letters may be a scale that is not known.
_GOES_ON = re.compile(r"(?:epochs?|ep|iters?|tok(?:en)?s?|loss|val|acc|rank|ema|of)(?![a-z])|[^A-Za-z]", re.IGNORECASE)


def _ends(found: tuple[Piece, ...], number: Piece) -> bool:
    """Whether a number ends where it seems to, by the pieces behind it: not in 500thousand, 10k5, 1'000 or 1_5k."""
    after = found[found.index(number) + 1 :]
    if not after or after[0].kind is not Kind.TEXT:
        return True
    if len(after) > 1 and after[1].kind is Kind.NUMBER and after[0].text in (",", "'", "_"):
        return after[0].text == "_" and after[1].text[-1] not in "kKM"
    return _GOES_ON.match(after[0].text) is not None


# The words of which the names of checkpoints inside a run are made; a number after one of the first counts them.
_COUNTERS = re.compile(
    "step|steps|iter|iters|iteration|iterations|epoch|epochs|ep|ba|checkpoint|checkpoints|ckpt|ckpts|save|saves"
)
_COMPANY = re.compile("global|train|model|weights|pytorch|adapter|stage|tokens|token|rank|at")


@lru_cache(maxsize=8192)
def names_a_checkpoint(name: str) -> bool:
    """Whether a directory of this name inside a run is one of its checkpoints: the whole name must fit.

    `step-400.backup`, `step-500.tmp` and `global_step100-hf` are none.
    """
    found = pieces(name)
    if _is_stepped(found):
        return True
    words = [re.findall("[A-Za-z]+", piece.text.lower()) for piece in found if piece.kind is Kind.TEXT]
    plain = all(_COUNTERS.fullmatch(word) or _COMPANY.fullmatch(word) for text in words for word in text)
    return plain and bool(found) and found[-1].kind is not Kind.TEXT and counts(name)


def counts(name: str) -> bool:
    """Whether a number in a name stands behind a word that counts checkpoints, such as `epoch` or `ckpt`."""
    pairs = pairwise(pieces(name))
    return any(number.kind is Kind.NUMBER and _COUNTERS.fullmatch(last_word(text)[0]) for text, number in pairs)


def naming(own: str, *above: str, is_file: bool = True) -> str:
    """The name that says which checkpoint this is: its own, or that of what holds it if that says it alone.

    `checkpoint-500/unet`, `003000/pretrained_model`, `global_step_10/actor/huggingface`. The number of a directory
    may be that of a part, as in `checkpoint-500/text_encoder_2`: there a step above it counts.
    """
    if step_in_name(own) is not None or names_a_checkpoint(own) or (is_file and has_number(own)):
        return own
    told = next((name for name in above if _tells(name)), own)
    return told if step_in_name(told) is not None or not has_number(own) else own


def _tells(name: str) -> bool:
    bare = [piece.kind for piece in pieces(name)] == [Kind.NUMBER]
    return bare or names_a_checkpoint(name) or step_in_name(name) is not None


def stem_of(name: str) -> str:
    """A file's name without its suffix; what follows the dot of a decimal number is none."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot and not ending.isdigit() else name
