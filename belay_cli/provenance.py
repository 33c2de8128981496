"""Provenance: what the metadata of every weight file says, enough to verify the average and to repeat it.

Every value is text; all but `belay.version`, `belay.command`, `belay.dtype`, `belay.accumulation` and `belay.lora` are
JSON. Nothing in it depends on the machine, the time, or what was typed: the same inputs, options and versions give the
same bytes. `docs/provenance.md` describes the schema.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from belay_cli._version import __version__
from belay_cli.checkpoints import Checkpoint, Series
from belay_cli.errors import CheckpointError, UsageError
from belay_cli.rules import Rule
from belay_cli.rules.dynamics import Dynamics
from belay_cli.storage.remote.path import RemotePath

# As long as a real fingerprint or digest, so that sizes are known before anything is read.
PLACEHOLDER = "0" * 64

DOCUMENT = "belay.json"  # the same record beside the weights, for people and programs
SCHEMA = 1  # of that document
ACCUMULATION = "float64"
LOCAL = ".belay/local.json"  # where the inputs lay; never published


def metadata(
    series: Series,
    rule: Rule,
    coefficients: Sequence[float],
    *,
    policies: Mapping[str, Sequence[str]],
    dtype: str,
    options: Sequence[str],
    copies: Sequence[str],
    aliases: Mapping[str, str],
    shared: Mapping[str, str],
    carried: Mapping[str, str],
    components: Sequence[str] = (),
    lora: str | None = None,
    left_out: Sequence[str] = (),
    fingerprints: Sequence[str] | None = None,
) -> dict[str, str]:
    """The metadata of every file in one folder of an output. What depends on the folder is not part of the record.

    policies: the globs of `average`, `last` and `drop`; dtype: as --dtype has it; options: what the bytes of the
    tensors depend on, as command-line words; aliases: names that share the bytes of another -> that one; shared: those
    in this folder, by the names in its files. They are entries of their own too, by which safetensors.torch.load_model
    knows that nothing is missing. carried: what the inputs' own metadata says alike; it changes none of these.
    components: the folders of an output that is several models. left_out: where other weights lay, in the last
    checkpoint or beside it.
    """
    fingerprints = fingerprints or [PLACEHOLDER] * len(series.checkpoints)
    shared = {name: kept for name, kept in shared.items() if name != "format" and not name.startswith("belay.")}
    return {
        **carried,
        **shared,
        **({"belay.components": _compact(list(components))} if components else {}),
        **({"belay.lora": lora} if lora else {}),
        **({"belay.left_out": _compact(list(left_out))} if left_out else {}),
        "format": "pt",
        "belay.version": __version__,
        "belay.rule": _compact({**rule.describe(), "a": rule.dynamics.a}),
        "belay.series": _compact(
            [
                {
                    "name": checkpoint.name,
                    "step": checkpoint.step,
                    "tick": tick,
                    "coefficient": float(coefficient),
                    "bytes": checkpoint.bytes,
                    "fingerprint": fingerprint,
                    **_origin(checkpoint),
                }
                for checkpoint, tick, coefficient, fingerprint in zip(
                    series.checkpoints, series.ticks, coefficients, fingerprints, strict=True
                )
            ]
        ),
        "belay.policies": _compact({name: list(globs) for name, globs in policies.items()}),
        "belay.dtype": dtype,
        "belay.accumulation": ACCUMULATION,
        "belay.command": command(series, rule, options),
        "belay.copies": _compact(list(copies)),
        "belay.aliases": _compact(dict(aliases)),
        "belay.versions": _compact(versions()),
    }


def _origin(checkpoint: Checkpoint) -> dict[str, str]:
    """Of a checkpoint on the Hub: the repository, and the commit that its revision was."""
    path = checkpoint.path
    if not isinstance(path, RemotePath) or path.repo is None or path.commit is None:
        return {}
    return {"repo": path.repo, "revision": path.commit}


@cache
def versions() -> dict[str, str]:
    """Of the libraries that the bytes may depend on; without the suffix that names a build of torch (`+cpu`)."""
    return {name: version(name).partition("+")[0] for name in ("torch", "safetensors")}


def digest_entry(names: Sequence[str], digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """The metadata entry with the SHA-256 (hex) of the bytes of each tensor of one file."""
    return {"belay.digests": _compact({name: digests[name] if digests else PLACEHOLDER for name in names})}


def document(entries: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, Any]:
    """belay.json: `schema`, then the metadata's entries without their prefix, as JSON values, and all `digests`."""
    texts = ("version", "command", "dtype", "accumulation", "lora")
    plain = {name.removeprefix("belay."): value for name, value in entries.items() if name.startswith("belay.")}
    values = {name: value if name in texts else json.loads(value) for name, value in plain.items()}
    return {"schema": SCHEMA, **values, "digests": {name: digests[name] for name in sorted(digests)}}


