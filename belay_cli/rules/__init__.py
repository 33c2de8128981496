"""Rules: ticks in, float64 coefficients out. numpy only; knows nothing of files or tensors.

rule             what the rest of the program knows of a rule, whichever it is
ema              the exponential moving average, with or without inertia
belay            the spring that pulls both ends
uniform          the mean of all checkpoints, or of the last ones
power            EDM2's profile, from raw checkpoints
posthoc          EDM2's profile, from stored averages of other widths
polynomial       later checkpoints weigh more, by a power
wsm              a decay of the learning rate, emulated
bema             an EMA whose lag is corrected in part
best             the mean of those that an evaluation found best
coefficients     the user's own
spring           what both come to for one series
spring_options   the options of both
dynamics         the damped spring as coefficients
recursion        the same, tick by tick on the weights: the second definition
debiased         the EMA without its initial state
warmup           EMAs whose decay grows at first, as in libraries
half_life        half-lives as people write them
damping          damping ratio and inertia
gains            averages that move a share of the way to each checkpoint
windowed         rules over the last N checkpoints
power_options    the width of EDM2's profile, and its exponent
per_checkpoint   numbers that a rule has for every checkpoint
summary          mean lag, effective number of checkpoints

A new rule is a file with a subclass of `Rule`, and its line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belay_cli.errors import UsageError
from belay_cli.options import Declared, declared_in, flag, one_of
from belay_cli.rules.belay import Belay
from belay_cli.rules.bema import Bema
from belay_cli.rules.best import Best
from belay_cli.rules.coefficients import Coefficients
from belay_cli.rules.ema import Ema
from belay_cli.rules.polynomial import Polynomial
from belay_cli.rules.posthoc import PostHoc
from belay_cli.rules.power import Power
from belay_cli.rules.rule import Float64Array, Parameters, Rule
from belay_cli.rules.summary import Summary, summarize
from belay_cli.rules.uniform import Uniform
from belay_cli.rules.wsm import Wsm

METHODS: dict[str, type[Rule]] = {
    rule.method: rule
    for rule in (
        Ema,
        Belay,
        Uniform,
        Power,
        PostHoc,
        Polynomial,
        Wsm,
        Bema,
        Best,
        Coefficients,
    )
}

_DEFAULT: Rule = Ema()  # what nobody asked for

__all__ = [
    "METHODS",
    "Belay",
    "Bema",
    "Best",
    "Coefficients",
    "Ema",
    "Float64Array",
    "Parameters",
    "Polynomial",
    "PostHoc",
    "Power",
    "Rule",
    "Summary",
    "Uniform",
    "Wsm",
    "asked",
    "options",
    "recorded",
    "summarize",
    "with_weights",
]


def asked(method: str | Rule | None, given: Mapping[str, Any] | None = None) -> Rule:
    """The rule of a method with the options that were given, those that are None or False left out.

    No method is the first one, or the one that an option is called like: `--best 5`. Raises UsageError for an unknown
    method, and for an option that it does not take.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None and value is not False}
    if method is None and not given:
        return _DEFAULT
    if method is None:
        method = next((name.rstrip("_") for name in given if name.rstrip("_") in METHODS), next(iter(METHODS)))
    if isinstance(method, Rule):
        if given:
            raise UsageError(f"{flag(next(iter(given)))} is given beside a rule", hint="give it to the rule itself")
        return method
    if isinstance(method, type) and issubclass(method, Rule):
        raise UsageError(f"{method.__name__} is the class of a rule", hint=f"write {method.__name__}()")
    method = one_of("--method", method, tuple(METHODS))
    takes = {option.name for option in declared_in(METHODS[method])}
    for name in given:
        if name not in takes:
            takers = [other for other, rule in METHODS.items() if name in {o.name for o in declared_in(rule)}]
            raise UsageError(
                f"--method {method} takes no {flag(name)}",
                hint=f"{flag(name)} belongs to --method {' or '.join(takers)}" if takers else None,
            )
    return METHODS[method](**given)


def with_weights(rule: Rule, weights: Mapping[str, float]) -> Rule:
    """The rule of weights that were typed behind the checkpoints, in place of the default one. Raises UsageError."""
    if rule is not _DEFAULT:
        raise UsageError("weights behind the checkpoints are a method of their own", hint="leave --method out")
    return Coefficients(weights)


def options() -> list[Declared]:
    """The options of all methods; one that several take is there once, and is the same for all of them."""
    found: dict[str, Declared] = {}
    for rule in METHODS.values():
        for option in declared_in(rule):
            if (same := found.setdefault(option.name, option)) != option:
                raise TypeError(f"two methods declare {option.flag} in two ways: {same} and {option}")
    return list(found.values())


def recorded(method: str, parameters: Mapping[str, Any]) -> Rule:
    """The rule of a record. Raises KeyError, TypeError, ValueError or UsageError if it is none."""
    if method not in METHODS:
        raise ValueError(f"its rule '{method}' is not one of this version of belay")
    return METHODS[method].from_parameters(parameters)
