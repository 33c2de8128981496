"""Parts of tensors: files that hold what one rank of several had. An average of them is no model.

Their names are all that shows it: the parts of a tensor have the names, and often the shapes, of a series. So a rank's
number in a name is looked at together with the names beside it. One file of rank 0 alone is a whole model: of a run
on one device, or of a trainer that saves what is the same on all ranks only once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from belay_cli.checkpoints.order.pieces import RANK_WORDS
from belay_cli.errors import CheckpointError
from belay_cli.storage.files import AnyPath


class Rank(NamedTuple):
    """A name that states a rank: with stars for its numbers, and the numbers (one for each kind of parallelism)."""

    template: str
    numbers: tuple[int, ...]


class Trainer(NamedTuple):
    """The names of its rank files; the way from them to a whole model."""

    names: re.Pattern[str]
    mend: str


_AS_WRITTEN = "put them together first, as the code that wrote them does"
_MEGATRON = "convert them first: tools/checkpoint/convert.py of Megatron-LM, with a saver for Hugging Face"

TRAINERS = (
    Trainer(re.compile(r"consolidated"), "put them together first: convert_llama_weights_to_hf.py of transformers"),
    Trainer(
        re.compile(r"zero_pp_rank"), "put them together first: python zero_to_fp32.py RUN OUT --safe_serialization"
    ),
    Trainer(
        re.compile(r"model_states\.pt$"),
        "put them together first: tools/convert_checkpoint/deepspeed_to_transformers.py of Megatron-DeepSpeed",
    ),
    Trainer(re.compile(r"world_size_\d+"), "merge them first: python -m verl.model_merger merge"),
    Trainer(re.compile(r"ep\d+-ba\d+"), "save whole checkpoints: state_dict_type: full in Composer's FSDP config"),
    Trainer(re.compile(r"shard|model_part"), "put them together first: FSDP.consolidate_shard_weights of fairscale"),
    Trainer(re.compile(r"distcp$"), "its directory is the checkpoint"),
    Trainer(re.compile(r"[tp]p-rank-\d+-of-\d"), _AS_WRITTEN),  # nanotron
    Trainer(re.compile(r"(?<![a-z])[mtp]p[-_]?(?:rank)?[-_]?\d"), _MEGATRON),
    Trainer(re.compile(r"\d-of-\d"), _AS_WRITTEN),
)
_ANY_TRAINER = (
    "put them together first (FSDP: accelerate merge-weights RUN OUT), or save the whole: "
    "get_model_state_dict with StateDictOptions(full_state_dict=True)"
)

# Where a rank's number stands: Megatron (also with pipeline and expert), DeepSpeed, FSDP, Composer; the layers of
# Megatron-DeepSpeed; Llama; fairscale; fairseq; torch.distributed.checkpoint; short names of kinds of parallelism.
_NUMBER = re.compile(
    r"(?<![a-z])mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?"
    r"|(?<![a-z])layer_(\d+)-model_(\d+)(?=-model_states)"
    r"|^consolidated[.-](\d{2,3})(?=\.pth|$)"
    r"|(?:^|-|model[-_])shard[-_]?(\d+)(?=\.|$)"
    r"|(?<![a-z])model_part[-_]?(\d+)"
    r"|^__(\d+)_(\d+)(?=\.distcp)"
    rf"|(?<![a-z])(?:{RANK_WORDS})[-_]?(\d+)",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"rank|layer_|consolidated|shard|model_part", re.IGNORECASE)  # words that mean a rank by themselves

# One of several by number: 00-of-02. Epochs and steps are counted like this too.
_OF = re.compile(r"(?<![a-z\d])(\d{1,6})[-_.]?of[-_.]?(\d{1,6})(?!\d)", re.IGNORECASE)
_COUNTED = re.compile(r"(?:epoch|ep|step|iter|iteration|round|stage|day|fold|cycle|phase)s?[-_=. ]?$", re.IGNORECASE)
_PIECE = re.compile(r"(?:part|piece|shard|split|model|weights)[-_. ]?$", re.IGNORECASE)  # may be counted by one digit

# Shards whose index says what is whole.
_INDEXED = re.compile(r"-\d{5}-of-\d{5}(?:\.\w+)?\.(?:safetensors|bin)$")

# One of several, whatever lies beside it: by the number of them, or because ZeRO's files hold no whole tensor.
_ALWAYS = re.compile(r"zero_pp_rank|world_size_0*(?:[2-9]|[1-9]\d)|\*[-_.]?of[-_.]?\d", re.IGNORECASE)

# LoRA has a rank too: it is in names, and is a power of two as a rule.
_LORA = re.compile(r"lora|dora|adapter|lokr|loha|peft", re.IGNORECASE)
_BARE = re.compile(r"(?<!p[-_])(?<!model[-_])rank[-_]?\*", re.IGNORECASE)
_LORA_RANKS = {4, 8, 16, 32, 64, 128, 256, 512}

_ABSENT = (-1, -1)  # the span of a group that did not match
_LONGEST_NAME = 1024  # bytes; no file system has longer ones

Sets = dict[str, dict[str, tuple[int, ...]]]  # template -> name -> numbers


@lru_cache(maxsize=4096)
def rank_of_name(name: str) -> Rank | None:
    """The rank that a file's or directory's name states; None if it states none."""
    if len(name) > _LONGEST_NAME:
        return None
    spans = [found.span(which) for found in _NUMBER.finditer(name) for which in range(1, _NUMBER.groups + 1)]
    spans = [span for span in spans if span != _ABSENT]
    if not spans and (of := _one_of(name)):
        spans = [of.span(1)]
    if not spans:
        return None
    template = name
    for begin, end in reversed(spans):
        template = f"{template[:begin]}*{template[end:]}"
    return Rank(template, tuple(int(name[begin:end]) for begin, end in spans))


def _one_of(name: str) -> re.Match[str] | None:
    """Where a name says that it is one of several parts, as 00-of-02."""
    of = None if _INDEXED.search(name) else _OF.search(name)
    if of is None or len(of[1]) != len(of[2]) or int(of[2]) < 2 or int(of[1]) > int(of[2]):
        return None
    before = name[: of.start()][-20:]
    return None if _COUNTED.search(before) or (len(of[1]) == 1 and not _PIECE.search(before)) else of


def are_parts(template: str, ranks: Iterable[tuple[int, ...]]) -> bool:
    """Whether the names of one template, with these ranks, are parts of one model."""
    known = set(ranks)
    if _ALWAYS.search(template):
        return True
    if any(not any(rank) for rank in known):
        return len(known) > 1
    if not _PLAIN.search(template) or _LORA.search(template):
        return False
    return not (_BARE.search(template) and all(set(rank) <= _LORA_RANKS for rank in known))


def parts_among(names: Iterable[str]) -> list[str]:
    """Those of the names in one directory that are parts, the first set of them; empty if there are none."""
    return next((list(found) for template, found in _sets(names).items() if are_parts(template, found.values())), [])


def _sets(names: Iterable[str]) -> Sets:
    sets: Sets = {}
    for name in sorted(names):
        if rank := rank_of_name(name):
            sets.setdefault(rank.template, {})[name] = rank.numbers
    return sets


def whole_alone(names: Iterable[str]) -> set[str]:
    """Those of the names in one directory that state a rank and are whole all the same."""
    found = _sets(names).items()
    return {name for template, ranks in found if not are_parts(template, ranks.values()) for name in ranks}


def refuse_parts_in(directory: AnyPath, names: Iterable[str]) -> None:
    """Raise CheckpointError if these names in a directory are those of parts."""
    if parts := parts_among(names):
        shown = ", ".join(parts[:3]) + (" …" if len(parts) > 3 else "")
        what = f"{len(parts)} files of one rank each" if len(parts) > 1 else "a file of one rank"
        raise CheckpointError(f"holds {what}: {shown}", file=directory, hint=mend_for(parts[0]))


def refuse_parts(paths: Sequence[AnyPath]) -> None:
    """Raise CheckpointError for a path that is a part, by its name or its directory's and what lies beside it.

    The folder is looked into, since one part may be given without the others; only for names that state a rank.
    """
    wholes = [(path, path.absolute()) for path in paths]
    stating = [(path, entry) for path, whole in wholes for entry in (whole, whole.parent) if rank_of_name(entry.name)]
    given: dict[AnyPath, set[str]] = {}
    for _, entry in stating:
        given.setdefault(entry.parent, set()).add(entry.name)
    beside = {folder: _sets(names | _listed(folder)) for folder, names in given.items()}
    for path, entry in stating:
        rank = rank_of_name(entry.name)
        found = beside[entry.parent][rank.template] if rank else {}
        if rank and are_parts(rank.template, found.values()):
            other = next((f"; {name} holds what another had" for name in found if name != entry.name), "")
            raise CheckpointError(f"holds what one rank had{other}", file=path, hint=mend_for(entry.name))


def _listed(folder: AnyPath) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except (OSError, CheckpointError):
        return set()  # a server that lists nothing, or a path that is absent, which is said when it is opened


def mend_for(name: str) -> str:
    """The way from rank files of such a name to a whole model."""
    return next((trainer.mend for trainer in TRAINERS if trainer.names.search(name)), _ANY_TRAINER)
