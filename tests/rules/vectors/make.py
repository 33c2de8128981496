"""Make dynamics.json anew: the coefficients of its cases, by the recursion as it is defined. Standard library alone.

    python tests/rules/vectors/make.py             write the cases whose numbers are others
    python tests/rules/vectors/make.py --check     say how many there are; exit code 1 if there are any

A case is a series of ticks and the parameters of a rule. The recursion runs on unit vectors, one a checkpoint, tick by
tick in decimal numbers of 50 digits; the parameters are the float64 of the file, exactly. What comes out is rounded to
float64 once. The tick is that of docs/dynamics.md.
"""

from __future__ import annotations

import argparse
import decimal
import json
import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).with_name("dynamics.json")
DIGITS = 50
_NOTHING = 1e-40  # below it, numbers of 50 digits that add up to 1 say nothing

Case = dict[str, Any]
Numbers = list[Decimal]


def main() -> None:
    """Write the file, or say whether it would change."""
    parser = argparse.ArgumentParser(description="Make the vectors of the dynamics anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a case has other numbers")
    options = parser.parse_args()
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    anew = [made(case) for case in vectors["cases"]]
    same = [agree(*pair) for pair in zip(vectors["cases"], anew, strict=True)]
    print(f"{same.count(False)} of {len(same)} cases have other numbers")
    if options.check:
        sys.exit(not all(same))
    kept = zip(vectors["cases"], anew, same, strict=True)
    vectors["cases"] = [old if as_it_is else new for old, new, as_it_is in kept]
    VECTORS.write_text(json.dumps(vectors, indent=1), encoding="utf-8")


def agree(one: Case, other: Case) -> bool:
    """Whether two cases have the same numbers, but for the last digit of a float64."""
    pairs = [*zip(one["coefficients"], other["coefficients"], strict=True)]
    pairs += [(one[name], other[name]) for name in ("mean_lag", "effective_checkpoints")]
    return all(math.isclose(*pair, rel_tol=2**-52, abs_tol=_NOTHING) for pair in pairs)


def made(case: Case) -> Case:
    """The case with its coefficients [T], their mean lag in ticks and their effective number of checkpoints."""
    with decimal.localcontext(decimal.Context(prec=DIGITS)):
        c = coefficients(case)
        lag = sum(one * (case["ticks"][-1] - tick) for one, tick in zip(c, case["ticks"], strict=True))
        effective = sum(c) ** 2 / sum(one * one for one in c)
    return case | {
        "coefficients": [float(one) for one in c],
        "mean_lag": float(lag),
        "effective_checkpoints": float(effective),
    }


def coefficients(case: Case) -> Numbers:
    """The factor of each checkpoint in the average after the last tick: the average of a unit vector. [T]"""
    count = len(case["ticks"])
    return [average(case, [Decimal(i == j) for j in range(count)]) for i in range(count)]


def average(case: Case, weights: Sequence[Decimal]) -> Decimal:
    """The average of a series of models of one weight. [T]"""
    mu, feedback, a = Decimal(case["inertia"]), Decimal(case["feedback"]), 1 - Decimal(case["decay"])
    alpha, beta = (1 - mu) * a, feedback * a
    kappa = Decimal(case["curvature"]) * a if feedback else Decimal(0)  # without feedback x is w
    x = w = weights[0]
    e, v = (a * w if case["debias"] else w), Decimal(0)
    total = a  # the weight that is in a debiased e
    for j in range(1, len(weights)):
        n = case["ticks"][j] - case["ticks"][j - 1]
        delta = (weights[j] - weights[j - 1]) / n
        for _ in range(n):
            free = x + delta - kappa * (x - w)
            x = (free + beta * e) / (1 + beta)
            w = w + delta
            v = mu * v + alpha * (x - e)
            e = e + v
            total = total + a * (1 - total)
    return e / total if case["debias"] else e


if __name__ == "__main__":
    main()
