"""Provenance: what the metadata of every weight file says, enough to verify the average and to repeat it.

Every value is text. `belay.series` and `belay.rule` are JSON. Nothing in it depends on the machine, the
time, or what was typed: the same inputs and options give the same bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from belay_cli._version import __version__
from belay_cli.checkpoints import Series
from belay_cli.rules import Rule

# As long as a real fingerprint, so that sizes are known before anything is read.
PLACEHOLDER = "0" * 64


def metadata(
    series: Series,
    rule: Rule,
    coefficients: Sequence[float],
    *,
    options: Sequence[str],
    copies: Sequence[str],
    fingerprints: Sequence[str] | None = None,
) -> dict[str, str]:
    """The metadata of every file of one output; `options` are the policies and the dtype as command-line words."""
    fingerprints = fingerprints or [PLACEHOLDER] * len(series.checkpoints)
    return {
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
                }
                for checkpoint, tick, coefficient, fingerprint in zip(
                    series.checkpoints, series.ticks, coefficients, fingerprints, strict=True
                )
            ]
        ),
        "belay.command": command(series, rule, options),
        "belay.copies": _compact(list(copies)),
    }


def command(series: Series, rule: Rule, options: Sequence[str]) -> str:
    """The canonical command: parameters as numbers, checkpoints by name, whatever was typed."""
    words = ["belay", "average", *rule.arguments(), *options]
    words += ["--order", "given"] if series.selection.order == "given" else []
    words += ["--allow-averages"] if series.selection.allow_averages else []
    return shlex.join(words + [checkpoint.name for checkpoint in series.checkpoints])


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
