"""The record: what an output says of itself, enough to verify it and to repeat it. One writer, and one parser.

A `Record` is made once, by the plan. It is written as text into the metadata of every weight file, under keys that
begin with `belay.`, and as belay.json into an output directory; both are parsed here, for whoever asks. Nothing in it
depends on the machine, the time, or what was typed: the same inputs, options and versions give the same bytes.
`docs/provenance.md` describes the schema.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from belay_cli._version import __version__
from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.checkpoints.checkpoint import BESIDE as BESIDE
from belay_cli.checkpoints.checkpoint import DOCUMENT as DOCUMENT
from belay_cli.checkpoints.checkpoint import document_beside as document_beside
from belay_cli.errors import BelayError, CheckpointError
from belay_cli.rules import Rule, Summary, recorded, summarize
from belay_cli.storage.files import is_plain_name
from belay_cli.storage.json_file import LARGEST
from belay_cli.storage.remote.path import RemotePath
from belay_cli.storage.seal import ZEROS, seal_holds, sealed

ACCUMULATION = "float64"
LOCAL = ".belay/local.json"  # where the inputs lay; never published
LOCAL_BEGINS = b'{\n  "sha256": "'  # then its seal; so does a record that lies beside the weights alone

PREFIX = "belay."  # of its keys in the metadata of a weight file
HEADER = f"{PREFIX}header"  # the seal of a header, and no part of the record
_TEXTS = ("version", "command", "dtype", "accumulation", "lora")  # those whose value is text and not JSON

# What a record says of the sweep that chose it: the metric, its value here and at the last checkpoint, on the data that
# it was chosen by and on the confirming one; whether high is good; and of how many it is the best.
CHOSEN: dict[str, type] = {
    "metric": str,
    "higher_is_better": bool,
    "candidates": int,
    "score": float,
    "standard_error": float,
    "last_score": float,
    "confirmed": float,
    "last_confirmed": float,
}

_OPENING = ("subfolder", "state_key", "source")  # in this order they end the options of a command
_POLICIES = ("average", "last", "drop")

# As long as a real fingerprint or digest, so that sizes are known before anything is read.
PLACEHOLDER = ZEROS

_SUM_TOLERANCE = 1e-6  # what a record's coefficients may miss 1 by
_LARGEST_COEFFICIENT = 1e6
_LARGEST_TICK = 2**53


@cache
def versions() -> dict[str, str]:
    """Of the libraries that the bytes may depend on; without the suffix that names a build of torch (`+cpu`)."""
    from importlib.metadata import version  # here, as `belay --version` should not wait for it

    return {name: version(name).partition("+")[0] for name in ("torch", "safetensors")}


@dataclass(frozen=True)
class RecordedCheckpoint:
    """One checkpoint as an output records it; `repo` and `revision` (a commit) only of one on the Hub."""

    name: str
    step: int | None
    tick: int
    coefficient: float
    bytes: int
    fingerprint: str
    repo: str | None = None
    revision: str | None = None

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        of_the_hub = {"repo": self.repo, "revision": self.revision} if self.repo else {}
        plain = ("name", "step", "tick", "coefficient", "bytes", "fingerprint")
        return {name: getattr(self, name) for name in plain} | of_the_hub


@dataclass(frozen=True)
class Record:
    """What an output says of itself.

    `unit` is that of ticks; `policies` are the globs of `average`, `last` and `drop`; `dtype` is a name as --dtype has
    it; `copies` are the files beside the weights, relative to the directory -> the SHA-256 of their content in hex, or
    names alone as belay 0.1 wrote them; `aliases`: names that share the bytes of another -> that one; `components` are
    the folders of an output that is several models; `left_out` says where other weights lay, in the last checkpoint or
    beside it; `chosen`: how a sweep came to choose it, by the names in `CHOSEN`; `digests` are SHA-256 in hex, by the
    names of tensors. `files`: of an output that has the files of its last checkpoint, the digest of each, taken over
    blocks as `storage.blocks` says; it has no others.
    """

    rule: Rule
    unit: str
    series: tuple[RecordedCheckpoint, ...]
    policies: Mapping[str, tuple[str, ...]]
    dtype: str
    command: str
    copies: Mapping[str, str] | tuple[str, ...] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    lora: str | None = None
    left_out: tuple[str, ...] = ()
    chosen: Mapping[str, Any] | None = None
    version: str = __version__
    accumulation: str = ACCUMULATION
    versions: Mapping[str, str] = field(default_factory=versions)
    digests: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def ticks(self) -> list[int]:
        """[T], rising."""
        return [checkpoint.tick for checkpoint in self.series]

    @property
    def coefficients(self) -> list[float]:
        """[T], sum 1."""
        return [checkpoint.coefficient for checkpoint in self.series]

    @property
    def names(self) -> list[str]:
        """[T], of the checkpoints."""
        return [checkpoint.name for checkpoint in self.series]

    @property
    def summary(self) -> Summary:
        """Mean lag and effective number of checkpoints."""
        return summarize(np.array(self.coefficients), self.ticks)

    @property
    def opening(self) -> dict[str, str]:
        """How the checkpoints were opened, by the fields of Selection: it is said in the canonical command."""
        found, said = {}, shlex.split(self.command)
        said = said[: len(said) - len(self.series)]
        said = said[:-1] if said[-1:] == ["--"] else said
        for name in reversed(_OPENING):
            if said[-2:-1] == [_flag(name)]:
                found[name] = said[-1]
                said = said[:-2]
        return found

    def with_fingerprints(self, fingerprints: Sequence[str]) -> Record:
        """The same with the fingerprints [T] of its checkpoints."""
        both = zip(self.series, fingerprints, strict=True)
        return replace(self, series=tuple(replace(checkpoint, fingerprint=mark) for checkpoint, mark in both))

    def with_digests(self, digests: Mapping[str, str]) -> Record:
        """The same with the digests of its tensors."""
        return replace(self, digests=dict(digests))

    def with_copies(self, copies: Mapping[str, str]) -> Record:
        """The same with the digests of its copies."""
        return replace(self, copies={name: copies[name] for name in self.copies})

    @property
    def is_sealed(self) -> bool:
        """Whether the belay that wrote it took digests of the copies, and sealed headers and local.json."""
        return not isinstance(self.copies, tuple)

    @property
    def is_same(self) -> bool:
        """Whether the output has the files of its last checkpoint."""
        return bool(self.files)

    def with_files(self, digests: Mapping[str, str]) -> Record:
        """The same with the digests of its files."""
        return replace(self, files={name: digests[name] for name in self.files})

    def values(self) -> dict[str, Any]:
        """Everything but the digests, as JSON values, in the order in which it is written."""
        some: dict[str, Any] = {"components": list(self.components), "lora": self.lora}
        some |= {"left_out": list(self.left_out), "chosen": dict(self.chosen or {})}
        some |= {"format": "same" if self.is_same else "", "files": dict(self.files)}
        return {
            **{name: value for name, value in some.items() if value},
            "version": self.version,
            "rule": {"method": self.rule.method, "unit": self.unit, **self.rule.parameters()},
            "series": [checkpoint.values() for checkpoint in self.series],
            "policies": {name: list(globs) for name, globs in self.policies.items()},
            "dtype": self.dtype,
            "accumulation": self.accumulation,
            "command": self.command,
            "copies": list(self.copies) if isinstance(self.copies, tuple) else dict(self.copies),
            "aliases": dict(self.aliases),
            "versions": dict(self.versions),
        }

    def entries(self) -> dict[str, str]:
        """The metadata of every weight file, but for its digests."""
        found: dict[str, str] = {}
        for name, value in self.values().items():
            if name == "version":
                found["format"] = "pt"  # which loaders want to see in any safetensors file
            found[PREFIX + name] = value if name in _TEXTS else _compact(value)
        return found

    def digest_entry(self, names: Iterable[str]) -> dict[str, str]:
        """The metadata entry with the digests of the tensors of one file."""
        return {f"{PREFIX}digests": _compact({name: self.digests[name] for name in names})}

    def document(self) -> bytes:
        """belay.json."""
        return document(document_values(self.values(), self.digests))


def document_values(values: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """What belay.json says: `schema`, the values of a record, and all digests in the order of their names."""
    schema = 1 if isinstance(values.get("copies"), list) else 2
    return {"schema": schema, **values, "digests": {name: digests[name] for name in sorted(digests)}}


def document(values: Mapping[str, Any]) -> bytes:
    """The text of belay.json; with a seal where it is the only record, as nothing else says the same."""
    alone = values.get("format") == "same"
    seal = {"sha256": ZEROS} if alone else {}
    text = (json.dumps({**seal, **values}, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return sealed(text, len(LOCAL_BEGINS)) if alone else text


def recorded_checkpoints(series: Series, coefficients: Iterable[float]) -> tuple[RecordedCheckpoint, ...]:
    """The checkpoints of an output that is still to be made, their fingerprints placeholders. coefficients: [T]."""
    parts = zip(series.checkpoints, series.ticks, coefficients, strict=True)
    return tuple(
        RecordedCheckpoint(c.name, c.step, tick, float(coefficient), c.bytes, PLACEHOLDER, *_origin(c))
        for c, tick, coefficient in parts
    )


def _origin(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
    """Of a checkpoint on the Hub: the repository, and the commit that its revision was."""
    path = checkpoint.path
    if not isinstance(path, RemotePath) or path.repo is None or path.commit is None:
        return None, None
    return path.repo, path.commit


def canonical_command(series: Series, rule: Rule, options: Sequence[str]) -> str:
    """The command that makes the same bytes: parameters as numbers, checkpoints by name, whatever was typed.

    options: what the bytes of the tensors depend on beside the rule and the series, as command-line words.
    """
    said = ["belay", "average", "--method", rule.method, "--unit", series.unit, *rule.arguments(), *options]
    said += ["--order", "given"] if series.selection.order == "given" else []
    said += ["--allow-averages"] if series.selection.allow_averages else []
    for name in _OPENING:
        value = getattr(series.selection.opening, name)
        said += [_flag(name), value] if value is not None else []
    names = [checkpoint.name for checkpoint in series.checkpoints]
    said += ["--"] if any(name.startswith("-") for name in names) else []
    return shlex.join(said + names)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def local_document(series: Series, card: str | None) -> bytes:
    """.belay/local.json: the paths of the checkpoints on this machine, so that they are found again, and their card."""
    paths = [str(checkpoint.path.absolute()) for checkpoint in series.checkpoints]
    content = {"sha256": ZEROS, "checkpoints": paths, "card": card}
    return sealed((json.dumps(content, indent=2) + "\n").encode(), len(LOCAL_BEGINS))  # a path may be no Unicode


def read_record(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> Record:
    """The record in the metadata of one weight file. Raises CheckpointError if there is none, or it was damaged."""
    if f"{PREFIX}training" in metadata:
        raise CheckpointError(
            "is an average that was kept in training: there are no checkpoints to make it again from",
            file=path,
            hint="what made it is in its metadata, under belay.training",
        )
    if f"{PREFIX}version" not in metadata:
        moved = f"if it was, its record is {document_beside(Path(path)).name}, which has to lie beside it"
        raise CheckpointError(
            "was not written by belay: it has no record of how it was made",
            file=path,
            hint=None if Path(path).suffix == ".safetensors" else moved,
        )
    return parse(told_by(metadata, path), path)


def told_by(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in the metadata of one weight file as JSON values, unchecked. Raises CheckpointError."""
    ours = {key: value for key, value in metadata.items() if key.startswith(PREFIX) and key != HEADER}
    told = {key.removeprefix(PREFIX): value for key, value in ours.items()}
    try:
        return {name: value if name in _TEXTS else _loaded(value) for name, value in told.items()}
    except (ValueError, RecursionError) as error:
        raise _damaged(error, path) from error