def document_text(content: Mapping[str, Any]) -> bytes:
    """A belay.json as it is written."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def local_document(series: Series, card: str | None) -> bytes:
    """.belay/local.json: the paths of the checkpoints on this machine, so that they are found again, and their card."""
    paths = [str(checkpoint.path.absolute()) for checkpoint in series.checkpoints]
    return (json.dumps({"checkpoints": paths, "card": card}, indent=2) + "\n").encode()  # a path may be no Unicode


def command(series: Series, rule: Rule, options: Sequence[str]) -> str:
    """The canonical command: parameters as numbers, checkpoints by name, whatever was typed."""
    words = ["belay", "average", *rule.arguments(), *options]
    words += ["--order", "given"] if series.selection.order == "given" else []
    words += ["--allow-averages"] if series.selection.allow_averages else []
    for name in _OPENING:
        value = getattr(series.selection.opening, name)
        words += [f"--{name.replace('_', '-')}", value] if value is not None else []
    return shlex.join(words + [checkpoint.name for checkpoint in series.checkpoints])


@dataclass(frozen=True)
class Recorded:
    """One checkpoint as an output records it."""

    name: str
    tick: int
    coefficient: float
    fingerprint: str


@dataclass(frozen=True)
class Record:
    """What an output says of itself. `debias` and `dynamics` are its rule; digests are by tensor name.

    `dtype` is a name as --dtype has it; `copies` are the files beside the weights, relative to the directory; `opening`
    are the options that say what was taken of each checkpoint, by their fields in Selection; `left_out` says where
    other weights lay, which are not in it.
    """

    dynamics: Dynamics
    debias: bool
    series: tuple[Recorded, ...]
    policies: dict[str, tuple[str, ...]]
    dtype: str
    copies: tuple[str, ...]
    digests: dict[str, str]
    lora: str | None = None
    opening: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_record(metadata: Mapping[str, str], path: str) -> Record:
    """Parse the metadata of one file. Raises CheckpointError if belay did not write it, or it was damaged."""
    if "belay.version" not in metadata:
        raise CheckpointError("was not written by belay: it has no record of how it was made", file=path)
    try:
        rule = json.loads(metadata["belay.rule"])
        dynamics = Dynamics(*(float(rule[name]) for name in ("a", "inertia", "feedback", "curvature")))
        series = tuple(
            Recorded(str(c["name"]), int(c["tick"]), float(c["coefficient"]), str(c["fingerprint"]))
            for c in json.loads(metadata["belay.series"])
        )
        policies = {str(k): tuple(map(str, v)) for k, v in json.loads(metadata["belay.policies"]).items()}
        digests = {str(k): str(v) for k, v in json.loads(metadata["belay.digests"]).items()}
        if policies.keys() != {"average", "last", "drop"}:
            raise ValueError("its policies are not those of belay")
        copies = tuple(str(name) for name in json.loads(metadata["belay.copies"]))
        if not all(0 <= c.tick < 2**53 and math.isfinite(c.coefficient) for c in series):
            raise ValueError("its ticks or coefficients are no numbers that can be")
        told = metadata["belay.dtype"], copies, digests, metadata.get("belay.lora")
        left_out = tuple(str(where) for where in json.loads(metadata.get("belay.left_out", "[]")))
        opening = _opening(metadata["belay.command"], len(series))
        record = Record(dynamics, bool(rule["debias"]), series, policies, *told, opening, left_out)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, UsageError) as error:
        raise CheckpointError(f"has a damaged record of how it was made: {error}", file=path) from error
    if not series or any(b.tick <= a.tick for a, b in pairwise(series)):
        raise CheckpointError("has a damaged record of how it was made: its ticks do not rise", file=path)
    return record


_OPENING = ("subfolder", "state_key", "source")  # in this order they end the options of a command


def _opening(command: str, checkpoints: int) -> dict[str, str]:
    """How the checkpoints were opened: the last options of the canonical command, before the checkpoints' names."""
    words = shlex.split(command)
    words = words[: len(words) - checkpoints]
    found = {}
    for name in reversed(_OPENING):
        if words[-2:-1] == [f"--{name.replace('_', '-')}"]:
            found[name] = words[-1]
            words = words[:-2]
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
