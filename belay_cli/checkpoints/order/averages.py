"""Averages and EMAs: by their record, or by the names of their files."""

from __future__ import annotations

import re
from typing import NamedTuple

from belay_cli.checkpoints.order.names import names_a_checkpoint, stem_of
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
    "pool|pooling|pooled|time|len|length|loss|acc|accuracy|err|error|precision|recall|f|f1|score|rewards?|returns?|rew|q"
    "|val|valid|train|test|dev|eval|dice|m?iou|m?ap|auc|auroc|ppl|nll|wer|cer|bleu|rouge|psnr|ssim|snr|sdr|mae|r?mse|mrr"
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
    # Written in one word: AveragedModel (torch.optim.swa_utils).
    _named(r"(?:.*[-_.])?(?:averaged?|avg)(?:model|weights|net)(?:[-_.\d].*)?", "an average of checkpoints"),
    # Averages of all iterates (Polyak and Juditsky 1992), and of the latest (LAWA, arXiv 2209.14981).
    _named(r"(?:.*[-_.])?(?:polyak|lawa)(?:[-_.\d].*)?", "an average of iterates"),
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

# An average of scores, whose value follows: avg_q_0.8, loss_moving_avg=0.80; no avg_model_0.999.
_OF_WEIGHTS = "models?|checkpoints?|ckpts?|weights|net|epochs?|steps?|iters?|last|best|of"
_SCORED = re.compile(
    rf"(?<![a-z])(?:avg|average|ave)(?![a-z])(?![-_=](?:{_OF_WEIGHTS})(?![a-z]))[-_=a-z0-9]{{0,40}}?[-_=]?-?\d*\.\d",
    re.IGNORECASE,
)

# Names of directories that say it of all that lies in them; a run may be called after the EMA that it trains with.
_FOLDER = r"(?:weights|models?|checkpoints?|ckpts?|nets?)"
_OF_EMAS = re.compile(rf"emas?|{_FOLDER}[-_]?emas?|emas?[-_]?{_FOLDER}", re.IGNORECASE)
_OF_AVERAGES = re.compile(
    rf"(?:{_FOLDER}[-_]?)?(?:swa|avg|averaged?|averages|polyak|lawa|soups?)(?:[-_]?{_FOLDER})?", re.IGNORECASE
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


def lies_among_emas(path: AnyPath) -> bool:
    """Whether the directory that holds a checkpoint is one of EMAs by its whole name: `ema`, `weights_ema`."""
    return _OF_EMAS.fullmatch(_holder(path)) is not None


def _holder(path: AnyPath) -> str:
    """The name of the directory that holds a checkpoint, of which this may be a part: swa in swa/checkpoint-9/unet."""
    name = path.parent.name or path.absolute().parent.name
    return path.absolute().parent.parent.name if names_a_checkpoint(name) else name


def refuse_average_by_name(path: AnyPath) -> None:
    """Raise SeriesError for a checkpoint that is an average of others, by its own name or its directory's."""
    what = average_by_name(path.name if path.is_dir() else stem_of(path.name))
    if what is None and _OF_AVERAGES.fullmatch(_holder(path)):
        raise SeriesError(f"is an average, by the name of its directory, {_holder(path)}", file=path, hint=LEAVE_OUT)
    if what is not None:
        raise SeriesError(f"is {what}, by its name", file=path, hint=LEAVE_OUT)
