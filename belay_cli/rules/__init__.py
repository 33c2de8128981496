"""Rules: ticks in, float64 coefficients out. numpy only; knows nothing of files or tensors.

rule        what a person asks for (RuleOptions), and what it comes to for one series (Rule)
dynamics    the damped spring of EMA and BELAY as coefficients
recursion   the same, tick by tick on the weights: the second definition
half_life   half-lives as people write them
damping     damping ratio and inertia
summary     mean lag, effective number of checkpoints
"""

from belay_cli.rules.rule import METHODS, TITLES, Rule, RuleOptions, resolve_rule
from belay_cli.rules.summary import Summary, summarize

__all__ = ["METHODS", "TITLES", "Rule", "RuleOptions", "Summary", "resolve_rule", "summarize"]