def _loaded(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError for a key that is there twice, of which readers take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key in it is there twice")
    return found


def parse(values: Mapping[str, Any], path: str | os.PathLike[str]) -> Record:
    """The record of a belay.json, or of metadata whose JSON was read. Raises CheckpointError if it cannot be one."""
    try:
        record = _parsed(values)
        _check(record)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, BelayError) as error:
        raise _damaged(error, path) from error
    return record


def _damaged(error: Exception, path: str | os.PathLike[str]) -> CheckpointError:
    what = "it is none that belay writes"
    if isinstance(error, KeyError) and error.args:
        what = f"'{error.args[0]}' is missing"
    elif isinstance(error, ValueError | BelayError):
        what = str(error)
    return CheckpointError(
        f"has a damaged record of how it was made: {what}", file=path, hint="make it again from its checkpoints"
    )


def _parsed(values: Mapping[str, Any]) -> Record:
    rule = values["rule"]
    unit = _one_of(rule["unit"], ("step", "checkpoint"), "its unit")
    parameters = {name: value for name, value in rule.items() if name not in ("method", "unit")}
    return Record(
        rule=recorded(rule["method"], parameters),
        unit=unit,
        series=tuple(_parsed_checkpoint(one) for one in values["series"]),
        policies={name: _texts(globs) for name, globs in values["policies"].items()},
        dtype=_text(values["dtype"]),
        command=_text(values["command"]),
        copies=_parsed_copies(values["copies"]),
        aliases={_text(name): _text(kept) for name, kept in values.get("aliases", {}).items()},
        components=_texts(values.get("components", [])),
        lora=None if values.get("lora") is None else _one_of(values["lora"], ("delta", "factors"), "its lora"),
        left_out=_texts(values.get("left_out", [])),
        chosen=None if values.get("chosen") is None else _parsed_choice(values["chosen"]),
        version=_text(values["version"]),
        accumulation=_one_of(values.get("accumulation", ACCUMULATION), (ACCUMULATION,), "its accumulation"),
        versions={_text(name): _text(value) for name, value in (values.get("versions") or {}).items()},
        digests={_text(name): _text(digest) for name, digest in values["digests"].items()},
        files=_parsed_files(values.get("files", {})),
    )


