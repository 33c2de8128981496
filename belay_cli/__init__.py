"""belay: average the checkpoints of a training run, after the fact or while it runs, by EMA and BELAY.

    cli            the command line, a file a command
    api            the Python API, a file a function: where the stages meet
    checkpoints    finding, ordering and opening checkpoints
    rules          ticks into coefficients, a file a rule
    sweeping       many averages, and which one the user's own evaluation finds best
    planning       everything decided before a weight is read
    record         what an output says of itself
    engine         the arithmetic, and the streams through it
    output         the writer
    verification   an output against its record and its checkpoints
    publish        the model card and the commit
    training       BELAY while a model trains: a hook on any torch optimizer, which needs nothing of the rest but rules
    show           what people see: console, tables, sentences, reports
    storage        bytes by position, here and far
    formats        bytes into named entries
    options        how options are declared
    words          numbers as people read them
    errors         every error, as a tree

Data flows one way: cli → api → checkpoints and rules → planning → engine → output.

    >>> from belay_cli import Belay, average
    >>> report = average("run", "out", method=Belay(half_life="10%"))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from belay_cli._version import __version__
from belay_cli.errors import BelayError, UsageError

if TYPE_CHECKING:
    from belay_cli.api.average import average, averages, plan
    from belay_cli.api.inspect import inspect
    from belay_cli.api.push import push
    from belay_cli.api.sweep import sweep
    from belay_cli.api.verify import verify
    from belay_cli.rules import (
        Belay,
        Bema,
        Best,
        Coefficients,
        Ema,
        Polynomial,
        PostHoc,
        Power,
        Rule,
        Uniform,
        Wsm,
    )

__all__ = [
    "Belay",
    "BelayError",
    "Bema",
    "Best",
    "Coefficients",
    "Ema",
    "Polynomial",
    "PostHoc",
    "Power",
    "Rule",
    "Uniform",
    "UsageError",
    "Wsm",
    "__version__",
    "average",
    "averages",
    "inspect",
    "plan",
    "push",
    "sweep",
    "verify",
]

_WHERE = {
    **dict.fromkeys(("average", "averages", "plan"), "belay_cli.api.average"),
    **{name: f"belay_cli.api.{name}" for name in ("inspect", "push", "sweep", "verify")},
    **dict.fromkeys(
        ("Belay", "Bema", "Best", "Coefficients", "Ema", "Polynomial", "PostHoc", "Power", "Rule", "Uniform", "Wsm"),
        "belay_cli.rules",
    ),
}


def __getattr__(name: str) -> Any:
    # On first use, so that `import belay_cli` costs nothing.
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'belay_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
