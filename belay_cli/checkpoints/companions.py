"""The files beside the weights: what a loader needs is copied, what it might miss is named, the rest is the trainer's.

The names come from what these save: transformers, tokenizers, sentencepiece and tiktoken; LitGPT, Lightning, nanotron,
OLMo, NeMo, Meta's and Mistral's releases; fairseq, ESPnet, icefall, WeNet, FunASR and SpeechBrain; fastText.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from belay_cli.checkpoints.checkpoint import Checkpoint
from belay_cli.checkpoints.order.names import names_a_checkpoint
from belay_cli.checkpoints.order.steps import TRAINER_STATE
from belay_cli.formats import SUFFIX
from belay_cli.storage.files import AnyPath

# Configurations, code, templates, and tokenizers whatever they are called.
_NEEDED_SUFFIX = re.compile(
    r".+\.(json|ya?ml|toml|gin|cfg|conf|ini|py|jinja2?"
    r"|model|spm|bpe|codes|tiktoken|vocab|wordpiece|ftz|mvn|cmvn)",
    re.IGNORECASE,
)
# Word lists and statistics, which have common suffixes or none: vocab.txt, dict.en.txt, lang_char.txt, global_cmvn.
_NEEDED_STEM = re.compile(
    r"(.*[-_.])?((vocab|vocabulary|dict|dictionary|lexicon|merges|tokens|words|phones|phonemes|units|labels|classes)"
    r"([-_.].*)?\.txt|vocab|merges|lang_char\.txt|label_encoder\.txt|requirements\.txt"
    r"|cmvn(\.(txt|ark|npy|npz))?|(feats|mel|norm|pitch|energy)_stats\.(npy|npz))|(LICENSE|NOTICE).*",
    re.IGNORECASE,
)
# What a trainer keeps for itself, and what describes the last checkpoint only.
_NOT_NEEDED = re.compile(
    rf"{re.escape(TRAINER_STATE)}|.+\.(safetensors|bin)\.index(\.\w+)?\.json|belay\.json"
    r"|(all|train|eval|test|predict)_results\.json|training_args.*",
    re.IGNORECASE,
)
# What nobody misses: weights, of which others speak, the state of a training, its logs and pictures.
_EXPECTED = re.compile(
    r".+\.(safetensors|bin|pt|pth|ckpt|tar|distcp|h5|msgpack|gguf|ggml|onnx|ot|nemo|pdparams|pdopt|npz|mlmodel)"
    r"|.+\.(log|out|err|jsonl|tfevents|tmp|lock|pid|swp|bak|md|rst|pdf|html|png|jpe?g|gif|svg|webp|mp4|wav|sh|ipynb)"
    r"|(.*[-_])?(optimizer|optim|scheduler|rng|random|scaler|sampler|trainer|dataloader)([-_.].*)?"
    r"|(.*[-_.])?(logs?|loss(es)?|metrics?|progress|results?|history|stdout|stderr|tfevents|nohup)([-_.].*)?"
    r"|latest|last|latest_checkpointed_iteration\.txt|latest_iteration|last_checkpoint|checkpoint|done|_?success",
    re.IGNORECASE,
)
# Names that people give to what must not leave their machine.
SECRET_NAMES = re.compile(
    r"(.*[-_.])?(secret|credential|password|passwd|api_?key|access_?key)s?(\..*)?"
    r"|(.*[-_.])?(token(\.(json|txt|ya?ml|toml|ini|cfg))?|tokens)|auth\.(json|toml|ya?ml)|kubeconfig"
    r"|.*service[-_]?account.*\.(json|ya?ml)|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|keystore|kdbx)"
    r"|\.?(netrc|pypirc|npmrc|htpasswd)|\.env.*|.*\.env",
    re.IGNORECASE,
)
_LOGS = re.compile(r"logs?|wandb|tensorboard|tb_logs|lightning_logs|mlruns|runs|samples|profile", re.IGNORECASE)
CARD = "README.md"
_LARGEST_CARD = 1_000_000  # bytes
LARGEST = 100_000_000  # bytes of a companion: tokenizers have thirty million, and more than this is data
_DEPTH = 2  # 1_Pooling/config.json, additional_chat_templates/name.jinja
_NAMED = 5  # files in a note


class Companions(NamedTuple):
    """Names relative to the directory, `/` between, in order.

    `copied`; `outside`: links that lead elsewhere; `missed`: what a loader might miss, each as text that says why it is
    not copied.
    """

    copied: list[str]
    outside: list[str]
    missed: list[str]

    @property
    def notes(self) -> list[str]:
        """One note about what a loader might miss, if there is any."""
        if not self.missed:
            return []
        more = len(self.missed) - _NAMED
        names = ", ".join(self.missed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        verb = "is" if len(self.missed) == 1 else "are"
        return [f"{names} {verb} not copied: copy by hand what a loader needs"]


def companions(directory: AnyPath, taken: Collection[str] = (), folders: Collection[str] = ()) -> Companions:
    """What lies beside the weights in a directory.

    taken: the names of the files that hold them; folders: those inside it that hold some of them, and no other models.
    A link is followed inside the directory and into the cache of the Hub's client, which keeps its files as links; any
    other would let a downloaded directory pick files of this machine.
    """
    within = roots(directory)
    found = Companions([], [], [])
    for name, path in sorted(_walk(directory, _DEPTH, folders)):
        if name in taken:
            continue
        reason = _reason_to_leave(path) if _is_unicode(name) else " (its name is no Unicode)"
        if reason is not None:
            found.missed.append(_shown(name) + reason)
        elif not any(path.resolve().is_relative_to(root) for root in within):
            found.outside.append(name)
        elif path.stat().st_size > LARGEST:
            found.missed.append(f"{_shown(name)} (over {LARGEST // 1_000_000} MB)")
        else:
            found.copied.append(name)
    return found


def companions_above(checkpoint: Checkpoint) -> list[str]:
    """A note about companions that lie in the checkpoint's directory, where its weights lie alone in a folder of it."""
    path, inner = checkpoint.path, checkpoint.directory
    if inner is None or path == inner or companions(inner).copied:
        return []
    names = [name for name in companions(path).copied if "/" not in name]
    return Companions([], [], [_shown(name) for name in names]).notes


