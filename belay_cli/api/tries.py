"""Candidates of a sweep with their rules for one series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from belay_cli.api.average import in_memory
from belay_cli.checkpoints import Series
from belay_cli.planning import Plan, PlanOptions
from belay_cli.rules import Summary
from belay_cli.sweeping.grid import Candidate
from belay_cli.sweeping.store import slug


@dataclass(frozen=True)
class Try:
    """A candidate with its rule for this series."""

    candidate: Candidate
    plan: Plan
    number: int

    @property
    def parameters(self) -> dict[str, Any]:
        """As `--json` has a rule."""
        rule = self.plan.outputs[self.number].rule
        return {"method": rule.method, "unit": self.plan.series.unit, **rule.parameters()}

    @property
    def summary(self) -> Summary:
        """Mean lag and effective number of checkpoints."""
        return self.plan.outputs[self.number].summary

    @property
    def coefficients(self) -> bytes:
        """By which two candidates are one."""
        return self.plan.outputs[self.number].coefficients.tobytes()

    @property
    def name(self) -> str:
        """As a file is called; of a rule with a number for each checkpoint, which a file may say, by those too."""
        lists = any(isinstance(value, list) for value in self.parameters.values())
        return slug(self.candidate.label + (f" {json.dumps(self.parameters)}" if lists else ""))


def planned_tries(series: Series, candidates: Sequence[Candidate], options: PlanOptions) -> list[Try]:
    """Those that differ in their coefficients. Raises UsageError for one that cannot be."""
    # One plan of all of them, which nobody runs, for what is known before anything is read.
    unlimited = replace(options, max_memory="1000GB")
    (plan,) = in_memory(series, [one.rule for one in candidates], unlimited, len(candidates))
    seen: dict[bytes, Try] = {}
    for number, (one, output) in enumerate(zip(candidates, plan.outputs, strict=True)):
        seen.setdefault(output.coefficients.tobytes(), Try(one, plan, number))
    return list(seen.values())
