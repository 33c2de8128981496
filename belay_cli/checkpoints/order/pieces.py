"""A name in pieces: the stem of a file or the name of a directory, as literal text and numbers of known kinds.

Only integers count checkpoints. A loss, a fraction of an epoch, a date, a commit's hash, a version or the size of a
model is no counter, and neither is a number that stands behind a word such as `seed` or `rank`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, TypeAlias

MOST_DIGITS = 18  # of a number; fits a signed 64-bit integer


class Kind(Enum):
    """What a piece of a name is; the value is its name in messages."""

    TEXT = "text"
    NUMBER = "number"
    MEASURE = "decimal number"
    DATE = "date"
    HASH = "hash"
    SIZE = "size of a model"
    RANK = "rank"


class Piece(NamedTuple):
    """A piece of a name. `value`: of an integer, of a rank, or of a date that is written from the year on."""

    kind: Kind
    text: str
    value: int | None = None


Shape: TypeAlias = tuple[tuple[Kind, str], ...]

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"(?:[01]\d|2[0-3])[-_:.h]?[0-5]\d(?:[-_:.m]?[0-5]\d(?:[.,]\d{1,9})?)?(?!\d)"
_TIMES = rf"(?:[-_T. +]{_CLOCK}(?:Z|\+\d\d(?!\d))?)?"
_DATED = rf"{_YEAR}(?P<dash>[-_.]){_MONTH}(?P=dash){_DAY}(?!\d)"
_END = r"(?![0-9A-Za-z])(?!\.\d)(?![,']\d)"
_WORDED = rf"\d{{1,3}}(?:_\d{{3}})+{_END}|\d+(?:\.\d+)?(?:[kKmM]|[eE]\+?\d{{1,2}})?{_END}"
# Scores with a number in their names: mAP50, top1, F1, hits@10. What follows is the score.
_NUMBERED = r"(?i:(?:m?ap|top|rouge|hits?|ndcg|recall|precision|acc)[-@]?\d{1,3}|f-?\d)"

# In the order in which they are tried at each place of a name.
_PIECE = re.compile(
    rf"""
    (?P<step_word>(?i:steps?|iter(?:ation)?s?)[=_-]?)(?!{_YEAR}[-_.]{_MONTH}[-_.]{_DAY}(?!\d))(?P<steps>{_WORDED})
  | (?P<token_word>(?i:tokens?)[=_-]?)(?P<tokens>\d+(?:\.\d+)?[kKmMbBtT]?){_END}
  | (?P<hash>(?<![0-9A-Za-z])(?:
        [0-9a-fA-F]{{8}}(?:-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}
      | (?=[0-9a-fA-F]{{0,62}}(?:[a-fA-F]\d{{1,62}}[a-fA-F]|\d[a-fA-F]{{1,62}}\d))[0-9a-fA-F]{{7,64}})(?![0-9A-Za-z]))
  | (?P<date>(?<!\d)(?:{_DATED}{_TIMES}|{_YEAR}{_MONTH}{_DAY}(?:[-_T]?{_CLOCK}Z?|(?!\d)))
      | (?<![\d.]){_DAY}(?P<dot>[-_.]){_DAY}(?P=dot){_YEAR}(?!\d){_TIMES}
      | (?<![A-Za-z])(?:{_MONTHS}[-_]?{_DAY}(?!\d)|(?<!\d)\d{{1,2}}[-_]?{_MONTHS}[-_]?{_YEAR}(?!\d)){_TIMES})
  | (?P<clock>(?<!\d)(?:[01]\d|2[0-3])(?:(?P<colon>[-:])[0-5]\d(?P=colon)[0-5]\d|h[0-5]\d(?:m?[0-5]\d)?)(?![0-9A-Za-z]))
  | (?P<scored>(?<![A-Za-z]){_NUMBERED})(?=[-_=]\d)
  | (?P<version>(?<![A-Za-z])(?:
        (?i:v|ver|version|rev)[-_.]?\d+(?:\.\d+)*(?:[-.]\d{_END})?
      | (?i:sd|sdxl)\d\d?(?!\d))
      | \d+(?:\.\d+){{2,}})
  | (?P<part>\d+)(?=[-_]of[-_]\d)
  | (?P<scaled>\d+(?:\.\d+)?[kKM]{_END}|(?<![0-9A-Za-z.])[1-9](?:\.\d+)?[eE]\+?\d{{1,2}}{_END}
      | [1-9]\d{{0,2}}(?:,\d{{3}})+(?!\d))
  | (?P<told>\d+(?:\.\d+)?[kKmMbBtT])(?=[-_. ]?tok(?:en)?s?(?![a-z]))
  | (?P<signed>(?<=[=_-])-\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![0-9A-Za-z])|(?<=[=_-])-?(?:nan|inf)(?![0-9A-Za-z]))
  | (?P<size>\d+(?:\.\d+)?[bBmT]{_END})
  | (?P<measure>\d+(?:\.\d+)?[eE]-\d+|\d+\.\d+(?:[eE]\+?\d+)?|(?<=[=_-])\.\d+)
  | (?P<number>\d+)
    """,
    re.VERBOSE,
)
_SCALES = {"k": 3, "m": 6, "b": 9, "t": 12}

# Words after which a number tells things apart that are no moments of one run, or is a setting of the run; the first
# also at the end of a word, as in kfold.
_SETTINGS = re.compile(
    "[a-z]*(?:seed|fold|expert|client|replica|agent|trial)|run|exp|experiment|layers?|fp|bf|int|bit|bits|bs|lr|wd|dim"
    "|size|alpha|seq|len|ctx|of|site|split|cv|heads?|member|ensemble|hidden|width|depth|rs"
)
_SCORES = re.compile(
    "[a-z]*(?:loss|acc|accuracy|err|error|score|rewards?|precision|recall|return)|(?:win|hit|success|pass)?rate|ppl"
    "|perplexity|bleu|rouge|chrf|meteor|cider|wer|cer|m?ap|m?iou|auc|auroc|psnr|ssim|snr|sdr|fid|kid|lpips|mae|mse|rmse"
    "|dice|mrr|mcc|ndcg|nll|bpb|bpc|pesq|stoi|rew|returns|elo|success|val|best|metric"
    "|top|hits?"
)
_SCORE = re.compile(rf"(?<![A-Za-z]){_NUMBERED}[-_=]$")
# Words after which a number says which part of one checkpoint this is.
RANK_WORDS = "rank|tp|pp|mp|dp|gpu|cuda|device|node|proc|process|part|worker|chunk"
_RANKS = re.compile(f"{RANK_WORDS}|shard")
_COUNTED_OF = re.compile("epochs?|ep|steps?|iters?|iterations?|rounds?|stages?|days?")
_LAST_WORD = re.compile(r"([A-Za-z]+)([^A-Za-z0-9]*)$")
_LONGEST_WORD = 40  # letters; bounds the search for the last one


@lru_cache(maxsize=8192)
def pieces(name: str) -> tuple[Piece, ...]:
    """A name in pieces; their texts together are the name, and no two texts stand side by side."""
    found: list[Piece] = []
    end = 0
    for match in _PIECE.finditer(name):
        _add_text(found, name[end : match.start()])
        _add(found, match)
        end = match.end()
    _add_text(found, name[end:])
    return tuple(found)


def _add_text(found: list[Piece], text: str) -> None:
    if found and found[-1].kind is Kind.TEXT:
        text = found.pop().text + text
    if text:
        found.append(Piece(Kind.TEXT, text))


def _add(found: list[Piece], match: re.Match[str]) -> None:
    for word, number in (("step_word", "steps"), ("token_word", "tokens")):
        if match[word] is not None:
            _add_text(found, match[word])
            found.append(_counted(match[number]))
            return
    text = match[0]
    if match["version"] is not None or match["scored"] is not None:
        _add_text(found, text)
    elif match["hash"] is not None or match["size"] is not None:
        found.append(Piece(Kind.HASH if match["hash"] is not None else Kind.SIZE, text))
    elif match["date"] is not None or match["clock"] is not None:
        found.append(Piece(Kind.DATE, text, _moment(text)))
    elif match["part"] is not None:
        counted = found and _COUNTED_OF.fullmatch(last_word(found[-1])[0])  # an epoch of several
        found.append(_counted(text) if counted else Piece(Kind.RANK, text, _integer(text)))
    elif match["told"] is not None:
        found.append(_counted(text))
    elif match["measure"] is not None or match["signed"] is not None:
        found.append(Piece(Kind.MEASURE, text))
    else:
        _add_number(found, text)


def _add_number(found: list[Piece], text: str) -> None:
    """A number is what the word before it says: a setting is a part of the text."""
    word, between = last_word(found[-1]) if found else ("", "")
    if _SETTINGS.fullmatch(word):
        _add_text(found, text)
    elif _SCORES.fullmatch(word) or (found and _SCORE.search(found[-1].text[-_LONGEST_WORD:])):
        found.append(Piece(Kind.MEASURE, text))
    elif _RANKS.fullmatch(word) or (word == "consolidated" and between == "."):
        found.append(Piece(Kind.RANK, text, _integer(text)))
    else:
        found.append(_counted(text))


def last_word(piece: Piece) -> tuple[str, str]:
    """The last word of a text, in lower case, and what stands behind it."""
    found = _LAST_WORD.search(piece.text[-_LONGEST_WORD:]) if piece.kind is Kind.TEXT else None
    return (found[1].lower(), found[2]) if found else ("", "")


def _counted(text: str) -> Piece:
    """`500`, `9_500`, `500k`, `1e5`: an integer, if it is one that a run can reach."""
    value = None if text.replace(".", "", 1).isdigit() and "." in text else _integer(text)
    if value is not None:
        return Piece(Kind.NUMBER, text, value)
    return Piece(Kind.HASH if text.isdigit() else Kind.MEASURE, text)


def _integer(text: str) -> int | None:
    plain = text.replace("_", "").replace(",", "")
    scale = _SCALES.get(plain[-1].lower(), 0)
    value = Decimal(plain[:-1] if scale else plain).scaleb(scale)
    if value >= 10**MOST_DIGITS or value != int(value):
        return None
    return int(value)


def _moment(text: str) -> int | None:
    """A date that is written from the year on, or a time, as a number that grows with it."""
    if text[0].isalpha() or not re.match(rf"{_YEAR}|\d\d[-:]\d\d[-:]\d\d$", text):
        return None
    return int(re.sub(r"\D", "", text)[:14].ljust(14, "0"))


def has_number(name: str) -> bool:
    """Whether an integer in a name could count checkpoints."""
    return any(piece.kind is Kind.NUMBER for piece in pieces(name))


def shape(name: str) -> Shape:
    """What names of one template have in common: their text, the settings and the size of the model, and the kinds of
    what stands between.

    A size behind the first number that counts is not that of a model, but counts tokens: step-50K-105b.
    """
    found = pieces(name)
    first = next((i for i, piece in enumerate(found) if piece.kind is Kind.NUMBER), 0)
    return tuple(
        (piece.kind, piece.text if piece.kind is Kind.TEXT or _is_the_same(found, i, first) else "")
        for i, piece in enumerate(found)
    )


def without_digits(name: str) -> str:
    """The name with 0 for every run of digits: what is left when nothing but its numbers changes."""
    return re.sub(r"\d+", "0", name)


def _is_the_same(found: tuple[Piece, ...], i: int, first: int) -> bool:
    """Whether a piece is the size of a model, or the value of a setting that is no integer: lr_1e-4."""
    if found[i].kind is Kind.SIZE:
        return i < first
    return found[i].kind is Kind.MEASURE and i > 0 and _SETTINGS.fullmatch(last_word(found[i - 1])[0]) is not None


def amounts(name: str, kinds: Collection[Kind]) -> list[Decimal]:
    """The numbers of these kinds in a name, decimals and sizes too; what is no finite number, as nan, is left out."""
    found = [_amount(piece) for piece in pieces(name) if piece.kind in kinds]
    return [amount for amount in found if amount is not None]


def _amount(piece: Piece) -> Decimal | None:
    if piece.value is not None:
        return Decimal(piece.value)
    scale = _SCALES.get(piece.text[-1].lower(), 0)
    try:
        found = Decimal(piece.text[:-1] if scale else piece.text).scaleb(scale)
    except ArithmeticError:
        return None
    return found if found.is_finite() else None