def _parsed_checkpoint(told: Mapping[str, Any]) -> RecordedCheckpoint:
    repo, revision = told.get("repo"), told.get("revision")
    return RecordedCheckpoint(
        name=_text(told["name"]),
        step=None if told["step"] is None else _whole(told["step"]),
        tick=_whole(told["tick"]),
        coefficient=_number(told["coefficient"]),
        bytes=_whole(told["bytes"]),
        fingerprint=_text(told["fingerprint"]),
        repo=repo if isinstance(repo, str) else None,
        revision=revision if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) else None,
    )


def _parsed_choice(told: Mapping[str, Any]) -> dict[str, Any]:
    if not {"metric", "higher_is_better", "candidates", "score"} <= set(told) <= set(CHOSEN):
        raise ValueError("what it says of a sweep is none that belay writes")
    read = {str: _text, float: _finite, int: _whole, bool: _flag_of}
    return {name: read[CHOSEN[name]](value) for name, value in told.items()}


def _parsed_copies(told: Any) -> dict[str, str] | tuple[str, ...]:
    if isinstance(told, list):
        return _texts(told)
    if not all(re.fullmatch(r"[0-9a-f]{64}", _text(digest)) for digest in told.values()):
        raise ValueError("a digest of its copies is none")
    return dict(told)