def is_companion(name: str) -> bool:
    """Whether a file of this name, without its directory, is one that a loader needs."""
    needed = _NEEDED_SUFFIX.fullmatch(name) or _NEEDED_STEM.fullmatch(name)
    return needed is not None and not _NOT_NEEDED.fullmatch(name) and not SECRET_NAMES.fullmatch(name)


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


def _walk(directory: AnyPath, depth: int, folders: Collection[str], inside: str = "") -> Iterator[tuple[str, AnyPath]]:
    """Every file that is to be copied or named. Inside folders, files of unknown kinds are the trainer's."""
    for entry in directory.iterdir():
        if entry.name.startswith((".", "__pycache__")):
            continue
        if entry.is_file():
            if is_companion(entry.name) or _might_be_missed(entry.name, at_top=not inside):
                yield inside + entry.name, entry
        elif depth > 0 and entry.is_dir() and _may_hold_companions(entry, inside + entry.name in folders):
            yield from _walk(entry, depth - 1, folders, f"{inside}{entry.name}/")


def _might_be_missed(name: str, *, at_top: bool) -> bool:
    if SECRET_NAMES.fullmatch(name):
        return True
    return at_top and not _NOT_NEEDED.fullmatch(name) and not _EXPECTED.fullmatch(name)


def _reason_to_leave(path: AnyPath) -> str | None:
    """Why a file is not copied, by its name, as it is said in brackets; None for one that a loader needs."""
    if SECRET_NAMES.fullmatch(path.name):
        return " (a secret by its name)"
    return None if is_companion(path.name) else ""


def _may_hold_companions(directory: AnyPath, is_taken: bool) -> bool:
    if directory.is_symlink() or _LOGS.fullmatch(directory.name):
        return False
    return is_taken or not _is_a_model(directory)


def _is_a_model(directory: AnyPath) -> bool:
    return names_a_checkpoint(directory.name) or any(e.name.endswith(SUFFIX) for e in directory.iterdir())


def roots(directory: AnyPath) -> list[AnyPath]:
    """Where links in a directory may lead: inside it, and into the cache of the Hub's client."""
    found = [directory.resolve()]
    if directory.absolute().parent.name == "snapshots":  # models--org--name/snapshots/<commit>, blobs beside
        found.append((directory.absolute().parent.parent / "blobs").resolve())
    return found


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _shown(name: str) -> str:
    """A name as text for one line, whatever characters it has."""
    return name if name.isprintable() else repr(name)
