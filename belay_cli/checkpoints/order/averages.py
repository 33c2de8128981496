"""Averages and EMAs: by their record, or by the names of their files."""

from __future__ import annotations

import re
from typing import NamedTuple

from belay_cli.checkpoints.order.names import stem_of
from belay_cli.errors import SeriesError
from belay_cli.storage.files import AnyPath


class Named(NamedTuple):
    """What averages of one origin are called, matched against a whole stem; and whose they are, in words."""

    stem: re.Pattern[str]
    what: str


def _named(pattern: str, what: str) -> Named:
    return Named(re.compile(pattern, re.IGNORECASE), what)


# What stands beside `avg` or `average` where that is a score or a layer.
_NO_WEIGHTS = (
    "pool|pooling|pooled|loss|acc|accuracy|precision|recall|f|score|reward|return|val|valid|dice|iou|wer|cer|bleu|psnr"
    "|time|len|length"
)
_AVERAGE = "(?:avg|averaged?|averages|averaging)"

_AVERAGES = (
    # egs/*/ASR/*/export.py and generate_averaged_model.py: epoch-30-avg-9.pt, iter-…-avg-….pt.
    _named(r"(?:.*[-_.])?(?:epoch|iter|checkpoint)-\d+-avg-\d+(?:[-_.].*)?", "an average of icefall"),
    # espnet2/main_funcs/average_nbest_models.py: valid.acc.ave.pth, valid.acc.ave_10best.pth.
    _named(r"(?:.*[-_.])?ave(?:_\d+best)?(?:\.\w+)?", "an average of the best epochs, of ESPnet"),
    # wenet/bin/average_model.py and its recipes: avg_30.pt, avg30.pt.
    _named(r"avg_?\d+(?:[-_.].*)?", "an average of WeNet"),
    # torch.optim.swa_utils and Lightning's StochasticWeightAveraging, as scripts name them: swa_model, net-swa.
    _named(r"swa(?:[-_.\d].*)?|.*[-_.]swa[-_.]?\d*", "an average of stochastic weight averaging"),
    # Written in one word: AveragedModel (torch.optim.swa_utils), Polyak's averages.
    _named(r"(?:.*[-_.])?(?:averaged?|avg)(?:model|weights|net)(?:[-_.\d].*)?", "an average of checkpoints"),
    _named(r"(?:.*[-_.])?polyak(?:[-_.\d].*)?", "an average of Polyak's kind"),
    # Model soups: greedy_soup.pt, model_soup.safetensors.
    _named(r"(?:.*[-_.])?soup(?:[-_.].*)?", "a soup of models"),
    # fairseq/scripts/average_checkpoints.py, timm's avg_checkpoints.py (averaged.pth), belay-average and the like.
    _named(
        rf"(?:(?!.*(?<![a-z])(?:{_NO_WEIGHTS})[-_.]?{_AVERAGE}(?![a-z])).*[-_.\d])?"
        rf"{_AVERAGE}(?![a-z])(?![-_.]?(?:{_NO_WEIGHTS})(?![a-z])).*",
        "an average of checkpoints",
    ),
)

LEAVE_OUT = "leave it out, or say --allow-averages"

# An average of scores: avg_train_loss_0.3, mAP_avg_0.8, loss_moving_avg=0.80.
_SCORED = re.compile(r"(?<![a-z])(?:avg|average|ave)(?![a-z])[-_=a-z0-9]{0,40}?[-_=]-?\d*\.\d", re.IGNORECASE)

# Names of directories that say it of all that lies in them; a run may be called after the EMA that it trains with.
_FOLDER = r"(?:weights|model|checkpoints?|ckpts?)"
_OF_EMAS = re.compile(rf"ema|{_FOLDER}[-_]ema|ema[-_]{_FOLDER}", re.IGNORECASE)
_OF_AVERAGES = re.compile(
    rf"swa|averaged?|averages|{_FOLDER}[-_](?:swa|averaged?|avg)|(?:swa|averaged?|avg)[-_]{_FOLDER}", re.IGNORECASE
)

# `ema` as a word: not in schema, cinema or gemma. EDM2 names its power function EMAs phema.
_EMA = re.compile(r"(?:^|[^a-z])(?:ph)?ema(?:[-_]?(?:only|model|weights|net))?(?=$|[^a-z])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?:EMA|Ema)(?![A-Za-z])|(?:EMA|Ema)(?=Model|Weights|Net)")
_NOT_EMA = re.compile(r"(?:^|[^a-z])(?:no|non|not|without|wo|pre|before)[-_]?ema(?=$|[^a-z])", re.IGNORECASE)
_LONGEST = 300  # letters of a name that are looked at: no file system has longer ones


def average_by_name(stem: str) -> str | None:
    """What a file's stem says that its weights are, if that is an average and no EMA: `an average of icefall`."""
    name = stem[-_LONGEST:]
    if _SCORED.search(name):
        return None
    return next((known.what for known in _AVERAGES if known.stem.fullmatch(name)), None)


def ema_by_name(stem: str) -> str | None:
    """`an EMA by its name`, if a file's stem says that: `ema_0.9999_010000`, `unet-EMA`, `phema-0000067-0.050`."""
    name = stem[-_LONGEST:]
    said = (_EMA.search(name) or _CAMEL.search(name)) and not _NOT_EMA.search(name)
    return "an EMA by its name" if said else None


def holds_emas(directory: AnyPath) -> bool:
    """Whether a directory is one of EMAs by its whole name: `ema`, `ema_weights`."""
    return _OF_EMAS.fullmatch(directory.absolute().name) is not None


def refuse_average_by_name(path: AnyPath) -> None:
    """Raise SeriesError for a checkpoint that is an average of others, by its own name or its directory's."""
    what = average_by_name(path.name if path.is_dir() else stem_of(path.name))
    above = path.absolute().parent
    if what is None and _OF_AVERAGES.fullmatch(above.name):
        raise SeriesError(f"is an average, by the name of its directory, {above.name}", file=path, hint=LEAVE_OUT)
    if what is not None:
        raise SeriesError(f"is {what}, by its name", file=path, hint=LEAVE_OUT)
