"""What a belay.json says, checked before anything is made of it: it may come from anyone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from belay_cli.errors import CheckpointError
from belay_cli.provenance import DOCUMENT
from belay_cli.rules import METHODS, Summary, summarize


@dataclass(frozen=True)
class Average:
    """One average. Texts are as they were found; revisions are the first digits of a commit, or empty.

    `folders` are those of an output that is several models.
    """

    method: str
    unit: str
    half_life: float
    feedback: float
    curvature: float
    inertia: float
    debias: bool
    damping_ratio: float | None
    names: list[str]
    ticks: list[int]
    coefficients: list[float]
    revisions: list[str]
    policies: dict[str, list[str]]
    copies: list[str]
    folders: list[str]
    version: str
    torch: str
    command: str

    @property
    def summary(self) -> Summary:
        """Mean lag and effective number."""
        return summarize(np.array(self.coefficients), self.ticks)


def read_average(document: Mapping[str, Any]) -> Average:
    """Check a belay.json. Raises CheckpointError if it cannot be one."""
    try:
        return _checked(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        hint = "verify says whether the weights are in order: belay verify OUTPUT"
        raise CheckpointError("is damaged, or not from belay", file=DOCUMENT, hint=hint) from error


def _checked(document: Mapping[str, Any]) -> Average:
    rule, series = document["rule"], list(document["series"])
    numbers = {name: float(rule[name]) for name in ("half_life", "feedback", "curvature", "inertia")}
    ratio = None if rule["damping_ratio"] is None else float(rule["damping_ratio"])
    ticks, coefficients = [int(c["tick"]) for c in series], [float(c["coefficient"]) for c in series]
    finite = all(map(math.isfinite, [*numbers.values(), *coefficients, ratio or 0.0]))
    rising = all(0 <= a < b for a, b in pairwise([*ticks, 2**53]))
    if not (series and finite and rising and rule["method"] in METHODS and rule["unit"] in ("step", "checkpoint")):
        raise ValueError("not a record of belay")
    if abs(sum(coefficients) - 1) > 1e-6 or max(map(abs, coefficients)) > 1e6:
        raise ValueError("not an average")
    return Average(
        method=rule["method"],
        unit=rule["unit"],
        debias=bool(rule["debias"]),
        damping_ratio=ratio,
        names=[str(c["name"]) for c in series],
        ticks=ticks,
        coefficients=coefficients,
        revisions=[_commit(c.get("revision")) for c in series],
        policies={name: [str(glob) for glob in globs] for name, globs in document["policies"].items()},
        copies=[str(copy) for copy in document.get("copies", [])],
        folders=[str(folder) for folder in document.get("components", [])],
        version=str(document["version"]),
        torch=str((document.get("versions") or {}).get("torch", "")),
        command=str(document["command"]),
        **numbers,
    )


def _commit(revision: Any) -> str:
    return revision[:12] if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) else ""