def _parsed_files(told: Mapping[str, Any]) -> dict[str, str]:
    for name, digest in told.items():
        if not all(map(is_plain_name, name.split("/"))) or not re.fullmatch(r"[0-9a-f]{64}", _text(digest)):
            raise ValueError("a file in it is none")
    return dict(told)


def read_beside(output: Path) -> Record | None:
    """The record that lies beside an output in the files of its last checkpoint; None if there is none of that kind.

    Raises CheckpointError if it was damaged.
    """
    path = output / DOCUMENT if output.is_dir() else document_beside(output)
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        text = path.read_bytes()
        told = _loaded(text.decode())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.get("format") != "same":
        return None
    if not (text.startswith(LOCAL_BEGINS) and seal_holds(text, len(LOCAL_BEGINS))):
        raise CheckpointError("is not what was written", file=path, hint="make the average again from its checkpoints")
    return parse(told, path)


def _finite(value: Any) -> float:
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError("what it says of a sweep is no number that can be")
    return number


def _flag_of(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError
    return tuple(map(_text, values))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST_TICK:
        raise ValueError("a step, a tick or a size in it is no number that can be")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError
    return float(value)


def _one_of(value: Any, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"{what} is '{value}'")
    return str(value)


def _check(record: Record) -> None:
    """Raise ValueError for what cannot be, whatever the rule is."""
    if set(record.policies) != set(_POLICIES):
        raise ValueError("its policies are not those of belay")
    ticks, c = record.ticks, record.coefficients
    if not ticks or not all(0 <= a < b for a, b in pairwise([*ticks, _LARGEST_TICK])):
        raise ValueError("its ticks do not rise")
    if not all(math.isfinite(one) and abs(one) <= _LARGEST_COEFFICIENT for one in c):
        raise ValueError("its coefficients are no numbers that can be")
    if not record.rule.any_sum and not abs(math.fsum(c) - 1) <= _SUM_TOLERANCE:
        raise ValueError(f"its coefficients sum to {math.fsum(c):.9g}, not to 1")
    _check_command(record)


def _check_command(record: Record) -> None:
    """Raise ValueError if the command is of another rule or of other checkpoints; how it opened them can be read."""
    said = shlex.split(record.command)
    begins = ["belay", "average", "--method", record.rule.method, "--unit", record.unit]
    if said[: len(begins)] != begins or said[len(said) - len(record.series) :] != record.names:
        raise ValueError("its command is that of another average")
    _ = record.opening


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
